"""`format`: 1 for tokens that spell a path of codes to its end, 0 for anything else. All 1 under a trie."""

import numpy as np

from rl.rewards.completions import Completions


def reward(completions: Completions) -> np.ndarray:
    """1[one code of every level in order, or the shorter SID of an item], float64 [C].

    Whether an item has this SID is asked by `validity`.
    """
    full_C = completions.codes_CL[:, -1] >= 0
    return (full_C | (completions.leaf_C >= 0)).astype(np.float64)
