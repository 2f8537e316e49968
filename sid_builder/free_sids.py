"""Which semantic IDs nobody has yet, and the nearest of them: for items that come after the others.

An SID is free when it is nobody's, no one's SID begins with it and it begins with no one's.

Legend: N items, L levels, K codes of a level.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from sid_builder.trie import SidTrie

Codes = tuple[int, ...]


class FreeSids:
    """All SIDs under `level_sizes` but those of `codes_NL` (int32, -1 pads short rows) and those taken since.

    Counts are in places of the last level: a short SID takes all the places below it.
    """

    def __init__(self, codes_NL: np.ndarray, level_sizes: tuple[int, ...]) -> None:
        self.level_sizes = level_sizes
        # Places below a prefix of l codes.
        self._places = [math.prod(level_sizes[length:]) for length in range(len(level_sizes) + 1)]
        self._trie = SidTrie.build(codes_NL)
        length_M = (self._trie.codes_ML >= 0).sum(axis=1)
        # Per length: how many SIDs of it stand before each leaf. Python's integers carry the places, which
        # may exceed 64 bits.
        self._before = {
            length: np.append(0, np.cumsum(length_M == length)) for length in np.unique(length_M).tolist()
        }
        self._since: dict[Codes, int] = {}

    def take(self, sid: Codes) -> None:
        """Mark a free SID as somebody's."""
        assert self._used(sid) == 0, sid
        for length in range(len(sid) + 1):
            self._since[sid[:length]] = self._since.get(sid[:length], 0) + self._places[len(sid)]

    def nearest(
        self, wanted: Codes, lengths: Sequence[int], order: Callable[[Codes], np.ndarray]
    ) -> Codes | None:
        """The free SID that shares the longest prefix with `wanted` and is nearest from there on.

        Args:
            lengths: how long it may be; at most L.
            order: a prefix -> codes of the next level, nearest first; codes left out are no choice.

        Returns:
            None when no SID of these lengths is free.
        """
        reach = 0
        while reach < min(len(wanted), max(lengths)) and not self._is_full(wanted[: reach + 1]):
            reach += 1
        if self._is_full(()):
            return None
        for kept in range(reach, -1, -1):
            found = self._below(wanted[:kept], lengths, order)
            if found is not None:
                return found
        return None

    def _below(
        self, prefix: Codes, lengths: Sequence[int], order: Callable[[Codes], np.ndarray]
    ) -> Codes | None:
        if len(prefix) in lengths and self._used(prefix) == 0:
            return prefix
        if len(prefix) == max(lengths):
            return None
        for code in order(prefix).tolist():
            child = (*prefix, code)
            if not self._is_full(child) and (found := self._below(child, lengths, order)) is not None:
                return found
        return None

    def _is_full(self, prefix: Codes) -> bool:
        return self._used(prefix) == self._places[len(prefix)]

    def _used(self, prefix: Codes) -> int:
        used, node = self._since.get(prefix, 0), self._trie.node_of(prefix)
        if node is not None:
            low, high = (int(bound[0]) for bound in self._trie.leaf_ranges(np.array([node]), len(prefix)))
            for length, before in self._before.items():
                used += int(before[high] - before[low]) * self._places[length]
        return used
