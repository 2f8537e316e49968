"""`ranking`: a hit earns 1, a miss beside it costs more the higher the beam placed it (MiniOneRec's)."""

import numpy as np

from rl.rewards import ranking_only, rule
from rl.rewards.completions import Completions


def reward(completions: Completions) -> np.ndarray:
    """`rule` + `ranking_only`, float64 [C]; groups without a hit get 0 throughout."""
    return rule.reward(completions) + ranking_only.reward(completions)
