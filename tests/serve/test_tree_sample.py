"""Draws under the trie against probabilities from teacher forcing of every path, in fp32.

Legend: M leaves, D draws.
"""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from serve.decoding import tree_beam
from serve.decoding.ranking import ItemFilter
from serve.decoding.tree_beam import BeamChooser
from serve.decoding.tree_model import TreeModel
from serve.decoding.tree_sample import DistinctDraws, Draws, GivenSids
from sid_builder.errors import InputError
from tests.builders import make_index, make_recommender
from tests.serve.test_tree_beam import forced_logits, ragged_prompts

MANY = 4000


@pytest.fixture(scope="module")
def made():
    """30 SIDs of one, two and three levels under 4 x 4 x 4 codes; some belong to two items."""
    rng = np.random.default_rng(7)
    codes = np.array([(a, b, c) for a in range(4) for b in range(4) for c in range(4)])
    codes = codes[(codes[:, 0] != 3) & (codes[:, :2] != (2, 1)).any(axis=1)]
    codes = codes[rng.choice(len(codes), 28, replace=False)]
    codes = np.concatenate([codes, [(3, -1, -1), (2, 1, -1)], codes[:4]])
    return make_recommender(make_index(codes, (4, 4, 4)))


@pytest.fixture(scope="module")
def prompts(made):
    return ragged_prompts(made)


def rngs(count, seed=0):
    return [np.random.default_rng([seed, number]) for number in range(count)]


def walk(made, prompts, chooser, filters=None):
    kept = filters or [None] * len(prompts)
    (leaves,) = TreeModel(made.model, made.trie).descend(prompts, kept, [chooser])
    return chooser.found(leaves)


def path_of(made, leaf):
    return made.template.vocabulary.encode(made.index.trie.codes_ML[leaf])


def exact(made, prompt, temperature=1.0, item_filter=None):
    """Probabilities [M] under the trie, by hand, and log-probs [M] over the whole vocabulary."""
    trie = made.index.trie
    paths = [path_of(made, leaf) for leaf in range(trie.num_leaves)]
    kept = np.arange(trie.num_items)
    if item_filter is not None:
        kept = kept[item_filter.keeps(kept)]
    legal = [paths[leaf] for leaf in sorted(set(trie.leaf_of_item_N[kept].tolist()))]
    logits = forced_logits(made.model, prompt, paths)
    probs, scores = np.zeros(len(paths)), np.zeros(len(paths))
    for leaf, path in enumerate(paths):
        for at, token in enumerate(path):
            step = logits[tuple(path[:at])].double()
            scores[leaf] += step.log_softmax(0)[token].item()
        if path in legal:
            probs[leaf] = 1.0
            for at, token in enumerate(path):
                tokens = sorted({other[at] for other in legal if other[:at] == path[:at]})
                row = (logits[tuple(path[:at])].double()[tokens] / temperature).softmax(0)
                probs[leaf] *= row[tokens.index(token)].item()
    return probs, scores


def assert_drawn_from(leaves, probs):
    """Pearson's test at 1 in 10,000; leaves expected fewer than 5 times count together."""
    found, expected = np.bincount(leaves, minlength=len(probs)), probs * len(leaves)
    assert not found[probs == 0].any()
    often = expected >= 5
    found = np.append(found[often], found[~often].sum())
    expected = np.append(expected[often], expected[~often].sum())
    assert chisquare(found[expected > 0], expected[expected > 0]).pvalue > 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.4, 2.5])
def test_draws_come_as_often_as_the_policy_makes_them(made, prompts, temperature):
    found = walk(made, prompts, Draws(MANY, rngs(3), temperature, made.trie.device))
    for prompt, (leaves, scores) in zip(prompts, found, strict=True):
        probs, log_probs = exact(made, prompt, temperature)
        assert probs.sum() == pytest.approx(1)
        assert_drawn_from(leaves, probs)
        np.testing.assert_allclose(scores, log_probs[leaves], atol=1e-4)


def test_temperatures_are_told_apart(made, prompts):
    """The test above would fail if the temperature had no effect."""
    (leaves, _), *_ = walk(made, prompts[:1], Draws(MANY, rngs(1), 2.5, made.trie.device))
    with pytest.raises(AssertionError):
        assert_drawn_from(leaves, exact(made, prompts[0])[0])


def test_filters_hold_and_renormalise(made, prompts):
    items = made.index.trie.num_items
    filters = [ItemFilter(exclude=np.arange(0, items, 2)), None, ItemFilter(allow=np.arange(9))]
    found = walk(made, prompts, Draws(MANY, rngs(3), 1.0, made.trie.device), filters)
    for prompt, item_filter, (leaves, _) in zip(prompts, filters, found, strict=True):
        assert_drawn_from(leaves, exact(made, prompt, item_filter=item_filter)[0])


def test_distinct_draws_are_draws_without_replacement(made, prompts):
    """First and second of two, against p_i and p_i p_j / (1 - p_i)."""
    found = walk(made, prompts[:1] * MANY, DistinctDraws(2, rngs(MANY), 1.0, made.trie.device))
    probs, log_probs = exact(made, prompts[0])
    pairs = np.array([leaves for leaves, _ in found])
    assert pairs.shape == (MANY, 2) and (pairs[:, 0] != pairs[:, 1]).all()
    assert_drawn_from(pairs[:, 0], probs)
    both = probs[:, None] * probs / (1 - probs[:, None])
    np.fill_diagonal(both, 0)
    assert_drawn_from(pairs[:, 0] * len(probs) + pairs[:, 1], both.flatten())
    np.testing.assert_allclose(found[0][1], log_probs[pairs[0]], atol=1e-4)


def test_distinct_draws_at_a_temperature(made, prompts):
    found = walk(made, prompts[1:2] * MANY, DistinctDraws(1, rngs(MANY), 2.5, made.trie.device))
    assert_drawn_from(np.concatenate([leaves for leaves, _ in found]), exact(made, prompts[1], 2.5)[0])


def test_distinct_draws_give_all_there_are(made, prompts):
    item_filter = ItemFilter(allow=np.array([3, 8, 12, 12, 20]))
    chooser = DistinctDraws(20, rngs(2), 1.0, made.trie.device)
    (few, _), (every, _) = walk(made, prompts[:2], chooser, [item_filter, None])
    assert sorted(few) == sorted(made.index.trie.leaf_of_item_N[[3, 8, 12, 20]])
    assert len(set(every.tolist())) == 20


@pytest.mark.parametrize("kind", [Draws, DistinctDraws])
def test_a_request_draws_the_same_alone(made, prompts, kind):
    """Whatever is beside it: random numbers are its own."""
    filters = [None, ItemFilter(allow=np.arange(5)), None]
    together = walk(made, prompts, kind(6, rngs(3), 1.0, made.trie.device), filters)
    for number, prompt in enumerate(prompts):
        chooser = kind(6, rngs(3)[number : number + 1], 1.0, made.trie.device)
        ((leaves, scores),) = walk(made, [prompt], chooser, filters[number : number + 1])
        assert leaves.tolist() == together[number][0].tolist()
        np.testing.assert_allclose(scores, together[number][1], atol=1e-5)


def test_given_sids_have_the_scores_of_the_beam(made, prompts):
    trie = made.trie
    leaves = np.array([0, trie.trie.num_leaves - 1, 11])
    given = GivenSids(leaves, trie)
    (found,) = TreeModel(made.model, trie).descend(prompts, [None] * 3, [given])
    assert found.flatten().tolist() == leaves.tolist()
    for prompt, leaf, score in zip(prompts, leaves, given.scores_B, strict=True):
        assert score.item() == pytest.approx(exact(made, prompt)[1][leaf], abs=1e-4)


def test_one_walk_serves_a_beam_draws_and_given_sids(made, prompts):
    """Each gets what it gets alone, and a prompt is read once."""
    trie, seen = made.trie, []
    hook = made.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    choosers = [
        BeamChooser(3, 5, trie.device),
        DistinctDraws(7, rngs(3), 1.0, trie.device),
        Draws(4, rngs(3, seed=1), 1.0, trie.device),
        GivenSids(np.array([2, 3, 4]), trie),
    ]
    with torch.no_grad():
        beam, distinct, draws, given = TreeModel(made.model, trie).descend(prompts, [None] * 3, choosers)
    hook.remove()
    assert seen[0] == (3, max(map(len, prompts))) and len(seen) == trie.depth
    assert all(width <= 5 + 7 + 4 + 1 for _, width in seen[1:])
    for (leaves, _), ranking in zip(
        choosers[0].found(beam), tree_beam.decode(made.model, prompts, trie, 5), strict=True
    ):
        np.testing.assert_array_equal(trie.trie.codes_ML[leaves], ranking.codes_BL)
    for chooser, found, alone in (
        (choosers[1], distinct, DistinctDraws(7, rngs(3), 1.0, trie.device)),
        (choosers[2], draws, Draws(4, rngs(3, seed=1), 1.0, trie.device)),
    ):
        for mine, theirs in zip(chooser.found(found), walk(made, prompts, alone), strict=True):
            np.testing.assert_array_equal(mine[0], theirs[0])
    assert given.flatten().tolist() == [2, 3, 4]


@pytest.mark.parametrize("kind", [Draws, DistinctDraws])
def test_a_filter_that_leaves_nothing_is_an_error(made, prompts, kind):
    filters = [None, ItemFilter(allow=np.empty(0, dtype=np.int64)), None]
    with pytest.raises(InputError, match="filters: request 1 has no legal SID left to draw"):
        walk(made, prompts, kind(2, rngs(3), 1.0, made.trie.device), filters)
