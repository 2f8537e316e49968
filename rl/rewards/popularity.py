"""`popularity`: a penalty that grows with the logarithm of how often train saw the item.

Its strength is its weight in `rewards`. Negative reward, so that it stays a penalty whatever it is added to.
"""

from dataclasses import dataclass, field

import numpy as np

from rl.rewards.completions import Completions
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class PopularityOptions:
    """The shape of the penalty."""

    exponent: float = field(
        default=1.0, metadata={"help": "Of the log-popularity in 0..1; above 1 spares all but the head."}
    )

    def check(self, prefix: str) -> None:
        """InputError for an exponent that is not above 0."""
        if not 0 < self.exponent < float("inf"):
            raise InputError(f"{prefix}.exponent: {self.exponent} is not above 0; give 1, say")


class PopularityReward:
    """-(log(1 + n) / log(1 + max n))^exponent of an item that n train interactions are with."""

    def __init__(self, options: PopularityOptions, index: SidIndex, train: Interactions) -> None:
        log_N = np.log1p(train.train_counts(index.catalog.num_items))
        if log_N.max() == 0:
            raise InputError("rewards: 'popularity' needs train interactions, and there are none; drop it")
        self.penalty_N = (log_N / log_N.max()) ** options.exponent

    def __call__(self, completions: Completions) -> np.ndarray:
        """Float64 [C] in -1..0, the mean over the items of the SID; -1 for what is no item's SID."""
        _, item_P = completions.items
        return completions.mean_of_items(-self.penalty_N[item_P], otherwise=-1.0)
