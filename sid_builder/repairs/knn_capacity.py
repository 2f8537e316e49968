"""At most `capacity` items per SID: the nearest keep their place, the others go to the nearest last code with
room under the same prefix (FORGE, https://github.com/selous123/al_sid; MQL4GRec with a capacity of 1).
"""

from dataclasses import dataclass, field

import numpy as np

from sid_builder.errors import InputError
from sid_builder.repairs import Repaired, RepairInput
from sid_builder.repairs.prefix_groups import PrefixGroup, give_last_codes, nearest_with_room, surplus_of


@dataclass(frozen=True)
class KnnCapacityOptions:
    """How many items an SID may have."""

    capacity: int = field(
        default=1, metadata={"help": "Items per SID; 1 ends collisions, FORGE keeps up to 5."}
    )

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise InputError(f"repair_args.capacity: {self.capacity}; an SID holds at least 1 item")


def repair(options: KnnCapacityOptions, given: RepairInput) -> Repaired:
    """Only items beyond an SID's capacity move; those that find no room stay where they were."""
    distances = given.required_distances("knn_capacity")

    def change(group: PrefixGroup) -> tuple[np.ndarray, int]:
        distance_GO = distances(group.items_G, group.prefix)[:, group.open_O]
        own_G = distance_GO[np.arange(len(group.slot_G)), group.slot_G]
        surplus_S, room_O = surplus_of(group, options.capacity, own_G)
        place_S = nearest_with_room(distance_GO[surplus_S], room_O)
        slot_G = group.slot_G.copy()
        slot_G[surplus_S] = np.where(place_S >= 0, place_S, slot_G[surplus_S])
        return slot_G, int((place_S < 0).sum())

    return give_last_codes("knn_capacity", given, change)
