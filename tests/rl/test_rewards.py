"""The conformance suite every reward in rl.REWARDS must pass, and the adapter to TRL."""

import numpy as np
import pytest

from rl import REWARDS
from rl.rewards.completions import BoundReward, checked, codes_of
from rl.rewards.rule import reward as rule
from sid_builder.errors import InputError
from tests.rl.reward_cases import NO_PATH, NO_SID, G, make_completions, make_index, make_reward, rows_of

NAMES = sorted(REWARDS)
CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # SASRec is float32, and its batches differ
# What spells no SID of an item earns beside misses. A new reward says so here.
NOT_AN_ITEM = {
    "rule": 0,
    "ranking": 0,
    "ranking_only": 0,
    "beam_rank": 0,
    "lambda_ndcg": 0,
    "prefix": 0,
    "semantic": -1,
    "collaborative": 0,
    "popularity": -1,
    "business": 0.5 * 4 / 17,  # the lowest rank there is, of the four items with margin 0
    "format": 0,
    "validity": 0,
}


@pytest.fixture(scope="module")
def index():
    return make_index()


@pytest.fixture(scope="module")
def rewards(index, tmp_path_factory):
    return {name: make_reward(name, index, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture
def completions(index):
    """The hit at rank 2; none; first, by an item that shares its SID; draws with copies; copies of the hit
    alone, all of rank 0; and what is no item beside a hit.
    """
    items = [
        [5, 6, 7, 8],
        [9, 10, 11, 12],
        [1, 2, 3, 4],
        [13, 7, 13, NO_PATH],
        [15] * G,
        [NO_SID, 3, 2, NO_PATH],
    ]
    ranks = [0, 1, 2, 3] * 3 + [0, 1, 2, 3] + [0] * G + [0, 0, 1, 1]
    scores = [-1.0, -1.5, -3.0, -9.0] * 3 + [-1.0, -2.0, -1.0, -3.0] + [-2.0] * G + [-4.0, -1.0, -2.0, -3.0]
    return make_completions(index, items, [7, 0, 16, 7, 15, 2], rank=ranks, score=scores)


@pytest.mark.parametrize("name", NAMES)
def test_one_finite_value_per_completion(name, rewards, completions):
    values = rewards[name](completions)
    assert values.shape == (len(completions),) and values.dtype == np.float64
    assert np.isfinite(values).all()


@pytest.mark.parametrize("name", NAMES)
def test_does_not_depend_on_other_groups_or_on_row_order(name, rewards, completions):
    values = rewards[name](completions)
    shuffled = np.random.default_rng(0).permutation(len(completions))
    np.testing.assert_allclose(rewards[name](rows_of(completions, shuffled)), values[shuffled], **CLOSE)
    for group in range(6):
        alone = np.flatnonzero(completions.group_C == group)
        np.testing.assert_allclose(rewards[name](rows_of(completions, alone)), values[alone], **CLOSE)
    # Group numbers are names: others, in another order, with gaps.
    renamed = rows_of(completions, np.arange(len(completions)))
    renamed.group_C[:] = np.array([900, -5, 7, 31, 2, 0])[completions.group_C]
    np.testing.assert_allclose(rewards[name](renamed), values, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_copies_of_an_sid_earn_the_same(name, rewards, completions):
    values = rewards[name](completions)
    assert values[3 * G] == values[3 * G + 2]
    assert len(set(values[4 * G : 5 * G])) == 1


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_item_earns_what_is_documented(name, rewards, index):
    beside_misses = make_completions(index, [[9, NO_PATH, 10, NO_PATH], [NO_PATH] * G], [0, 0])
    values = rewards[name](beside_misses)
    np.testing.assert_allclose(values[[1, 3, *range(G, 2 * G)]], NOT_AN_ITEM[name])
    # The removed item's SID is a path of codes, and that of nothing on the shelf.
    removed = rewards[name](make_completions(index, [[9, 17, 10, NO_SID]], [0]))
    if name == "prefix":
        assert removed.tolist() == [0, 0, 0, 0]
    else:
        np.testing.assert_allclose(removed[[1, 3]], 1 if name == "format" else NOT_AN_ITEM[name])


@pytest.mark.parametrize("name", NAMES)
def test_one_completion_and_one_group(name, rewards, index):
    for item in (5, 0, NO_PATH):
        assert np.isfinite(rewards[name](make_completions(index, [[item]], [5]))).all()


@pytest.mark.parametrize("name", ["rule", "ranking", "ranking_only", "beam_rank", "lambda_ndcg", "prefix"])
def test_the_truth_earns_most(name, rewards, completions):
    values, hit = rewards[name](completions), completions.hit_C
    assert hit.sum() == 8
    for group in (0, 2, 3, 5):
        of_group = completions.group_C == group
        assert values[of_group & hit].min() > values[of_group & ~hit].max()


def test_truth_is_an_item(index):
    """An SID is a hit for each of its items, and for none that was removed."""
    shared = make_completions(index, [[1, 2], [16, 2], [17, 15]], [16, 1, 17])
    assert shared.hit_C.tolist() == [True, False, True, False, False, False]


def test_places_follow_rank_then_score_and_skip_copies(index):
    given = make_completions(
        index,
        [[5, 6, 7, 8], [5, 6, 5, 7], [NO_PATH, 5, NO_SID, 6], [5, 6, 7, 7]],
        [0] * 4,
        rank=[3, 0, 1, 7] + [0, 0, 0, 0] + [0, 1, 2, 3] + [0, 1, 2, 1],
        score=[0, 0, 0, 0] + [-3, -2, -3, -1] + [0, 0, 0, 0] + [0, 0, 0, 1],
    )
    expected = [[2, 0, 1, 3], [2, 1, 2, 0], [2, 0, 2, 1], [0, 2, 1, 1]]
    assert given.place_C.reshape(4, 4).tolist() == expected
    assert given.copies_C.reshape(4, 4).tolist() == [[1] * 4, [2, 1, 2, 1], [2, 1, 2, 1], [1, 1, 2, 2]]


def test_bound_reward_reads_token_ids_and_its_own_row(small_index, recommender):
    template = recommender.template
    reward = BoundReward("rule", rule, small_index, template.vocabulary)
    ids = [template.sid_ids[item] for item in (10, 20)]
    # The same two completions for two targets: what counts is the row's own target.
    columns = [0, 1] * 2, [0, 0, 1, 1], [-1.0, -2.0] * 2, [[3]] * 4
    assert reward(ids * 2, [10, 10, 20, 20], *columns) == [1, 0, 0, 1]
    assert reward([[0, 1, 2]], [10], [0], [0], [-1.0], [[3]]) == [0.0]  # tokens that are no SID


def test_token_ids_become_codes_as_the_vocabulary_reads_them(small_index, recommender):
    vocabulary = recommender.template.vocabulary
    rng = np.random.default_rng(0)
    rows = [vocabulary.encode(codes) for codes in small_index.semantic_ids.codes_NL[:50]]
    rows += [row[:length] for row in rows[:6] for length in (0, 1, 2)]
    rows += [[*row, row[0]] for row in rows[:3]] + [row[::-1] for row in rows[:3]]
    rows += rng.integers(0, vocabulary.all_ids.max() + 50, (200, 3)).tolist() + [[-1, -1, -1]]
    codes = codes_of(rows, vocabulary)
    assert codes.dtype == np.int32
    for row, ids in zip(codes, rows, strict=True):
        read = vocabulary.decode(ids) or ()
        assert row.tolist() == [*read, *[-1] * (3 - len(read))]


@pytest.mark.parametrize("values", [[1.0, float("nan")], [1.0], [[1.0, 2.0]], [1.0, float("inf")]])
def test_a_reward_that_returns_something_else_is_named(values):
    with pytest.raises(InputError, match="rewards: 'mine' returned"):
        checked("mine", values, 2)
