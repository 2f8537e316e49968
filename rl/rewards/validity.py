"""`validity`: 1 for the SID of an item on the shelf, 0 for anything else. All 1 under a trie."""

import numpy as np

from rl.rewards.completions import Completions


def reward(completions: Completions) -> np.ndarray:
    """1[some item that was not removed has the SID], float64 [C]."""
    return (completions.leaf_C >= 0).astype(np.float64)
