"""What priors learn, against plain loops; that counts of parts add up; that nothing but train is learnt."""

import dataclasses

import numpy as np
import pytest

from sid_builder.collaborative import SASRecConfig
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.priors.one_hop import OneHopOptions, OneHopPrior
from sid_builder.priors.popularity import PopularityOptions, PopularityPrior
from sid_builder.priors.sasrec import SASRecPrior, SASRecPriorOptions
from sid_builder.priors.transitions import TransitionCounts
from tests.builders import make_index

NUM_ITEMS = 40


@pytest.fixture(scope="module")
def index():
    return make_index(np.stack([np.arange(NUM_ITEMS) // 8, np.arange(NUM_ITEMS) % 8], axis=1), (8, 8))


@pytest.fixture(scope="module")
def interactions():
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, NUM_ITEMS, rng.integers(1, 10)) for _ in range(60)]
    return Interactions.leave_one_out([str(i) for i in range(60)], sequences)


def histories(seed: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, NUM_ITEMS, size) for size in (0, 1, 2, 3, 5, 9)]


def learnt(index, train, **options) -> OneHopPrior:
    prior = OneHopPrior(OneHopOptions(**options), index)
    prior.learn(train)
    return prior


def test_one_hop_is_the_floor(index, interactions):
    from serve.evaluation.floors import one_hop

    cases = interactions.histories("test")
    given = [cases.history(case) for case in range(len(cases))]
    masses = learnt(index, interactions.only_train()).masses(given).toarray()
    assert np.allclose(masses, one_hop(interactions, NUM_ITEMS)(cases), rtol=1e-12, atol=0)


def test_one_hop_with_other_options_is_a_plain_loop(index, interactions):
    weights, smoothing = [1.0, 0.3], 2.0
    prior = learnt(
        index, interactions.only_train(), hop_weights=weights, smoothing=smoothing, popular_weight=0.0
    )
    counts = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for sequence in range(interactions.num_sequences):
        start, end = interactions.indptr_S1[sequence], interactions.train_hi_S[sequence]
        train = interactions.items_I[start : start + end].tolist()
        for position in range(1, len(train)):
            for distance in range(1, min(position, 2) + 1):
                counts[train[position - distance], train[position]] += weights[distance - 1]
    masses = prior.masses(histories()).toarray()
    for history, row in zip(histories(), masses, strict=True):
        expected = np.zeros(NUM_ITEMS)
        for weight, item in zip(weights, history[::-1], strict=False):
            expected += weight * counts[item] / (counts[item].sum() + smoothing)
        assert np.allclose(row, expected)
    assert not masses[0].any()  # of nobody, nothing is known


def test_popularity_is_a_share_of_train(index, interactions):
    prior = PopularityPrior(PopularityOptions(popular_items=5), index)
    prior.learn(interactions.only_train())
    masses = prior.masses(histories())
    counts = interactions.train_counts(NUM_ITEMS)
    best = sorted(range(NUM_ITEMS), key=lambda item: (-counts[item], item))[:5]
    expected = np.zeros(NUM_ITEMS)
    expected[best] = counts[best] / counts.sum()
    assert np.allclose(masses.toarray(), expected[None, :])


def test_counts_of_parts_are_the_counts_of_the_whole(index, interactions):
    """In three steps, each asking for positions further on; the arrays are equal to the last bit."""
    train = interactions.only_train()
    whole, parts = learnt(index, train), OneHopPrior(OneHopOptions(), index)
    cuts = [train.train_lo_S, *(np.minimum(train.train_hi_S, cut) for cut in (2, 5, 99))]
    for low, high in zip(cuts[:-1], cuts[1:], strict=True):
        parts.learn(dataclasses.replace(train, train_lo_S=low, train_hi_S=high).only_train())
    assert np.array_equal(parts.popularity.counts_N, whole.popularity.counts_N)
    for name in ("indptr_N1", "targets_P", "counts_PD"):
        assert np.array_equal(getattr(parts.transitions, name), getattr(whole.transitions, name))


def test_valid_and_test_are_out_of_reach(index, interactions):
    """Whatever stands in their place, the same is learnt."""
    changed = interactions.items_I.copy()
    for sequence in range(interactions.num_sequences):
        start, end = interactions.indptr_S1[sequence : sequence + 2]
        changed[start + interactions.train_hi_S[sequence] : end] = 7
    other = dataclasses.replace(interactions, items_I=changed)
    assert not np.array_equal(changed, interactions.items_I)
    mine, theirs = (learnt(index, data.only_train()) for data in (interactions, other))
    assert (mine.masses(histories()) != theirs.masses(histories())).nnz == 0


def test_saved_priors_are_memory_mapped_and_the_same(index, interactions, tmp_path):
    prior = learnt(index, interactions.only_train())
    prior.save(tmp_path)
    loaded = OneHopPrior(OneHopOptions(), index)
    loaded.load(tmp_path)
    assert isinstance(loaded.transitions.counts_PD, np.memmap)
    assert (loaded.masses(histories()) != prior.masses(histories())).nnz == 0
    loaded.learn(interactions.only_train())
    assert np.array_equal(loaded.transitions.counts_PD, 2 * prior.transitions.counts_PD)


def test_no_transitions_at_all():
    train = Interactions.leave_one_out(["a", "b"], [np.array([1]), np.array([2])])
    counts = TransitionCounts.count(train, 4, 3)
    row, target, of_pair = counts.after(np.array([1, 2]))
    assert len(row) == len(target) == len(of_pair) == 0


def test_sasrec_gives_its_best_items(index, interactions, tmp_path):
    from sid_builder.collaborative.sasrec import SASRec

    model = SASRec(SASRecConfig(dim=8), NUM_ITEMS)
    model.save(tmp_path / "sasrec", index.catalog)
    prior = SASRecPrior(SASRecPriorOptions(str(tmp_path / "sasrec"), best_items=6, temperature=0.5), index)
    prior.learn(interactions.only_train())
    (tmp_path / "copy").mkdir()
    prior.save(tmp_path / "copy")
    masses = prior.masses(histories()).toarray()
    scores = model.eval().scores(histories()[1:]).astype(np.float64) / 0.5
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert not masses[0].any()
    for row, expected in zip(masses[1:], softmax, strict=True):
        best = np.argsort(-expected, kind="stable")[:6]
        assert np.flatnonzero(row).tolist() == sorted(best.tolist())
        assert np.allclose(row[best], expected[best], rtol=1e-5)
    loaded = SASRecPrior(SASRecPriorOptions("gone since"), index)
    loaded.load(tmp_path / "copy")
    assert loaded.model.num_items == NUM_ITEMS


@pytest.mark.parametrize(
    "options, message",
    [
        (OneHopOptions(hop_weights=[]), r"options.hop_weights: \[\]"),
        (OneHopOptions(hop_weights=[1.0, -1.0]), "at least 0"),
        (OneHopOptions(smoothing=-1), "options.smoothing: -1"),
        (OneHopOptions(popular_items=0), "options.popular_items: 0"),
        (SASRecPriorOptions("nowhere"), "nowhere: no such directory"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(InputError, match=message):
        options.check("options")
