"""What becomes of candidates, by hand: selection, order, ranks, and which groups are idle."""

import numpy as np
import pytest

from rl.rollout_groups import Group, are_idle, beside


def group_of(*leaves, scores=None):
    return Group(np.array(leaves), np.array(scores or [-leaf for leaf in leaves], dtype=np.float32))


@pytest.mark.parametrize(
    ("candidates", "selected"),
    [
        ((4, 2, 9, 7, 5), [4, 2, 9]),  # without a hit: in the order they came
        ((4, 2, 9, 7, 1), [1, 4, 2]),  # a hit before all others
        ((4, 4, 9, 4, 1), [1, 4, 9]),  # distinct ones before repeats
        ((4, 4, 1, 1, 1), [1, 4, 4]),  # one hit is enough: repeats in the order they came
        ((1, 1, 1, 1, 1), [1, 1, 1]),
    ],
)
def test_selection_by_hand(candidates, selected):
    assert group_of(*candidates).select(3, truth=1).leaves_G.tolist() == selected


def test_ranks_and_order_by_hand():
    group = group_of(7, 3, 5, 3, 9, scores=[-2, -1, -2, -1, -0.5]).ordered()
    assert group.leaves_G.tolist() == [9, 3, 3, 5, 7]
    assert group.ranks().tolist() == [0, 1, 1, 2, 3]


def test_a_beam_is_left_out_of_its_draws_by_hand():
    mixed = beside(group_of(4, 2), group_of(2, 8, 4, 6, 5), 2)
    assert mixed.leaves_G.tolist() == [4, 2, 8, 6] and mixed.scores_G.tolist() == [-4, -2, -8, -6]


def test_idle_groups_by_hand():
    rewards = np.array([[0, 1], [0, 1], [1, 0], [0, 1], [1, 1], [1, 1]], dtype=np.float32)
    ones = np.ones(2, dtype=np.float32)
    assert are_idle(rewards, ones, 2, "sum_then_normalize").tolist() == [True, True, True]
    assert are_idle(rewards, ones, 2, "normalize_then_sum").tolist() == [True, False, True]
    assert are_idle(rewards, np.float32([1, 2]), 2, "sum_then_normalize").tolist() == [True, False, True]
