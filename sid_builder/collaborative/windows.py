"""Train cases as windows: every train position is a target once, and what stands before it is its input.

Legend: W windows, S sequences, b windows of one batch, T positions of a window, padded on the right.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sid_builder.interactions import Interactions

NO_TARGET = -1


@dataclass(frozen=True)
class TrainWindows:
    """Window w reads `items_I[begin_W[w] : end_W[w] - 1]` and asks for the item after each; positions
    `first_W[w] <= p < end_W[w]` are its targets, those before serve as history only.
    """

    items_I: np.ndarray  # int32
    begin_W: np.ndarray  # int64
    first_W: np.ndarray  # int64
    end_W: np.ndarray  # int64

    def __len__(self) -> int:
        return len(self.begin_W)

    @staticmethod
    def of(interactions: Interactions, max_history: int) -> "TrainWindows":
        """One window per sequence; a longer one than `max_history` is cut from its end so that every target
        keeps at least half of `max_history` items before it.
        """
        low_S, high_S = interactions.bounds_of("train")
        low_S = np.maximum(low_S, 1)
        asked = np.flatnonzero(high_S > low_S)
        start_S = interactions.indptr_S1[asked]
        first_W, end_W = start_S + low_S[asked], start_S + high_S[asked]
        long_W = end_W - 1 - start_S > max_history
        windows = [np.stack([start_S, first_W, end_W])[:, ~long_W]]
        for start, first, end in zip(start_S[long_W], first_W[long_W], end_W[long_W], strict=True):
            windows.append(_cut(int(start), int(first), int(end), max_history))
        begin_W, first_W, end_W = np.concatenate(windows, axis=1)
        return TrainWindows(interactions.items_I, begin_W, first_W, end_W)

    def seen_items(self, num_items: int) -> np.ndarray:
        """Which items occur in any window, bool [N]."""
        change_I1 = np.zeros(len(self.items_I) + 1, dtype=np.int64)
        np.add.at(change_I1, self.begin_W, 1)
        np.add.at(change_I1, self.end_W, -1)
        items = self.items_I[np.cumsum(change_I1[:-1]) > 0]
        return np.bincount(items[items >= 0], minlength=num_items) > 0

    def batches(
        self, batch_targets: int, rng: np.random.Generator
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Inputs and targets int64 [b, T] over all windows, in an order drawn from `rng`.

        Windows of like length go together, at most `batch_targets` padded positions at a time (one window at
        least), so that little is spent on padding. Targets that do not count are `NO_TARGET`.
        """
        length_W = self.end_W - self.begin_W - 1
        order = rng.permutation(len(self))
        order = order[np.argsort(length_W[order], kind="stable")]
        groups, start = [], 0
        while start < len(order):
            # Lengths ascend, so the last window of a batch is its longest.
            size = np.arange(1, len(order) - start + 1)[: batch_targets + 1]
            fits = size * length_W[order[start : start + len(size)]] <= batch_targets
            stop = start + max(1, int(fits.sum()))
            groups.append(order[start:stop])
            start = stop
        for number in rng.permutation(len(groups)):
            yield self._padded(groups[number])

    def _padded(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        begin, first, end = self.begin_W[windows], self.first_W[windows], self.end_W[windows]
        at_bT = begin[:, None] + np.arange(int((end - begin).max()) - 1)
        inside_bT = at_bT < (end - 1)[:, None]
        at_bT = np.minimum(at_bT, (end - 2)[:, None])
        inputs_bT = self.items_I[at_bT].astype(np.int64)
        targets_bT = self.items_I[at_bT + 1].astype(np.int64)
        counts_bT = inside_bT & (at_bT + 1 >= first[:, None])
        # What pads the right is never attended to by what stands left of it, so any item will do.
        return np.where(inside_bT, inputs_bT, 0), np.where(counts_bT, targets_bT, NO_TARGET)


def _cut(start: int, first: int, end: int, max_history: int) -> np.ndarray:
    """(begin, first, end) of the windows of one long sequence, int64 [3, windows]."""
    windows = []
    while end > first:
        begin = max(start, end - 1 - max_history)
        own_first = first if begin == start else max(first, begin + (max_history + 1) // 2)
        windows.append((begin, own_first, end))
        end = own_first
    return np.array(windows, dtype=np.int64).T
