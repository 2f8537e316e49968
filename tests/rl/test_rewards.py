"""The conformance suite every reward in rl.REWARDS must pass, and the formulas of the two."""

import numpy as np
import pytest

from rl import REWARDS
from rl.rewards.completions import BoundReward, Completions, checked
from rl.rewards.ranking import discounts
from sid_builder.errors import InputError
from sid_builder.registry import resolve
from tests.builders import make_index

G = 4


@pytest.fixture(scope="module")
def index():
    codes = np.array([(a, b, 0) for a in range(4) for b in range(4)] + [(0, 1, 0)])
    return make_index(codes, (4, 4, 4))  # item 16 shares the SID of item 1


@pytest.fixture
def completions(index) -> Completions:
    """Three groups: the hit at rank 2, no hit at all, the hit first (through an item that shares its SID)."""
    items = np.array([[5, 6, 7, 8], [9, 10, 11, 12], [1, 2, 3, 4]]).ravel()
    return Completions(
        codes_CL=index.semantic_ids.codes_NL[items],
        target_item_C=np.repeat([7, 0, 16], G),
        rank_C=np.tile(np.arange(G), 3),
        group_C=np.repeat([0, 1, 2], G),
        score_C=np.tile([-1.0, -1.5, -3.0, -9.0], 3),
        index=index,
    )


def rows_of(completions: Completions, rows: np.ndarray) -> Completions:
    return Completions(
        completions.codes_CL[rows],
        completions.target_item_C[rows],
        completions.rank_C[rows],
        completions.group_C[rows],
        completions.score_C[rows],
        completions.index,
    )


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_one_finite_value_per_completion(name, completions):
    values = resolve(REWARDS, name, "rewards")(completions)
    assert values.shape == (3 * G,)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_does_not_depend_on_other_groups_or_on_row_order(name, completions):
    reward = resolve(REWARDS, name, "rewards")
    values = reward(completions)
    shuffled = np.random.default_rng(0).permutation(3 * G)
    np.testing.assert_allclose(reward(rows_of(completions, shuffled)), values[shuffled])
    for group in range(3):
        alone = np.flatnonzero(completions.group_C == group)
        np.testing.assert_allclose(reward(rows_of(completions, alone)), values[alone])


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_the_truth_earns_most(name, completions):
    values = resolve(REWARDS, name, "rewards")(completions)
    hit = completions.hit_C
    assert values[hit].min() > values[~hit].max()


def test_rule_is_an_indicator_at_sid_level(completions):
    values = resolve(REWARDS, "rule", "rewards")(completions)
    assert values.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0]


def test_ranking_follows_the_formula(completions):
    raw = 1 / np.log2(np.arange(G) + 2)
    w = raw / raw.sum()
    expected = [-w[0], -w[1], 1, -w[3], 0, 0, 0, 0, 1, -w[1], -w[2], -w[3]]
    np.testing.assert_allclose(resolve(REWARDS, "ranking", "rewards")(completions), expected)


def test_discounts_for_sixteen_beams_are_minionerecs():
    np.testing.assert_allclose(discounts(16)[[0, 1, 2, 15]], [0.1638, 0.1033, 0.0819, 0.0401], atol=1e-4)


def test_lambda_ndcg_is_what_a_swap_would_do_where_scores_are_near(completions):
    values = resolve(REWARDS, "lambda_ndcg", "rewards")(completions)
    gain = 1 / np.log2(np.arange(G) + 2)
    near = 1 / (1 + np.exp(np.array([-2.0, -1.5, 0.0, 6.0])))  # s_hit - s_i, the hit at rank 2
    expected = -np.abs(gain[2] - gain) * near
    expected[2] = -expected.sum()
    np.testing.assert_allclose(values[:G], expected)
    assert (values[G : 2 * G] == 0).all()
    np.testing.assert_allclose(values.reshape(3, G).sum(axis=1), 0, atol=1e-12)


def test_bound_reward_reads_token_ids_and_its_own_row(small_index, recommender):
    template = recommender.template
    reward = BoundReward("rule", resolve(REWARDS, "rule", "rewards"), small_index, template.vocabulary)
    ids = [template.sid_ids[item] for item in (10, 20)]
    # The same two completions for two targets: what counts is the row's own target.
    assert reward(ids * 2, [10, 10, 20, 20], [0, 1] * 2, [0, 0, 1, 1], [-1.0, -2.0] * 2) == [1, 0, 0, 1]
    assert reward([[0, 1, 2]], [10], [0], [0], [-1.0]) == [0.0]  # tokens that are no SID


@pytest.mark.parametrize("values", [[1.0, float("nan")], [1.0], [[1.0, 2.0]]])
def test_a_reward_that_returns_something_else_is_named(values):
    with pytest.raises(InputError, match="rewards: 'mine' returned"):
        checked("mine", values, 2)
