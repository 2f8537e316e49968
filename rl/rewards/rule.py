"""`rule`: 1 for the target's SID, 0 for anything else (MiniOneRec's rule reward)."""

import numpy as np

from rl.rewards.completions import Completions


def reward(completions: Completions) -> np.ndarray:
    """r = 1[hit], float64 [C]."""
    return completions.hit_C.astype(np.float64)
