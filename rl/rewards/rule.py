"""`rule`: 1 for an SID of the target item, 0 for anything else (MiniOneRec's rule reward)."""

import numpy as np

from rl.rewards.completions import Completions


def reward(completions: Completions) -> np.ndarray:
    """r = 1[hit], float64 [C]. Every copy of a hit earns it, whatever else shares its SID."""
    return completions.hit_C.astype(np.float64)
