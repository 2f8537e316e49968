"""`prefix`: credit for every level up to the first wrong code.

rewards: {prefix: 1.0}
reward_args: {prefix: {weights: [0.5, 0.207, 0.159, 0.084, 0.05]}}   # GREAM's 0, .5, .707, .866, .95, 1
"""

from dataclasses import dataclass, field

import numpy as np

from rl.rewards.completions import Completions
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class PrefixOptions:
    """What a level is worth."""

    weights: list[float] | None = field(
        default=None, metadata={"help": "One per level, divided by their sum; none: all levels alike."}
    )

    def check(self, prefix: str) -> None:
        """InputError for weights that are not above 0 together, or one below 0."""
        weights = np.array([1.0] if self.weights is None else self.weights)
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise InputError(
                f"{prefix}.weights: {self.weights}; give numbers of at least 0, one of them above"
            )


class PrefixReward:
    """Sum of the weights of the levels before the first code that differs from the target's."""

    def __init__(self, options: PrefixOptions, index: SidIndex, train: Interactions) -> None:
        depth = index.semantic_ids.depth
        weights = options.weights if options.weights is not None else [1.0] * depth
        if len(weights) != depth:
            raise InputError(
                f"reward_args.prefix.weights: {len(weights)} of them, and SIDs have {depth} levels; "
                "give one per level"
            )
        self.weights_L = np.array(weights) / np.sum(weights)

    def __call__(self, completions: Completions) -> np.ndarray:
        """Float64 [C] in 0..1: 1 for a hit, 0 for a wrong first code and for what spells no path.

        The end of a short SID counts as a code of every level it does not have.
        """
        same_CL = completions.codes_CL == completions.target_codes_CL
        return np.logical_and.accumulate(same_CL, axis=1) @ self.weights_L
