"""What a decoder returns, which items it may return, and what is known of them beside the model."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sid_builder.errors import InputError
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


Form = Literal["linear", "log_linear"]


@dataclass(frozen=True)
class ItemPrior:
    """How likely items are by another source than the model, and how much of the answer is left to it.

    Attributes:
        items_P: int64 item indices, ascending, each once; an item that is not named has no mass.
        mass_P: float64, at least 0, in any unit: the items a request may get are normalised to 1.
        weight: from 0 (the model alone) to 1 (the prior alone).
        form: how the two are mixed (`prior_mass`).

    Raises:
        InputError: for a weight outside 0..1, a mass that is negative or no number, unsorted items.
    """

    items_P: np.ndarray
    mass_P: np.ndarray
    weight: float
    form: Form = "linear"

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise InputError(f"prior: weight {self.weight} is outside 0..1")
        if len(self.items_P) != len(self.mass_P) or (np.diff(self.items_P) <= 0).any():
            raise InputError("prior: items and masses do not pair up; give each item once, ascending")
        good = (self.mass_P >= 0) & (self.mass_P < np.inf)
        if not good.all():
            at = int(np.argmin(good))
            raise InputError(
                f"prior: item_index {self.items_P[at]} has mass {self.mass_P[at]}; give at least 0, not inf"
            )

    def mass_of(self, items: np.ndarray) -> np.ndarray:
        """Masses of any items, float64; 0 for those not named."""
        if not len(self.items_P):
            return np.zeros(len(items))
        at = np.minimum(np.searchsorted(self.items_P, items), len(self.items_P) - 1)
        return np.where(self.items_P[at] == items, self.mass_P[at], 0.0)


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
        trie: SidTrie,
        leaves_B: np.ndarray,
        scores_B: np.ndarray,
        item_filter: ItemFilter | None = None,
        prior: ItemPrior | None = None,
    ) -> "Ranking":
        """Expand leaves in rank order into items, filtered ones dropped.

        Items of one SID: by the prior's mass if there is one, then most frequent in train first.
        """
        beam_K, items = trie.items_of_leaves(leaves_B)
        if prior is not None and len(items) > len(leaves_B):
            order = np.lexsort((-prior.mass_of(items), beam_K))  # stable
            items = items[order]
        scores = scores_B[beam_K]
        if item_filter is not None:
            kept = item_filter.keeps(items)
            items, scores = items[kept], scores[kept]
        legal = np.ones(len(leaves_B), dtype=bool)
        return Ranking(
            items, scores.astype(np.float32), trie.codes_ML[leaves_B], scores_B.astype(np.float32), legal
        )
