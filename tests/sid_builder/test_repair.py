"""Repair: no collision where capacity allows, balanced where it does not, nothing else touched."""

import itertools

import numpy as np
import pytest

from sid_builder.errors import InputError
from sid_builder.repair import assign_last_codes, repair_codes

LAST_SIZE = 6


@pytest.fixture
def crowded():
    """Codes of 60 items under 9 prefixes with many collisions, and each item's distance to the last codes."""
    rng = np.random.default_rng(5)
    codes_NL = rng.integers(0, 3, (60, 3)).astype(np.int32)
    codes_NL[:, 2] = rng.integers(0, LAST_SIZE, 60)
    distance_NK = rng.random((60, LAST_SIZE)).astype(np.float32)
    return codes_NL, lambda items: distance_NK[items]


def test_none_changes_nothing(crowded):
    codes_NL, distances = crowded
    same_NL, stats = repair_codes("none", codes_NL, LAST_SIZE, distances)
    np.testing.assert_array_equal(same_NL, codes_NL)
    assert stats.items_moved == 0


def test_each_prefix_repeats_as_little_as_possible(crowded):
    codes_NL, distances = crowded
    repaired_NL, stats = repair_codes("last_level_assign", codes_NL, LAST_SIZE, distances)
    np.testing.assert_array_equal(repaired_NL[:, :2], codes_NL[:, :2])
    over = 0
    for prefix in itertools.product(range(3), repeat=2):
        group = (codes_NL[:, :2] == prefix).all(axis=1)
        counts = np.bincount(repaired_NL[group, 2], minlength=LAST_SIZE)
        if group.sum() <= LAST_SIZE:
            assert counts.max(initial=0) <= 1
        else:
            over += 1
            assert counts.max() - counts.min() <= 1
        if len(np.unique(codes_NL[group, 2])) == group.sum():
            np.testing.assert_array_equal(repaired_NL[group], codes_NL[group])
    assert stats.groups_over_capacity == over > 0
    assert stats.items_moved == (repaired_NL != codes_NL).any(axis=1).sum()


def test_repair_is_deterministic(crowded):
    codes_NL, distances = crowded
    first, again = (repair_codes("last_level_assign", codes_NL, LAST_SIZE, distances)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_the_assignment_is_the_cheapest():
    distance_GK = np.random.default_rng(1).random((4, 6))
    chosen = assign_last_codes(distance_GK, 6)
    best = min(itertools.permutations(range(6), 4), key=lambda codes: distance_GK[range(4), codes].sum())
    assert chosen.tolist() == list(best)


def test_identical_items_get_different_codes():
    codes = assign_last_codes(np.tile(np.array([[0.0, 1.0, 2.0, 3.0]]), (4, 1)), 4)
    assert sorted(codes.tolist()) == [0, 1, 2, 3]


def test_what_cannot_be_repaired_is_named(crowded):
    codes_NL, distances = crowded
    with pytest.raises(InputError, match="repair: 'sinkhorn' is not one of"):
        repair_codes("sinkhorn", codes_NL, LAST_SIZE, distances)
    with pytest.raises(InputError, match="needs a quantizer with residual distances; use repair: none"):
        repair_codes("last_level_assign", codes_NL, LAST_SIZE, None)
