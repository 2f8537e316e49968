"""How often one item came after another in train, by distance: whole numbers, so counts of parts just add.

Legend: N items, P pairs (source, target) that occur, D distances, S sources asked for, R pairs of those.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sid_builder.interactions import Interactions


@dataclass(frozen=True)
class TransitionCounts:
    """CSR over sources, targets ascending; arrays may be memory-mapped.

    Attributes:
        indptr_N1: int64.
        targets_P: int32 item indices.
        counts_PD: int32; [p, d - 1]: how often the target was train's target with the source d before it.
    """

    indptr_N1: np.ndarray
    targets_P: np.ndarray
    counts_PD: np.ndarray

    @staticmethod
    def count(train: Interactions, num_items: int, distances: int) -> "TransitionCounts":
        """Each target of train counts once for each of the `distances` items before it."""
        cases = train.histories("train")
        target_at = train.indptr_S1[cases.sequence_C] + cases.position_C
        keys, distance = [], []
        for back in range(1, distances + 1):
            reached_at = target_at[cases.position_C >= back]
            source, target = train.items_I[reached_at - back], train.items_I[reached_at]
            known = (source >= 0) & (target >= 0)
            keys.append(source[known].astype(np.int64) * num_items + target[known])
            distance.append(np.full(len(keys[-1]), back - 1))
        pair_P, at = np.unique(np.concatenate(keys), return_inverse=True)
        counts_PD = np.zeros((len(pair_P), distances), dtype=np.int32)
        np.add.at(counts_PD, (at, np.concatenate(distance)), 1)
        return TransitionCounts._of_pairs(pair_P, counts_PD, num_items)

    @staticmethod
    def _of_pairs(pair_P: np.ndarray, counts_PD: np.ndarray, num_items: int) -> "TransitionCounts":
        source_P, target_P = np.divmod(pair_P, num_items)
        indptr = np.searchsorted(source_P, np.arange(num_items + 1)).astype(np.int64)
        return TransitionCounts(indptr, target_P.astype(np.int32), counts_PD)

    @property
    def num_items(self) -> int:
        return len(self.indptr_N1) - 1

    def plus(self, other: "TransitionCounts") -> "TransitionCounts":
        """The counts of both, over the same items and distances."""
        pair_P, at = np.unique(np.concatenate([self._pairs(), other._pairs()]), return_inverse=True)
        counts_PD = np.zeros((len(pair_P), self.counts_PD.shape[1]), dtype=np.int32)
        np.add.at(counts_PD, at, np.concatenate([self.counts_PD, other.counts_PD]))
        return TransitionCounts._of_pairs(pair_P, counts_PD, self.num_items)

    def _pairs(self) -> np.ndarray:
        source_P = np.repeat(np.arange(self.num_items, dtype=np.int64), np.diff(self.indptr_N1))
        return source_P * self.num_items + self.targets_P

    def after(self, sources_S: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What came after: the source's place in `sources_S` int64 [R], target int32 [R], counts [R, D]."""
        first_S = self.indptr_N1[sources_S]
        size_S = self.indptr_N1[sources_S + 1] - first_S
        row_R = np.repeat(np.arange(len(sources_S)), size_S)
        at_R = np.arange(len(row_R)) + (first_S - (np.cumsum(size_S) - size_S))[row_R]
        return row_R, self.targets_P[at_R], self.counts_PD[at_R]

    def save(self, directory: Path) -> None:
        for name in ("indptr_N1", "targets_P", "counts_PD"):
            np.save(directory / f"{name[: name.rindex('_')]}.npy", getattr(self, name))

    @staticmethod
    def load(directory: Path) -> "TransitionCounts":
        """Open memory-mapped: what comes after an item is read when it is asked for."""
        return TransitionCounts(
            *(
                np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("indptr", "targets", "counts")
            )
        )
