"""`random`: any item on the shelf, all equally likely, that is neither the answer nor in the history."""

from dataclasses import dataclass

import numpy as np

from rl.negatives.weighted import WeightedNegatives
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class RandomOptions:
    """There are none."""


class RandomNegatives(WeightedNegatives):
    """Uniform over the items on the shelf."""

    def __init__(self, options: RandomOptions, index: SidIndex, interactions: Interactions) -> None:
        super().__init__("random", np.ones(index.trie.num_items), index.trie)
