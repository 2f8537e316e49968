"""Priors in the beam, against the enumeration of every leaf of small catalogues."""

import itertools

import numpy as np
import pytest
import torch

from serve.decoding import prior_mass, tree_beam
from serve.decoding.prior_mass import PriorMass
from serve.decoding.ranking import Form, ItemFilter, ItemPrior
from sid_builder.errors import InputError
from tests.builders import make_index, make_recommender
from tests.serve.test_tree_beam import TOLERANCE, codes_of, ragged_prompts, reference

EVERYTHING = 1000
FORMS: tuple[Form, ...] = ("linear", "log_linear")


@pytest.fixture(scope="module")
def made():
    """SIDs of one to three levels, up to four items each."""
    rng = np.random.default_rng(8)
    codes = np.stack([rng.integers(0, 6, 90), rng.integers(0, 4, 90), rng.integers(0, 3, 90)], axis=1)
    codes[codes[:, 0] == 1, 1:] = -1
    codes[(codes[:, 0] == 2) & (codes[:, 1] % 2 == 0), 2:] = -1
    recommender = make_recommender(make_index(codes, (6, 4, 3)))
    assert recommender.index.trie.num_leaves < 70 and recommender.index.trie.leaf_size_M.max() >= 4
    return recommender


@pytest.fixture(scope="module")
def prompts(made):
    return ragged_prompts(made, 3)


def sparse_prior(seed: int, weight: float, form: Form, num_items: int = 90, size: int = 12) -> ItemPrior:
    rng = np.random.default_rng(seed)
    items = np.sort(rng.choice(num_items, size, replace=False))
    return ItemPrior(items, rng.random(size) * 50, weight, form)


FILTERS = [
    None,
    ItemFilter(exclude=np.arange(0, 90, 3)),
    ItemFilter(allow=np.arange(10, 60), exclude=np.arange(20, 30)),
]


@pytest.fixture(scope="module")
def models(made, prompts) -> list[dict[tuple[int, ...], float]]:
    """P_model of every SID legal under each request's filter, from forced logits."""
    leaves = []
    for prompt, item_filter in zip(prompts, FILTERS, strict=True):
        sids, log_model = reference(made, prompt, EVERYTHING, item_filter, score="trie")
        leaves.append(dict(zip(sids, np.exp(log_model).tolist(), strict=True)))
        assert sum(leaves[-1].values()) == pytest.approx(1.0, abs=1e-4)
    return leaves


def enumerated(made, model, prior: ItemPrior, item_filter) -> dict[tuple[int, ...], tuple[float, float]]:
    """P_model and P_prior of every legal SID, the latter by a plain sum over items."""
    mass = dict.fromkeys(model, 0.0)
    for item, value in zip(prior.items_P.tolist(), prior.mass_P.tolist(), strict=True):
        if item_filter is None or item_filter.keeps(np.array([item]))[0]:
            row = made.index.semantic_ids.codes_NL[item].tolist()
            mass[tuple(code for code in row if code >= 0)] += value
    total = sum(mass.values())
    return {sid: (model[sid], mass[sid] / total) for sid in model}


def score_of(model: float, prior: float, leaves: int, num_leaves: int, weight: float, form: Form) -> float:
    with np.errstate(divide="ignore"):
        if form == "linear":
            return float(np.log((1 - weight) * model + weight * prior))
        share = prior_mass.UNCOUNTED_SHARE
        kept = (1 - share) * prior + share * leaves / num_leaves
        return float((1 - weight) * np.log(model) + weight * np.log(kept))


def plain_beam(made, leaves, weight, form, k):
    """Beam search over prefixes, whose probabilities are sums over the enumerated leaves below them."""
    whole = [tuple(code for code in row if code >= 0) for row in made.index.trie.codes_ML.tolist()]
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for level in range(3):
        grown = {}
        for prefix, score in beams:
            if prefix in leaves:
                grown[prefix] = score
            for sid in leaves:
                if len(sid) > level and sid[:level] == prefix:
                    grown.setdefault(sid[: level + 1], None)
        for prefix in grown:
            below = [values for sid, values in leaves.items() if sid[: len(prefix)] == prefix]
            model, prior = (sum(column) for column in zip(*below, strict=True))
            size = sum(sid[: len(prefix)] == prefix for sid in whole)
            grown[prefix] = score_of(model, prior, size, len(whole), weight, form)
        kept = [(prefix, score) for prefix, score in grown.items() if score > -np.inf]
        beams = sorted(kept, key=lambda beam: (-beam[1], beam[0]))[:k]
    return beams


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [1, 6, EVERYTHING])
def test_a_beam_is_that_of_the_enumerated_leaves(made, prompts, models, k, form):
    """Order and scores, each request with a weight and a filter of its own, whatever the model is scored by;
    beside a request without a prior too.
    """
    weights = (0.2, 0.6, 0.95)
    priors = [sparse_prior(seed, weight, form) for seed, weight in enumerate(weights)]
    for score, beside in itertools.product(("full", "trie", "sid"), (0, 1)):
        asked, given = [*prompts, *prompts[:beside]], [*priors, *[None] * beside]
        filters = [*FILTERS, *[None] * beside]
        rankings = tree_beam.decode(made.model, asked, made.trie, k, filters, score=score, priors=given)
        rankings = rankings[: len(prompts)]
        for model, ranking, prior, item_filter in zip(models, rankings, priors, FILTERS, strict=True):
            leaves = enumerated(made, model, prior, item_filter)
            beams = plain_beam(made, leaves, prior.weight, form, k)
            assert codes_of(ranking) == [prefix for prefix, _ in beams]
            assert np.abs(ranking.beam_scores_B - [value for _, value in beams]).max() < TOLERANCE
            if form == "linear" and k == EVERYTHING:
                assert np.exp(ranking.beam_scores_B).sum() == pytest.approx(1.0, abs=1e-5)
            if item_filter is not None:
                assert item_filter.keeps(ranking.items_K).all()


@pytest.mark.parametrize("form", FORMS)
def test_weight_0_is_the_plain_beam_bit_for_bit(made, prompts, form):
    """Also beside a request whose prior counts, and with a prior that knows no item the request may get."""
    nothing = [
        sparse_prior(0, 0.0, form),
        ItemPrior(np.array([0, 3]), np.array([1.0, 2.0]), 0.7, form),  # both excluded below
        None,
        ItemPrior(np.empty(0, np.int64), np.empty(0), 0.7, form),
        ItemPrior(np.array([4]), np.zeros(1), 0.7, form),
        sparse_prior(0, 0.7, form),
    ]
    asked = [prompts[0], prompts[1], prompts[2], prompts[0], prompts[1], prompts[2]]
    filters = [None, FILTERS[1], None, FILTERS[2], None, None]
    plain = tree_beam.decode(made.model, asked, made.trie, 7, filters)
    mixed = tree_beam.decode(made.model, asked, made.trie, 7, filters, priors=nothing)
    for number, (mine, bare) in enumerate(zip(mixed, plain, strict=True)):
        same = np.array_equal(mine.items_K, bare.items_K) and np.array_equal(mine.scores_K, bare.scores_K)
        assert same == (number < 5)


@pytest.mark.parametrize("form", FORMS)
def test_weight_1_is_the_priors_own_order(made, prompts, form):
    prior = sparse_prior(5, 1.0, form)
    ranking = tree_beam.decode(made.model, prompts[:1], made.trie, EVERYTHING, priors=[prior])[0]
    leaf_of = made.index.trie.leaf_of_item_N
    leaf_mass = np.bincount(leaf_of[prior.items_P], prior.mass_P, made.index.trie.num_leaves)
    order = np.lexsort((np.arange(len(leaf_mass)), -leaf_mass))
    if form == "linear":
        order = order[leaf_mass[order] > 0]  # what the prior does not know is not listed
    listed = leaf_of[ranking.items_K]
    assert list(dict.fromkeys(listed.tolist())) == order.tolist()
    for leaf in order:  # items of one SID: the prior's order, then as without one
        items = ranking.items_K[listed == leaf]
        plain = made.index.trie.items_of_leaf(leaf).tolist()
        assert items.tolist() == sorted(plain, key=lambda item: -prior.mass_of(np.array([item]))[0])


@pytest.mark.parametrize("form", FORMS)
def test_the_beam_finds_what_only_the_prior_likes(made, prompts, form):
    last = tree_beam.decode(made.model, prompts[:1], made.trie, EVERYTHING)[0].items_K[-1]
    prior = ItemPrior(np.array([last]), np.ones(1), 0.5, form)
    assert last not in tree_beam.decode(made.model, prompts[:1], made.trie, 3)[0].items_K
    assert tree_beam.decode(made.model, prompts[:1], made.trie, 3, priors=[prior])[0].items_K[0] == last


def test_no_dead_ends_beside_a_request_with_few_items(made, prompts):
    """Slots that one request leaves empty grow nothing, though the prior has mass where they stand."""
    first = made.index.trie.items_of_leaf(0)[0]
    prior = ItemPrior(np.array([first]), np.ones(1), 0.5)
    only = ItemFilter(allow=np.array([first]))
    few, many = tree_beam.decode(
        made.model, prompts[:2], made.trie, 20, [only, None], priors=[prior, sparse_prior(1, 0.5, "linear")]
    )
    assert few.items_K.tolist() == [first] and few.scores_K[0] == pytest.approx(0.0, abs=1e-6)
    assert len(many.beam_scores_B) == 20 and len(set(codes_of(many))) == 20


def test_node_masses_are_sums_over_leaves_at_every_level(made):
    trie = made.index.trie
    priors = [sparse_prior(seed, 0.5, "linear") for seed in range(3)]
    mass = PriorMass(made.trie, priors, FILTERS)
    for level in range(trie.depth + 1):
        nodes = 1 if level == 0 else len(trie.tok[level - 1])
        low, high = trie.leaf_ranges(np.arange(nodes), level)
        for request, node in itertools.product(range(3), range(nodes)):
            kept = priors[request].mass_P.copy()
            if FILTERS[request] is not None:
                kept[~FILTERS[request].keeps(priors[request].items_P)] = 0
            leaves = trie.leaf_of_item_N[priors[request].items_P]
            expected = kept[(leaves >= low[node]) & (leaves < high[node])].sum() / kept.sum()
            got = mass.of_nodes(torch.tensor([node]), torch.tensor([request]), level, "linear").item()
            assert got == pytest.approx(expected, abs=1e-12) and (got == 0) == (expected == 0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ItemPrior(np.array([1]), np.ones(1), 1.5), "weight 1.5 is outside 0..1"),
        (lambda: ItemPrior(np.array([1]), np.array([-1.0]), 0.5), "item_index 1 has mass -1.0"),
        (lambda: ItemPrior(np.array([1, 4]), np.array([1.0, np.nan]), 0.5), "item_index 4 has mass nan"),
        (lambda: ItemPrior(np.array([2, 2]), np.ones(2), 0.5), "give each item once"),
    ],
)
def test_impossible_priors(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_priors_that_do_not_fit_the_catalogue_or_each_other(made, prompts):
    def decode(*priors, constraint="trie"):
        tree_beam.decode(
            made.model, prompts[: len(priors)], made.trie, 5, constraint=constraint, priors=priors
        )

    with pytest.raises(InputError, match="item_index 90 is outside the catalogue of 90 items"):
        decode(ItemPrior(np.array([3, 90]), np.ones(2), 0.5))
    with pytest.raises(InputError, match="both forms"):
        decode(sparse_prior(0, 0.5, "linear"), sparse_prior(0, 0.5, "log_linear"))
    with pytest.raises(InputError, match="cannot honour item filters or priors"):
        decode(sparse_prior(0, 0.5, "linear"), constraint="none")
