"""`popularity`: items by how often train has them, so that being popular alone is no reason to be listed."""

from dataclasses import dataclass, field

import numpy as np

from rl.negatives.weighted import WeightedNegatives
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class PopularityOptions:
    """How steep."""

    power: float = field(
        default=1.0, metadata={"help": "items are drawn by (train count) ** power; word2vec takes 0.75"}
    )

    def check(self, prefix: str) -> None:
        """InputError for a power that gives no weights."""
        if not 0 < self.power <= 10:
            raise InputError(f"{prefix}.power: {self.power}; give a number above 0, at most 10")


class PopularNegatives(WeightedNegatives):
    """By train count; an item that train does not have is never drawn."""

    def __init__(self, options: PopularityOptions, index: SidIndex, interactions: Interactions) -> None:
        weights_N = np.asarray(index.train_counts_N, dtype=np.float64) ** options.power
        super().__init__("popularity", weights_N, index.trie)
