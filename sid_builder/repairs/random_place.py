"""Items beyond an SID's capacity go to a random last code with room under the same prefix: the control that
says what choosing near codes is worth. FORGE has it as a variant.
"""

from dataclasses import dataclass, field

import numpy as np

from sid_builder.errors import InputError
from sid_builder.repairs import Repaired, RepairInput
from sid_builder.repairs.prefix_groups import PrefixGroup, give_last_codes, surplus_of


@dataclass(frozen=True)
class RandomPlaceOptions:
    """How many items an SID may have."""

    capacity: int = field(default=1, metadata={"help": "Items per SID; 1 ends collisions."})

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise InputError(f"repair_args.capacity: {self.capacity}; an SID holds at least 1 item")


def repair(options: RandomPlaceOptions, given: RepairInput) -> Repaired:
    """Of the items that share an SID the first in the catalogue stay; the build's seed draws the rest's."""
    rng = np.random.default_rng(given.seed)

    def change(group: PrefixGroup) -> tuple[np.ndarray, int]:
        surplus_S, room_O = surplus_of(group, options.capacity, group.items_G)
        free = rng.permutation(np.repeat(np.arange(len(room_O)), room_O))
        placed = min(len(free), len(surplus_S))
        slot_G = group.slot_G.copy()
        slot_G[surplus_S[:placed]] = free[:placed]
        return slot_G, len(surplus_S) - placed

    return give_last_codes("random", given, change)
