"""Hand-computed values of every reward."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from rl.rewards import beam_rank, format, lambda_ndcg, ranking, ranking_only, rule, validity
from rl.rewards.building import build_reward
from rl.rewards.item_columns import normalised_by_duration, percentiles
from rl.rewards.ranking_only import discounts
from sid_builder.collaborative.sasrec import SASRec
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex
from tests.rl.reward_cases import (
    NO_PATH,
    NO_SID,
    make_completions,
    make_index,
    make_interactions,
    rows_of,
    save_sasrec,
)

GAIN = 1 / np.log2(np.arange(4) + 2)


@pytest.fixture(scope="module")
def index():
    return make_index()


@pytest.fixture(scope="module")
def train():
    return make_interactions().only_train()


def built(name: str, index: SidIndex, train: Interactions, **options):
    return build_reward(name, options, index, train)


def test_rule_and_the_two_rankings(index):
    given = make_completions(index, [[5, 6, 7, 8], [9, 10, 11, 12], [1, 2, 3, 4]], [7, 0, 16])
    w = GAIN / GAIN.sum()
    penalty = [-w[0], -w[1], 0, -w[3], 0, 0, 0, 0, 0, -w[1], -w[2], -w[3]]
    hits = [0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert rule.reward(given).tolist() == hits
    np.testing.assert_allclose(ranking_only.reward(given), penalty)
    np.testing.assert_allclose(ranking.reward(given), np.add(hits, penalty))


def test_discounts_for_sixteen_beams_are_minionerecs():
    np.testing.assert_allclose(discounts(16)[[0, 1, 2, 15]], [0.1638, 0.1033, 0.0819, 0.0401], atol=1e-4)


def test_copies_of_a_miss_pay_its_place(index):
    given = make_completions(index, [[5, 7, 5, NO_PATH]], [7], score=[-1, -2, -1, -3])
    w = GAIN / GAIN.sum()
    np.testing.assert_allclose(ranking_only.reward(given), [-w[0], 0, -w[0], -w[2]])


def test_lambda_ndcg_is_what_a_swap_would_do_where_scores_are_near(index):
    given = make_completions(index, [[5, 6, 7, 8], [9, 10, 11, 12]], [7, 0], score=[-1, -1.5, -3, -9] * 2)
    near = 1 / (1 + np.exp(np.array([-2.0, -1.5, 0.0, 6.0])))  # s_hit - s_i, the hit at rank 2
    expected = -np.abs(GAIN[2] - GAIN) * near
    expected[2] = -expected.sum()
    np.testing.assert_allclose(lambda_ndcg.reward(given), [*expected, 0, 0, 0, 0])


def test_lambda_ndcg_of_draws_is_that_of_the_distinct_sids_shared_out(index):
    distinct = make_completions(index, [[5, 7, 8]], [7], score=[-1, -2, -4])
    value = dict(zip((5, 7, 8), lambda_ndcg.reward(distinct), strict=True))
    drawn = [7, 5, 5, 8, 7, 5]
    scores = [-2, -1, -1, -4, -2, -1]
    given = make_completions(index, [drawn], [7], rank=[0] * 6, score=scores)
    values = lambda_ndcg.reward(given)
    np.testing.assert_allclose(values, [value[item] / drawn.count(item) for item in drawn])
    assert abs(values.sum()) < 1e-12
    far = make_completions(index, [[5, 7]], [7], score=[-1.0, -2000.0])
    np.testing.assert_allclose(lambda_ndcg.reward(far), [GAIN[1] - GAIN[0], GAIN[0] - GAIN[1]])


def test_beam_rank_counts_items(index):
    """Item 16 stands before item 1 in the SID they share; what the history holds is not in the list."""
    beams = [[5, 6, 7, 8], [1, 2, 3, 4], [5, 1, 3, 4], [2, 1, 3, 4], [5, 6, 7, 8]]
    given = make_completions(index, beams, [7, 1, 16, 3, 0])
    expected = np.zeros((5, 4))
    expected[[0, 1, 2, 3], [2, 0, 1, 2]] = 1 / np.log2(np.array([3, 2, 2, 4]) + 1)
    np.testing.assert_allclose(beam_rank.reward(given).reshape(5, 4), expected)
    history = [[5], [16], [5, 8], [0, 1], [5]]
    given = make_completions(index, beams, [7, 1, 16, 3, 0], history=history, exclude_history=True)
    expected[[0, 1, 2, 3], [2, 0, 1, 2]] = 1 / np.log2(np.array([2, 1, 1, 3]) + 1)
    np.testing.assert_allclose(beam_rank.reward(given).reshape(5, 4), expected)


def test_beam_rank_of_random_beams_against_lists_made_by_hand():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, (40, 3)).astype(np.int32)  # 27 SIDs at most
    counts = rng.integers(0, 4, 40)
    index = dataclasses.replace(
        make_index(),
        catalog=make_index().catalog.bare(pa.array([str(item) for item in range(40)])),
        semantic_ids=SemanticIds(codes, (3, 3, 3)),
        train_counts_N=counts,
        removed_N=None,
    )
    beams, targets, histories = rng.integers(0, 40, (50, 8)), rng.integers(0, 40, 50), []
    for target in targets:
        histories.append([item for item in rng.integers(0, 40, 6).tolist() if item != target])
    given = make_completions(index, beams.tolist(), targets.tolist(), history=histories, exclude_history=True)
    values = beam_rank.reward(given).reshape(50, 8)
    assert (values > 0).any(axis=1).sum() > 10
    for beam, target, history, row in zip(beams, targets, histories, values, strict=True):
        listed: list[int] = []
        for item in beam:
            same = np.flatnonzero((codes == codes[item]).all(axis=1))
            same = sorted(same.tolist(), key=lambda other: (-counts[other], other))
            listed += [other for other in same if other not in listed and other not in history]
        hit = (codes[beam] == codes[target]).all(axis=1)
        gain = 1 / np.log2(listed.index(target) + 2) if hit.any() else 0.0
        np.testing.assert_allclose(row, np.where(hit, gain, 0.0))


def test_prefix(index, train):
    given = make_completions(index, [[6, 5, 9, NO_PATH, NO_SID]], [6])  # 6 is (1, 2, 0), 9 is (2, 1, 0)
    np.testing.assert_allclose(built("prefix", index, train)(given), [1, 1 / 3, 0, 0, 0])
    weighted = built("prefix", index, train, weights=[1, 4, 5])
    np.testing.assert_allclose(weighted(given), [1, 0.1, 0, 0, 0])
    near = make_completions(index, [[17, 15, 12]], [15])  # the removed (3, 3, 3) is no hit, but near
    np.testing.assert_allclose(weighted(near), [0.5, 1, 0.1])


def test_semantic_is_the_mean_cosine_with_the_target_itself(index, train, tmp_path):
    vectors = np.zeros((18, 2), dtype=np.float16)
    vectors[[1, 16, 3, 4, 5]] = [[2, 0], [0, 3], [1, 1], [-5, 0], [3, 4]]
    np.save(tmp_path / "vectors.npy", vectors)
    reward = built("semantic", index, train, embeddings=str(tmp_path / "vectors.npy"))
    assert isinstance(reward.vectors_ND, np.memmap)
    # Item 1's SID is item 16's as well: (1 + 0) / 2. Item 2's zeros are like nothing.
    given = make_completions(index, [[1, 3, 4, 5, 2, NO_PATH, NO_SID]], [1])
    np.testing.assert_allclose(reward(given), [0.5, np.sqrt(0.5), -1, 0.6, 0, -1, -1])
    given = make_completions(index, [[3, 1]], [16])
    np.testing.assert_allclose(reward(given), [np.sqrt(0.5), 0.5])


def test_semantic_in_blocks_is_the_same(index, train, tmp_path, monkeypatch):
    np.save(tmp_path / "vectors.npy", np.random.default_rng(1).normal(size=(18, 5)))
    reward = built("semantic", index, train, embeddings=str(tmp_path / "vectors.npy"))
    given = make_completions(index, [[1, 3, 4, 5], [2, 9, 10, 1]], [1, 7])
    whole = reward(given)
    monkeypatch.setattr("rl.rewards.semantic.BLOCK_BYTES", 8 * 5 * 2)
    np.testing.assert_array_equal(reward(given), whole)


def test_collaborative_is_sasrecs_score_from_the_worst_to_the_best(index, train, tmp_path, monkeypatch):
    path = save_sasrec(index, tmp_path / "sasrec")
    reward = built("collaborative", index, train, sasrec=str(path), device="cpu")
    items, histories = [[1, 2, 5, 5], [3, NO_PATH, 9, 1], [7, 7, NO_SID, 7]], [[4, 2], [8], [1, 2, 3]]
    given = make_completions(index, items, [1, 3, 7], history=histories)
    scores = SASRec.load(path, index.catalog, "cpu").scores([np.array(row) for row in histories])
    scores[:, 1] = (scores[:, 1] + scores[:, 16]) / 2  # of the SID they share
    expected = []
    for row, of_group in zip(scores, items, strict=True):
        legal = np.array([row[item] for item in of_group if item >= 0])
        low, spread = legal.min(), np.ptp(legal)
        expected += [0 if item < 0 else (row[item] - low) / spread if spread else 1 for item in of_group]
    np.testing.assert_allclose(reward(given), expected, atol=1e-5)
    assert expected[6:] != expected[:6] and expected[8:] == [1, 1, 0, 1]
    monkeypatch.setattr("rl.rewards.collaborative._SCORES_AT_ONCE", 18)  # a history at a time
    np.testing.assert_allclose(reward(given), expected, atol=1e-5)
    # Bound to its row: the same completions behind other histories.
    other = make_completions(index, items, [1, 3, 7], history=[[8], [4, 2], [1, 2, 3]])
    assert not np.allclose(reward(other), expected, atol=1e-3)


def test_popularity_counts_train_alone(index, train):
    # Train saw item 1 three times and 2 once; 15 and 14 are what valid and test ask for.
    counts = train.train_counts(18)
    assert counts[[1, 2, 15, 14, 13]].tolist() == [3, 1, 0, 0, 0]
    given = make_completions(index, [[1, 2, 15, NO_PATH, NO_SID]], [2])
    half = np.log(2) / np.log(4)
    # Half of what item 1's SID shows is item 16, which nobody took.
    np.testing.assert_allclose(built("popularity", index, train)(given), [-0.5, -half, 0, -1, -1])
    np.testing.assert_allclose(
        built("popularity", index, train, exponent=2.0)(given), [-0.5, -(half**2), 0, -1, -1]
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Prices are 10 + item, of 0..16 on the shelf; 1 and 16 share an SID.
        ({"column": "price", "table": "catalog", "transform": "none"}, [13, 18.5, 10]),
        ({"column": "price", "table": "catalog", "transform": "none", "prefer": "low"}, [-13, -18.5, -26]),
        ({"column": "price", "table": "catalog"}, [3.5 / 17, (1.5 + 16.5) / 34, 0.5 / 17]),
        (
            {"column": "price", "table": "catalog", "transform": "log"},
            [np.log(14), np.log([12, 27]).mean(), np.log(11)],
        ),
        (
            {"column": "price", "table": "catalog", "transform": "zscore"},
            np.array([3 - 8, 8.5 - 8, 0 - 8]) / np.sqrt(24),
        ),
        # margin is item % 5, as text: of 0 to 4 there are 4, 4, 3, 3, 3, so item 3's rank is 13, 1's is 6.5.
        ({"column": "margin"}, [12.5 / 17, 6 / 17, 2 / 17]),
    ],
)
def test_business_columns(index, train, options, expected):
    values = built("business", index, train, **options)(make_completions(index, [[3, 1, NO_PATH]], [3]))
    np.testing.assert_allclose(values, expected)


def test_business_feedback_is_the_mean_over_train(index, train):
    """Item 1 was played 20, 40 and 25; nobody played item 16, which shares its SID, within train."""
    played = {0: 30, 1: (20 + 40 + 25) / 3, 3: 60, 4: 50, 5: 10, 7: 80}
    given = make_completions(index, [[3, 1, NO_PATH]], [3])
    for missing, value in {"mean": np.mean(list(played.values())), "lowest": 10}.items():
        reward = built("business", index, train, column="plays", transform="none", missing=missing)
        np.testing.assert_allclose(reward(given), [60, (played[1] + value) / 2, 10])


def test_percentiles_share_ranks_within_groups():
    values = np.array([3.0, 1, 3, 7, 5, 5])
    group = np.array([[0, 0, 0, 0, 1, 1], [4, 4, 4, 9, 4, 4]])
    expected = [2 / 3, 0.5 / 3, 2 / 3, 0.5, 0.5, 0.5]
    np.testing.assert_allclose(percentiles(values, group), expected)


def test_duration_normalised_feedback_no_longer_follows_duration():
    """OneRec-V2's check: long items are played longer, and that says nothing about who likes them."""
    rng = np.random.default_rng(0)
    users, plays = 150, 100
    seconds_N = np.exp(rng.normal(4, 1, 400))
    liking_N = rng.random(400)
    items = [rng.integers(0, 400, plays).astype(np.int32) for _ in range(users)]
    flat = np.concatenate(items)
    duration = seconds_N[flat]
    played = duration * (0.5 * liking_N[flat] + 0.5 * rng.random(len(flat)))
    log = Interactions.leave_one_out([str(user) for user in range(users)], items)
    values = normalised_by_duration(played, duration, log)
    assert (values > 0).all() and (values < 1).all()
    assert np.corrcoef(played, duration)[0, 1] > 0.7
    assert abs(np.corrcoef(values, duration)[0, 1]) < 0.05
    assert np.corrcoef(values, liking_N[flat])[0, 1] > 0.4
    unknown = np.where(np.arange(len(flat)) < 3, [[np.nan], [0.0]], [played, duration])
    assert np.isnan(normalised_by_duration(unknown[0], duration, log)[:3]).all()
    assert np.isnan(normalised_by_duration(played, unknown[1], log)[:3]).all()


def test_business_with_a_duration(index, train):
    """a played 30, 20, nothing, 60 of items 0, 1, 2, 3; b 50, 40, 10 of 4, 1, 5; c 25, 80 of 1, 7."""
    # An interaction's own duration comes first. Buckets of price here: b's 50 and 40; the others are alone.
    reward = built("business", index, train, column="plays", duration="price", transform="none")
    np.testing.assert_allclose(reward.value_N[[0, 1, 4, 5]], [0.5, (0.5 + 0.25 + 0.5) / 3, 0.75, 0.5])
    catalog_only = dataclasses.replace(train, features_I={"plays": train.features_I["plays"]})
    reward = built("business", index, catalog_only, column="plays", duration="price", transform="none")
    # The items' prices, 10 + item: up to 11 in one bucket, 12 to 17 in the next.
    percentile = [0.75, (0.25 + 0.5 + 0.5) / 3, 0.5, 0.75, 0.25, 0.5]
    np.testing.assert_allclose(reward.value_N[[0, 1, 3, 4, 5, 7]], percentile)
    assert reward.value_N[2] == pytest.approx(np.mean(percentile))


def test_format_and_validity(index):
    given = make_completions(index, [[5, NO_SID, NO_PATH, 17, 16]], [5])
    assert format.reward(given).tolist() == [1, 1, 0, 1, 1]
    assert validity.reward(given).tolist() == [1, 0, 0, 0, 1]
    unfinished = rows_of(given, np.arange(5))
    unfinished.codes_CL[:, 1:] = -1
    assert format.reward(unfinished).sum() == validity.reward(unfinished).sum() == 0
    short = SemanticIds(np.array([[0, 0], [1, -1]], dtype=np.int32), (2, 2))
    few = SidIndex(index.catalog.bare(pa.array(["x", "y"])), short, np.zeros(2))
    given = make_completions(few, [[0, 1]], [0])
    assert format.reward(given).tolist() == validity.reward(given).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"column": "colour"},
            "business.column: 'colour' is no column with values; the catalogue has",
        ),
        ({"column": "brand"}, "business.column: 'brand' is no column with values"),
        ({"column": "item_id"}, "business.column: 'item_id' of item 'i0' is 'i0'; expected a finite number"),
        ({"column": "price"}, "business.table: both have a column 'price'"),
        ({"column": "plays", "table": "catalog"}, "business.column: 'plays' is no column"),
        ({"column": "plays", "missing": "error"}, "business.missing: 11 items have no 'plays'"),
        ({"column": "plays", "duration": "length"}, "business.duration: 'length' is no column"),
        ({"column": "margin", "duration": "price", "table": "catalog"}, "business.duration: normalises"),
    ],
)
def test_business_names_what_is_wrong(index, train, options, message):
    with pytest.raises(InputError, match=message):
        built("business", index, train, **options)


def test_business_needs_something_to_prefer(index, train):
    def on(values):
        log = dataclasses.replace(train, features_I={"x": np.array(values, dtype=np.float32)})
        return built("business", index, log, column="x", transform="log")

    with pytest.raises(InputError, match="'x' is not known of two items with different values"):
        on([2] * 9)
    with pytest.raises(InputError, match="business.column: 'x' is not known"):
        on([np.nan] * 9)
    with pytest.raises(InputError, match="log of 'x', whose least value is -3.0"):
        on([-3, 1, 1, 1, 1, 1, 1, 1, 1])


def test_popularity_needs_interactions(index, train):
    nothing = dataclasses.replace(train, train_hi_S=train.train_lo_S)
    with pytest.raises(InputError, match="'popularity' needs train interactions"):
        built("popularity", index, nothing)
