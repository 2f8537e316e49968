"""`ranking_only`: beside a hit, a miss costs more the higher the beam placed it (MiniOneRec's)."""

import numpy as np

from rl.rewards.completions import Completions


def discounts(group_size: int) -> np.ndarray:
    """w_i = (1 / log2(i + 2)) / sum_j 1 / log2(j + 2) for beam ranks i = 0..G-1; sums to 1."""
    weights = 1.0 / np.log2(np.arange(group_size) + 2.0)
    return weights / weights.sum()


def reward(completions: Completions) -> np.ndarray:
    """-w_i for every miss of a group with a hit, 0 for the hit and in groups without one. Float64 [C].

    i is the place among the group's distinct SIDs, so copies of a miss cost the same; what is no item's SID
    is a miss behind all others.
    """
    size_C = completions.group_size_C()
    weight_C = np.zeros(len(completions))
    for size in np.unique(size_C):
        rows = size_C == size
        weight_C[rows] = discounts(int(size))[completions.place_C[rows]]
    penalised_C = completions.any_in_group(completions.hit_C) & ~completions.hit_C
    return np.where(penalised_C, -weight_C, 0.0)
