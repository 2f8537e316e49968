"""Ranking metrics against scikit-learn and hand-made cases."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from serve.evaluation.metrics import (
    CUTOFFS,
    RankedCases,
    bootstrap_means,
    gains,
    head_items,
    hits,
    interval,
    metrics_of_ranks,
    slices_of,
)


@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_ndcg_is_scikit_learns(cutoff):
    rng = np.random.default_rng(cutoff)
    scores = rng.normal(size=(200, 80))
    targets = rng.integers(0, 80, 200)
    rank = 1 + (scores > scores[np.arange(200), targets][:, None]).sum(axis=1)
    relevance = np.eye(80)[targets]
    assert metrics_of_ranks(rank)[f"ndcg@{cutoff}"] == pytest.approx(ndcg_score(relevance, scores, k=cutoff))
    assert metrics_of_ranks(rank)[f"hr@{cutoff}"] == pytest.approx((rank <= cutoff).mean())


def test_a_target_that_is_not_listed_counts_as_a_miss():
    assert hits(np.array([0, 1, 5, 6]), 5).tolist() == [0, 1, 1, 0]
    assert gains(np.array([0, 1, 3]), 5).tolist() == [0.0, 1.0, 0.5]
    assert metrics_of_ranks(np.array([], dtype=np.int32)) == {}


def test_slices_by_train_count():
    counts = np.array([9, 0, 5, 5, 1, 1, 1, 1, 1, 1])
    assert np.flatnonzero(head_items(counts)).tolist() == [0, 2]  # 20 % of ten items, ties by item_index
    masks = slices_of(np.array([0, 1, 2, 3, -1]), counts)
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "cold": [False, True, False, False, True],
        "warm": [True, False, True, True, False],
        "head": [True, False, True, False, False],
        "tail": [False, False, False, True, False],
    }
    assert not head_items(np.zeros(5, dtype=int)).any()


def test_paired_bootstrap_covers_the_difference_and_is_tighter_than_unpaired():
    rng = np.random.default_rng(0)
    first = (rng.random(2000) < 0.3).astype(float)
    second = np.where(rng.random(2000) < 0.05, 1 - first, first)  # nearly the same cases
    samples = bootstrap_means(np.stack([first, second], axis=1), seed=1)
    low, high = interval(samples[:, 1] - samples[:, 0])
    assert low <= (second - first).mean() <= high
    expected = 2 * 1.96 * (second - first).std() / np.sqrt(2000)
    assert high - low == pytest.approx(expected, rel=0.15)
    again = bootstrap_means(np.stack([first, second], axis=1), seed=1)
    assert np.array_equal(samples, again)


def test_rates_of_ranked_cases():
    ranks = np.zeros(2, dtype=np.int32)
    covered = np.array([True, False, False, True])
    assert RankedCases(ranks, ranks, covered).invalid_rate == 0.0
    beamed = RankedCases(ranks, ranks, covered, num_beams=20, invalid_beams=5, duplicate_beams=1)
    assert (beamed.coverage, beamed.invalid_rate, beamed.duplicate_rate) == (0.5, 0.25, 0.05)
