"""The most popular items, in proportion to their train counts: the same prior for everybody.

Legend: B histories, N items, K most popular items.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class PopularityOptions:
    """How far down the list goes."""

    popular_items: int = field(default=300, metadata={"help": "Items with mass, the most frequent ones."})

    def check(self, prefix: str) -> None:
        """InputError for a list of no items."""
        if self.popular_items < 1:
            raise InputError(f"{prefix}.popular_items: {self.popular_items}; give at least 1")


class PopularityPrior:
    """mass(y) = share of y among train's interactions."""

    adds = True

    def __init__(self, options: PopularityOptions, index: SidIndex) -> None:
        self.popular_items = options.popular_items
        self.take(np.zeros(index.catalog.num_items, dtype=np.int64))

    def take(self, counts_N: np.ndarray) -> None:
        """Take int64 train counts, and find the K most popular items (ties by item_index) once for all."""
        self.counts_N = counts_N
        order = np.argsort(-counts_N, kind="stable")[: self.popular_items]
        self.items_K = np.sort(order[counts_N[order] > 0])
        self.share_K = counts_N[self.items_K] / max(int(counts_N.sum()), 1)

    def learn(self, train: Interactions) -> None:
        self.take(self.counts_N + train.train_counts(len(self.counts_N)))

    def masses(self, histories: list[np.ndarray]) -> sp.csr_matrix:
        rows = len(histories)
        indptr = np.arange(rows + 1) * len(self.items_K)
        return sp.csr_matrix(
            (np.tile(self.share_K, rows), np.tile(self.items_K, rows), indptr), (rows, len(self.counts_N))
        )

    def save(self, directory: Path) -> None:
        np.save(directory / "train_counts.npy", self.counts_N)

    def load(self, directory: Path) -> None:
        self.take(np.load(directory / "train_counts.npy", allow_pickle=False))
