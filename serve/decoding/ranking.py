"""What a decoder returns and which items it may return."""

from dataclasses import dataclass, field

import numpy as np

from sid_builder.trie import SidTrie


@dataclass(frozen=True)
class ItemFilter:
    """Items a request may get: all, or the allowed ones, without the excluded ones (item indices)."""

    exclude: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    allow: np.ndarray | None = None

    def keeps(self, items: np.ndarray) -> np.ndarray:
        """Bool per item index."""
        kept = ~np.isin(items, self.exclude)
        return kept if self.allow is None else kept & np.isin(items, self.allow)


@dataclass(frozen=True)
class Ranking:
    """One request's list, best first. All arrays are aligned by rank.

    Attributes:
        items_K, scores_K: int64 item indices and float32 log-probs of their SIDs, which items of one SID
            share.
        codes_BL, beam_scores_B: the beams behind them, int32 (-1 pads short SIDs) and float32.
        legal_B: bool; whether a beam is an SID of the catalogue (always so under a trie, not in a free beam).
    """

    items_K: np.ndarray
    scores_K: np.ndarray
    codes_BL: np.ndarray
    beam_scores_B: np.ndarray
    legal_B: np.ndarray

    @staticmethod
    def from_leaves(
        trie: SidTrie, leaves_B: np.ndarray, scores_B: np.ndarray, item_filter: ItemFilter | None = None
    ) -> "Ranking":
        """Expand leaves in rank order into items: most frequent in train first, filtered ones dropped."""
        sizes = trie.leaf_size_M[leaves_B]
        offsets = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        first = leaves_B + np.searchsorted(trie.extra_X, leaves_B)
        items = trie.leaf_items_V[np.repeat(first, sizes) + offsets].astype(np.int64)
        scores = np.repeat(scores_B, sizes)
        if item_filter is not None:
            kept = item_filter.keeps(items)
            items, scores = items[kept], scores[kept]
        legal = np.ones(len(leaves_B), dtype=bool)
        return Ranking(
            items, scores.astype(np.float32), trie.codes_ML[leaves_B], scores_B.astype(np.float32), legal
        )
