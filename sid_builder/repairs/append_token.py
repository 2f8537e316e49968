"""A running index within each SID as one more code (TIGER): the first item of an SID gets 0, the next 1.

The index says nothing about the item, so a decoder can only learn it by heart; in exchange no code of the
quantizer changes.

Legend: N items, L levels.
"""

from dataclasses import dataclass, field

import numpy as np

from sid_builder.errors import InputError
from sid_builder.repairs import Repaired, RepairInput, RepairStats


@dataclass(frozen=True)
class AppendTokenOptions:
    """Who gets the further code, and how many there are."""

    only_colliding: bool = field(
        default=False,
        metadata={
            "help": "Only items that share an SID get it: SIDs of mixed lengths, one step less for most "
            "(MiniOneRec's constrained variant)."
        },
    )
    extra_codes: int = field(
        default=0,
        metadata={"help": "Codes beyond the largest group's, for new items of a living catalogue."},
    )

    def __post_init__(self) -> None:
        if self.extra_codes < 0:
            raise InputError(f"repair_args.extra_codes: {self.extra_codes}; give 0 or more")


def repair(options: AppendTokenOptions, given: RepairInput) -> Repaired:
    """Codes with the index behind each row's last code, in order of item_index.

    A full row's index makes a new level as large as the largest group; that of a short row goes into its next
    level, which grows where it is too small. Without a collision `only_colliding` changes nothing.
    """
    codes_NL, depth = given.codes_NL, given.codes_NL.shape[1]
    index_N, count_N = _running_index(codes_NL)
    longer_N = count_N > 1 if options.only_colliding else np.ones(len(codes_NL), dtype=bool)
    stats = RepairStats(
        "append_token", int(((count_N > 1) & (index_N == 0)).sum()), items_moved=int(longer_N.sum())
    )
    if not longer_N.any():
        return Repaired(codes_NL, given.level_sizes, stats)
    length_N = (codes_NL >= 0).sum(axis=1)
    padded_NL = np.pad(codes_NL, ((0, 0), (0, 1)), constant_values=-1)
    padded_NL[longer_N, length_N[longer_N]] = index_N[longer_N]
    sizes = [*given.level_sizes, 0]
    for level in np.unique(length_N[longer_N]).tolist():
        largest = int(count_N[longer_N & (length_N == level)].max())
        sizes[level] = max(sizes[level], largest + options.extra_codes)
    width = depth + (sizes[depth] > 0)  # rows that were all short leave no new level
    return Repaired(padded_NL[:, :width], tuple(sizes[:width]), stats)


def _running_index(codes_NL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which item of its SID each item is (from 0, by item_index), and how many its SID has; int64 [N]."""
    order = np.lexsort(codes_NL.T[::-1])
    sorted_NL = codes_NL[order]
    new = np.append(True, (sorted_NL[1:] != sorted_NL[:-1]).any(axis=1))
    starts, group = np.flatnonzero(new), np.cumsum(new) - 1
    index_N, count_N = (np.empty(len(codes_NL), dtype=np.int64) for _ in range(2))
    index_N[order] = np.arange(len(order)) - starts[group]
    count_N[order] = np.bincount(group)[group]
    return index_N, count_N
