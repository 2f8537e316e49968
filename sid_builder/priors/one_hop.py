"""Transitions from the newest items of a history, smoothed, and the most popular items behind them.

    mass(y) = sum_d w_d C[x_d, y] / (sum_y C[x_d, y] + smoothing) + popular_weight * train share of y

with x_d the item d steps back and C[x, y] = sum_d w_d times how often y was train's target d after x. With
the defaults this is the one-hop floor that every table of `serve.evaluate` shows.

Legend: B histories, N items, D distances, S newest items of all histories, R pairs behind them.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.priors.popularity import PopularityOptions, PopularityPrior
from sid_builder.priors.transitions import TransitionCounts
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class OneHopOptions:
    """The floor's values by default (PROTOCOL's; they were set once, not tuned)."""

    hop_weights: list[float] = field(
        default_factory=lambda: [1.0, 0.5, 0.25, 0.12],
        metadata={"help": "Weight of the last item, the one before it, ...: as many items are looked at."},
    )
    smoothing: float = field(
        default=5.0, metadata={"help": "Added to an item's transitions: the fewer, the less they say."}
    )
    popular_items: int = field(default=300, metadata={"help": "Most frequent items, which have mass always."})
    popular_weight: float = field(default=0.5, metadata={"help": "Weight of their train shares."})

    def check(self, prefix: str) -> None:
        """InputError for weights below 0, or none at all."""
        if not self.hop_weights or min(self.hop_weights) < 0:
            raise InputError(f"{prefix}.hop_weights: {self.hop_weights}; give one or more, at least 0")
        for name in ("smoothing", "popular_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"{prefix}.{name}: {getattr(self, name)}; give at least 0")
        PopularityOptions(self.popular_items).check(prefix)


class OneHopPrior:
    """The masses above; only counts are stored, so options may change without counting anew."""

    adds = True

    def __init__(self, options: OneHopOptions, index: SidIndex) -> None:
        self.options = options
        self.weights_D = np.array(options.hop_weights)
        self.num_items = index.catalog.num_items
        self.popularity = PopularityPrior(PopularityOptions(options.popular_items), index)
        self.transitions: TransitionCounts | None = None

    def learn(self, train: Interactions) -> None:
        counted = TransitionCounts.count(train, self.num_items, len(self.weights_D))
        self.transitions = counted if self.transitions is None else self.transitions.plus(counted)
        self.popularity.learn(train)

    def masses(self, histories: list[np.ndarray]) -> sp.csr_matrix:
        assert self.transitions is not None, "learn or load first"
        shape = (len(histories), self.num_items)
        newest = [np.asarray(history)[::-1][: len(self.weights_D)] for history in histories]
        sizes_B = [len(items) for items in newest]
        request_S = np.repeat(np.arange(len(newest)), sizes_B)
        weight_S = np.concatenate([self.weights_D[:size] for size in sizes_B] or [np.empty(0)])
        items_S = np.concatenate([*newest, np.empty(0, np.int32)]).astype(np.int64)
        row_R, target_R, counts_RD = self.transitions.after(items_S)
        value_R = counts_RD @ self.weights_D
        total_S = np.bincount(row_R, weights=value_R, minlength=len(items_S)) + self.options.smoothing
        value_R = value_R * (weight_S / np.maximum(total_S, np.finfo(float).tiny))[row_R]
        # Several newest items may lead to one target: tocsr adds them up.
        hops = sp.coo_matrix((value_R, (request_S[row_R], target_R)), shape).tocsr()
        return hops + self.options.popular_weight * self.popularity.masses(histories)

    def save(self, directory: Path) -> None:
        assert self.transitions is not None, "learn or load first"
        self.transitions.save(directory)
        self.popularity.save(directory)

    def load(self, directory: Path) -> None:
        self.transitions = TransitionCounts.load(directory)
        self.popularity.load(directory)
