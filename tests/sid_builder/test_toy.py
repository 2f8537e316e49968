"""The toy shop can be learnt, and not by counting: floors stay far below what the histories tell."""

import numpy as np
import pytest

from serve.evaluation.floors import one_hop, popularity, rank_floor
from serve.evaluation.metrics import gains, hits
from sid_builder.sources.toy import CATEGORIES, DEPARTMENTS, ToyArgs, ToyShop, load
from sid_builder.sources.toy_ceiling import bayes_ceiling, next_item_posterior
from sid_builder.trie import SidTrie


@pytest.fixture(scope="module")
def toy():
    return load(ToyArgs())


def test_items_are_readable_and_distinct(toy):
    assert toy.catalog.num_items == 512 and len(set(toy.catalog.titles)) == 512
    row = toy.catalog.row(0)
    assert row["brand"] in row["title"] and row["categories"][1] in row["title"]
    assert all(word in row["description"] for word in (row["brand"], row["categories"][1]))


def test_counting_cannot_win(toy):
    """One-hop stays below a fifth of the Bayes ceiling, popularity lower still; no item is bought twice."""
    num_items, interactions = toy.catalog.num_items, toy.interactions
    assert not interactions.has_repeats
    trie = SidTrie.build(np.arange(num_items, dtype=np.int32)[:, None])
    scores = {}
    for floor in (popularity, one_hop):
        cases = rank_floor(
            floor(interactions, num_items), interactions.histories("test"), trie, exclude_history=True
        )
        scores[floor] = (hits(cases.item_rank_C, 10).mean(), gains(cases.item_rank_C, 10).mean())
    ceiling = toy.notes["bayes_ceiling_test"]
    assert ceiling["hr@10"] > 0.65 and ceiling["ndcg@10"] > 0.4
    assert scores[popularity][0] < scores[one_hop][0] < ceiling["hr@10"] / 5
    assert scores[popularity][1] < scores[one_hop][1] < ceiling["ndcg@10"] / 5


def test_each_half_of_the_rule_alone_is_nearly_flat():
    shop = ToyShop(ToyArgs())
    share_MKK = np.array(
        [
            [
                shop.category_probability(np.flatnonzero(shop.department_K == m)[0], k)
                for k in range(len(CATEGORIES))
            ]
            for m in range(len(DEPARTMENTS))
        ]
    )
    assert share_MKK.mean(axis=0).max() < 0.5  # given the last category alone: spread over four and more
    np.testing.assert_allclose(share_MKK.mean(axis=(0, 1)), 1 / len(CATEGORIES), atol=1e-9)


def test_the_posterior_is_a_calibrated_distribution():
    """Its expected hit rate agrees with the observed one: `bayes_ceiling` ranks by the generator itself."""
    args = ToyArgs(num_users=400)
    shop = ToyShop(args)
    cases = load(args).interactions.histories("test")
    expected = []
    for case in range(len(cases)):
        probability_N = next_item_posterior(shop, cases.history(case))
        assert probability_N.sum() == pytest.approx(1.0)
        assert (probability_N[cases.history(case)] == 0).all()
        expected.append(np.sort(probability_N)[-10:].sum())
    measured = bayes_ceiling(shop, cases.interactions, "test")["hr@10"]
    assert measured == pytest.approx(np.mean(expected), abs=3 * np.sqrt(0.25 / len(cases)))


def test_the_seed_decides_everything():
    first, again, other = (load(ToyArgs(num_users=30, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.interactions.items_I, again.interactions.items_I)
    assert first.catalog.titles == again.catalog.titles != other.catalog.titles
