"""Items whose SIDs differ in the last code alone, where some share one: what most policies work on.

The last code of a short SID is its last one that is not padding. A last code that longer SIDs continue is not
open to a shorter one: it would be their prefix.

Legend: N items, L levels, G items of a group, O open last codes, S items in search of a place.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from sid_builder.repairs import Repaired, RepairInput, RepairStats

_BLOCK = 1 << 16


@dataclass(frozen=True)
class PrefixGroup:
    """`items_G` (int64, ascending) begin with `prefix`, end one code later, and at least two share an SID.

    `slot_G` int64 is each item's last code as a place in `open_O` (int32, ascending): the last codes an SID
    may have here.
    """

    items_G: np.ndarray
    prefix: tuple[int, ...]
    slot_G: np.ndarray
    open_O: np.ndarray


def colliding_groups(codes_NL: np.ndarray, level_sizes: tuple[int, ...]) -> list[PrefixGroup]:
    """Every prefix with a collision, shorter SIDs first, then in order of the prefix."""
    length_N = (codes_NL >= 0).sum(axis=1)
    groups = []
    for length in np.unique(length_N).tolist():
        rows = np.flatnonzero(length_N == length)
        order = rows[np.lexsort(codes_NL[rows, :length].T[::-1])]
        sorted_Nl = codes_NL[order, :length]
        differs = sorted_Nl[1:] != sorted_Nl[:-1]
        starts = np.append(0, 1 + np.flatnonzero(differs[:, :-1].any(axis=1)))
        collisions = 1 + np.flatnonzero(~differs.any(axis=1))
        ends = np.append(starts[1:], len(order))
        continued = _continued(codes_NL[length_N > length, :length])
        for group in np.unique(np.searchsorted(starts, collisions, side="right") - 1).tolist():
            items_G = np.sort(order[starts[group] : ends[group]])
            prefix = tuple(codes_NL[items_G[0], : length - 1].tolist())
            open_O = np.setdiff1d(np.arange(level_sizes[length - 1]), continued.get(prefix, []))
            slot_G = np.searchsorted(open_O, codes_NL[items_G, length - 1])
            groups.append(PrefixGroup(items_G, prefix, slot_G, open_O.astype(np.int32)))
    return groups


def _continued(longer_Nl: np.ndarray) -> dict[tuple[int, ...], list[int]]:
    """Prefix -> the codes behind it that longer SIDs go through."""
    found: dict[tuple[int, ...], list[int]] = {}
    if len(longer_Nl):
        for row in np.unique(longer_Nl, axis=0).tolist():
            found.setdefault(tuple(row[:-1]), []).append(row[-1])
    return found


def give_last_codes(
    policy: str, given: RepairInput, change: Callable[[PrefixGroup], tuple[np.ndarray, int]]
) -> Repaired:
    """Give the items of every colliding group new last codes.

    Args:
        change: a group -> places in `open_O` [G] and how many of its items found none of their own.
    """
    codes_NL = given.codes_NL.copy()
    groups = colliding_groups(codes_NL, given.level_sizes)
    over_groups = over_items = 0
    for group in tqdm(groups, desc="repairing prefixes", unit="prefix", disable=not groups):
        slot_G, over = change(group)
        codes_NL[group.items_G, len(group.prefix)] = group.open_O[slot_G]
        over_groups += over > 0
        over_items += over
    moved = int((codes_NL != given.codes_NL).any(axis=1).sum())
    return Repaired(
        codes_NL, given.level_sizes, RepairStats(policy, len(groups), moved, over_groups, over_items)
    )


def surplus_of(group: PrefixGroup, capacity: int, order_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Who has to go when an SID takes `capacity` items: the first in order of `order_G` stay.

    Returns:
        Positions in the group of those in search of a place, ascending, and the room [O] left by the others.
    """
    queue = np.lexsort((order_G, group.slot_G))
    slot = group.slot_G[queue]
    rank = np.arange(len(slot)) - np.searchsorted(slot, slot)
    stay = np.bincount(slot[rank < capacity], minlength=len(group.open_O))
    return np.sort(queue[rank >= capacity]), capacity - stay


def nearest_with_room(distance_SO: np.ndarray, room_O: np.ndarray) -> np.ndarray:
    """A place int64 [S] for every item, -1 when all room is gone: of all pairs the nearest is served first.

    Ties go to the earlier item, then the lower place.
    """
    place_S, room_O = np.full(len(distance_SO), -1), room_O.copy()
    order = np.argsort(distance_SO, axis=None, kind="stable")
    waiting = min(len(distance_SO), int(room_O.sum()))
    for start in range(0, len(order), _BLOCK):
        item, slot = np.divmod(order[start : start + _BLOCK], len(room_O))
        # What was decided in an earlier block goes at once: identical items ask for the same place first.
        left = (place_S[item] < 0) & (room_O[slot] > 0)
        for i, o in zip(item[left].tolist(), slot[left].tolist(), strict=True):
            if waiting and place_S[i] < 0 and room_O[o] > 0:
                place_S[i] = o
                room_O[o] -= 1
                waiting -= 1
        if not waiting:
            break
    return place_S
