"""Advantages of sets of completions: what a list is worth is its best member, not the mean over them.

GREAM's and "pass@k training"'s formula (Chen et al., 2025): draw sets of k from a group of G completions of
which c are hits. A set earns 1 if a hit is in it, on average r = 1 - C(G - c, k) / C(G, k), with deviation
s = sqrt(r (1 - r)). A completion's advantage is (earnings - r) / (s + 1e-6) averaged over the sets it is in:
all of a hit's earn, and 1 - C(G - c - 1, k - 1) / C(G - 1, k - 1) of another's. So hits beyond what most
sets need anyway earn little: the gradient goes to prompts with few.

Legend: B groups, G completions of each.
"""

from math import comb

import numpy as np


def pass_at_k(hit_BG: np.ndarray, k: int) -> np.ndarray:
    """Advantage of every completion, float64 [B, G]; 0 in groups whose sets all earn the same.

    Args:
        hit_BG: bool; which completions are hits.
        k: completions in a set, 1 to G.
    """
    size = hit_BG.shape[1]
    assert 1 <= k <= size
    other_c, hit_c = np.zeros(size + 1), np.zeros(size + 1)
    for hits in range(1, size - k + 1):  # with fewer than k misses, no set is without a hit
        earned = 1 - comb(size - hits, k) / comb(size, k)
        others = 1 - comb(size - hits - 1, k - 1) / comb(size - 1, k - 1)
        deviation = (earned * (1 - earned)) ** 0.5 + 1e-6
        hit_c[hits], other_c[hits] = (1 - earned) / deviation, (others - earned) / deviation
    count_B1 = hit_BG.sum(axis=1, keepdims=True)
    return np.where(hit_BG, hit_c[count_B1], other_c[count_B1])
