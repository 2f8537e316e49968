"""pass@k advantages against the enumeration of all sets."""

from itertools import combinations

import numpy as np
import pytest

from rl.advantages import pass_at_k


def by_enumeration(hit_G: np.ndarray, k: int) -> np.ndarray:
    sets = list(combinations(range(len(hit_G)), k))
    earned = np.array([float(hit_G[list(members)].any()) for members in sets])
    standard = (earned - earned.mean()) / (earned.std() + 1e-6)
    return np.array(
        [
            np.mean([value for value, members in zip(standard, sets, strict=True) if row in members])
            for row in range(len(hit_G))
        ]
    )


@pytest.mark.parametrize("size", [2, 3, 5, 6, 8])
def test_every_group_and_every_k_against_all_sets(size):
    groups = (np.arange(2**size)[:, None] >> np.arange(size)) & 1
    hit_BG = groups.astype(bool)
    for k in range(1, size + 1):
        expected = np.stack([by_enumeration(hit_G, k) for hit_G in hit_BG])
        np.testing.assert_allclose(pass_at_k(hit_BG, k), expected, atol=1e-9)


def test_by_hand():
    # 1 hit of 4, sets of 2: 3 of 6 sets earn, so r = s = 1/2. A miss is in 3 sets, of which 1 earns.
    hit_BG = np.array([[False, True, False, False], [False] * 4, [True] * 4, [True, True, True, False]])
    expected = np.zeros((4, 4))
    expected[0] = (1 / 3 - 1 / 2) / (1 / 2 + 1e-6)
    expected[0, 1] = (1 - 1 / 2) / (1 / 2 + 1e-6)
    np.testing.assert_allclose(pass_at_k(hit_BG, 2), expected)


def test_k_1_is_the_standard_score_of_a_hit_and_means_are_zero():
    hit_BG = np.random.default_rng(0).random((50, 16)) < 0.2
    mean, deviation = hit_BG.mean(axis=1, keepdims=True), hit_BG.std(axis=1, keepdims=True)
    np.testing.assert_allclose(pass_at_k(hit_BG, 1), (hit_BG - mean) / (deviation + 1e-6), atol=1e-9)
    for k in (2, 4, 15):
        np.testing.assert_allclose(pass_at_k(hit_BG, k).mean(axis=1), 0, atol=1e-9)


def test_few_hits_are_worth_more_than_many():
    hit_BG = np.arange(16) < np.array([[1], [2], [4], [8]])
    of_a_hit = pass_at_k(hit_BG, 4)[:, 0]
    assert (np.diff(of_a_hit) < 0).all()
