"""`serve.fit_prior` from a model directory to its prior, and what evaluation makes of it, in process."""

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp

from serve import evaluate, fit_prior
from serve.decoding.fitted_prior import FittedPrior, PriorWeights, item_prior, make_prior, masses_of
from serve.decoding.ranking import ItemFilter
from serve.decoding.tree_beam import decode
from serve.evaluation import prior_fitting
from serve.evaluation.model_ranking import rank_targets, target_ranks
from sid_builder.artifact import open_artifact
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from tests.builders import make_index, make_recommender

NUM_USERS = 60


@pytest.fixture(scope="module")
def index():
    """100 items under 90 SIDs."""
    rng = np.random.default_rng(5)
    codes = np.stack([np.arange(100) % 8, rng.integers(0, 8, 100), rng.integers(0, 8, 100)], axis=1)
    codes[90:] = codes[:10]
    return make_index(codes, (8, 8, 8))


@pytest.fixture(scope="module")
def interactions(index):
    """Each item is followed by the next one, mostly: something to count."""
    rng = np.random.default_rng(3)
    sequences = []
    for _ in range(NUM_USERS):
        walk = (rng.integers(0, 100) + np.arange(rng.integers(3, 9))) % 100
        sequences.append(np.where(rng.random(len(walk)) < 0.8, walk, (walk + 50) % 100))
    return Interactions.leave_one_out([f"u{i}" for i in range(NUM_USERS)], sequences)


@pytest.fixture(scope="module")
def recommender(index):
    return make_recommender(index)


@pytest.fixture
def model_dir(recommender, index, interactions, tmp_path):
    from sft.model_directory import write_model_directory

    write_model_directory(
        tmp_path / "model",
        recommender.model,
        recommender.tokenizer,
        recommender.template.pack,
        index,
        interactions,
    )
    return tmp_path / "model"


def fit(model_dir, *more: str) -> dict:
    return fit_prior.main(["--model", str(model_dir), "--device", "cpu", *more])


def test_ranks_by_weight_are_those_of_the_beam(recommender, interactions):
    """With room for every SID the union is the whole list, so each weight's own beam says the same."""
    cases = interactions.histories("valid").take(np.arange(12))
    prior = make_prior("one_hop", {"popular_items": 10}, recommender.index)
    prior.learn(interactions.only_train())
    histories = [cases.history(case) for case in range(len(cases))]
    masses = masses_of(prior, histories)
    masses = sp.csr_matrix(sp.diags([1.0] * 11 + [0.0]) @ masses)  # nothing is known of the last one
    masses.sort_indices()
    rank_CFW = prior_fitting.ranks_by_weight(recommender, cases, masses, 200, 3000, exclude_history=True)
    prompts = [recommender.template.seqrec_prompt(history) for history in histories]
    filters = [ItemFilter(exclude=history.astype(np.int64)) for history in histories]
    for number, form in enumerate(prior_fitting.FORMS):
        for column, weight in enumerate(prior_fitting.WEIGHTS):
            priors = [item_prior(masses, row, weight, form) for row in range(len(cases))]
            rankings = decode(
                recommender.model, prompts, recommender.trie, 200, filters, "trie", priors=priors
            )
            expected = [
                target_ranks(ranking.items_K, int(target), recommender.index.trie)[0]
                for ranking, target in zip(rankings, cases.targets_C, strict=True)
            ]
            assert rank_CFW[:, number, column].tolist() == expected, (form, weight)


def cases_that_prefer(weight_C: np.ndarray, form: str = "linear") -> np.ndarray:
    """Ranks [C, F, W]: the target is first near the preferred weight, and never elsewhere."""
    rank_CFW = np.zeros((len(weight_C), 2, len(prior_fitting.WEIGHTS)), dtype=np.int32)
    far_CW = np.abs(weight_C[:, None] - np.array(prior_fitting.WEIGHTS))
    rank_CFW[:, prior_fitting.FORMS.index(form)] = np.where(far_CW < 0.06, 1, 0)
    return rank_CFW


def features_of(num_cases: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    names = ("history_length", "last_item_count", "evidence")
    return {name: rng.integers(1, 30, num_cases).astype(float) for name in names}


def test_weights_follow_what_cases_prefer():
    features, half = features_of(400), np.full(400, 0.5)
    single = prior_fitting.learn_weights(cases_that_prefer(half), features, 0).weights
    assert single == PriorWeights([0.5], "linear")
    learnt = prior_fitting.learn_weights(cases_that_prefer(half, "log_linear"), features, 0)
    assert learnt.weights == PriorWeights([0.5], "log_linear")
    linear = prior_fitting.learn_weights(cases_that_prefer(half, "log_linear"), features, 0, ["linear"])
    assert linear.weights.form == "linear" and not any("log" in row["form"] for row in linear.table)
    long = features["history_length"] >= np.median(features["history_length"])
    split = prior_fitting.learn_weights(cases_that_prefer(np.where(long, 0.8, 0.2)), features, 0).weights
    assert split.feature == "history_length" and sorted(set(split.weights)) == [0.2, 0.8]
    assert set(split.of(features)[long]) == {0.8}


def test_buckets_that_do_not_help_are_not_taken():
    """Weights that cases prefer at random: on the other half, buckets cannot win."""
    rng = np.random.default_rng(1)
    prefer = rng.choice([0.2, 0.5, 0.8], 300, p=[0.2, 0.6, 0.2])
    learnt = prior_fitting.learn_weights(cases_that_prefer(prefer), features_of(300), 0)
    assert learnt.weights == PriorWeights([0.5], "linear")
    assert len(learnt.table) == 2 + 2 + 2 * 3


def test_command_fits_and_evaluation_shows_both_rows(model_dir, interactions, capsys):
    summary = fit(model_dir, "--max_cases", "40", "--options", '{"popular_items": 20}')
    printed = capsys.readouterr().out
    assert "40 valid cases" in printed and "| one weight | log_linear |" in printed
    assert open_artifact(model_dir / "prior", "prior").summary["table"] == summary["table"]
    scores = {row["list"]: row["ndcg@10"] for row in summary["table"]}
    assert scores["prior alone"] > scores["model alone"]  # the weights are random, the data is a walk
    argv = ["--model", str(model_dir), "--device", "cpu", "--split", "valid", "--prior"]
    results = evaluate.main(argv)
    assert results["order"] == ["popularity", "one-hop", "model", "model + prior"]
    rows = results["rows"]
    assert rows["model + prior"]["item"]["ndcg@10"] > rows["model"]["item"]["ndcg@10"]
    assert "prior of model" in results["inputs"]
    bare = evaluate.main([*argv[:-1], "--overwrite"])
    assert bare["order"] == ["popularity", "one-hop", "model"]
    assert bare["rows"]["model"]["item"] == rows["model"]["item"]
    with pytest.raises(InputError, match="exists already"):
        fit(model_dir)


def test_weight_1_of_the_one_hop_prior_ranks_as_the_floor_does(model_dir, recommender, interactions):
    """One item per SID is what the floor's item ranks are comparable with, so targets of shared SIDs go."""
    from serve.evaluation import floors

    fit(model_dir, "--weight", "1", "--options", '{"popular_items": 100}')
    fitted = FittedPrior.open(model_dir, recommender.index)
    cases = interactions.histories("valid")
    trie = recommender.index.trie
    ranked = rank_targets(recommender, cases, num_beams=200, prior=fitted, progress=False)
    floor = floors.rank_floor(floors.one_hop(interactions, 100), cases, trie, True)
    first = np.flatnonzero(
        (floor.sid_rank_C == 1) & (trie.leaf_size_M[trie.leaf_of_item_N[cases.targets_C]] == 1)
    )
    assert len(first) > 5
    # The mass of shared SIDs adds up, which the floor's does not: they alone may come before.
    shared = int((trie.leaf_size_M > 1).sum())
    assert (ranked.sid_rank_C[first] <= 1 + shared).all() and (ranked.sid_rank_C[first] == 1).mean() > 0.8


def write_new(path, sequences: dict[str, list[int]]) -> str:
    lines = [
        json.dumps({"user": user, "items": [f"item-{item}" for item in items]})
        for user, items in sequences.items()
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_new_interactions_add_up_and_are_not_evaluated(model_dir, index, interactions, recommender, tmp_path):
    """In two files, of old users and new ones, of one item and of many: as if counted from scratch."""
    fit(model_dir, "--weight", "0.3", "--form", "log_linear")
    first = {"u0": [5, 6], "u3": [7], "fresh": [1, 2, 3], "once": [9]}
    second = {"u0": [8], "once": [10, 11], "late": [4, 5]}
    for name, sequences in (("a.jsonl", first), ("b.jsonl", second)):
        fit(model_dir, "--new_interactions", write_new(tmp_path / name, sequences))
    fitted = FittedPrior.open(model_dir, index)
    assert fitted.weights == PriorWeights([0.3], "log_linear")

    whole = {
        user: interactions.items_I[start:end].tolist()
        for user, start, end in zip(
            interactions.users.to_pylist(),
            interactions.indptr_S1[:-1],
            interactions.indptr_S1[1:],
            strict=True,
        )
    }
    for added in (first, second):
        for user, items in added.items():
            whole[user] = whole.get(user, []) + items
    joined = Interactions.leave_one_out(list(whole), [np.array(items) for items in whole.values()])
    lengths = np.diff(joined.indptr_S1)
    scratch = make_prior("one_hop", {}, index)
    scratch.learn(dataclasses.replace(joined, train_lo_S=0 * lengths, train_hi_S=lengths))
    assert np.array_equal(fitted.prior.popularity.counts_N, scratch.popularity.counts_N)
    for name in ("indptr_N1", "targets_P", "counts_PD"):
        mine, theirs = (getattr(prior.transitions, name) for prior in (fitted.prior, scratch))
        assert np.array_equal(mine, theirs)
    with pytest.raises(InputError, match="prior: has counted new interactions"):
        rank_targets(recommender, interactions.histories("test"), prior=fitted)


@dataclass(frozen=True)
class RuleOptions:
    """One item for everybody."""

    item: int = 0


class RulePrior:
    """A rule of the shop: needs no interactions."""

    adds = False

    def __init__(self, options: RuleOptions, index) -> None:
        self.item, self.num_items = options.item, index.catalog.num_items

    def learn(self, train) -> None:
        assert not len(train.histories("valid")) and not len(train.histories("test"))

    def masses(self, histories) -> sp.csr_matrix:
        rows = np.arange(len(histories))
        # Named twice, which adds up.
        return sp.coo_matrix(
            (np.ones(2 * len(rows)), (np.tile(rows, 2), np.full(2 * len(rows), self.item))),
            (len(rows), self.num_items),
        )

    def save(self, directory) -> None:
        pass

    def load(self, directory) -> None:
        pass


def test_a_prior_of_ones_own(model_dir, recommender, tmp_path):
    kind = f"{__name__}:RulePrior"
    fit(model_dir, "--kind", kind, "--options", '{"item": 33}', "--weight", "0.5")
    fitted = FittedPrior.open(model_dir, recommender.index)
    priors = fitted.of_histories([np.array([1, 2]), np.empty(0, np.int32)])
    assert [(prior.items_P.tolist(), prior.mass_P.tolist()) for prior in priors] == [([33], [2.0])] * 2
    prompt = recommender.template.seqrec_prompt(np.array([1, 2]))
    ranking = decode(recommender.model, [prompt], recommender.trie, 5, priors=priors[:1])[0]
    assert ranking.items_K[0] == 33
    with pytest.raises(InputError, match="cannot add; fit it anew"):
        fit(model_dir, "--new_interactions", write_new(tmp_path / "new.jsonl", {"u0": [1]}))


@pytest.mark.parametrize(
    "more, message",
    [
        (["--weight", "1.5"], "weight: 1.5 is outside 0..1"),
        (["--kind", "two_hop"], "kind: 'two_hop' is not known"),
        (["--options", '{"smooth": 1}'], "options.smooth: unknown key; did you mean 'smoothing'"),
        (["--options", '{"smoothing": -1}'], "options.smoothing: -1.0; give at least 0"),
        (["--new_interactions", "nowhere.jsonl"], "is not there to add to; fit the prior first"),
        (["--num_beams", "0"], "num_beams: 0 is too small"),
    ],
)
def test_wrong_arguments(model_dir, more, message):
    with pytest.raises(InputError, match=message):
        fit(model_dir, *more)
    assert not (model_dir / "prior").exists()


def test_what_an_update_and_evaluation_refuse(model_dir, index):
    argv = ["--model", str(model_dir), "--prior"]
    with pytest.raises(InputError, match="prior: no model directory has prior/"):
        evaluate.main(argv)
    with pytest.raises(InputError, match="has no prior/; fit one"):
        FittedPrior.open(model_dir, index)
    fit(model_dir, "--weight", "0.5")
    with pytest.raises(InputError, match="new_interactions: no file nowhere.jsonl"):
        fit(model_dir, "--new_interactions", "nowhere.jsonl")
    with pytest.raises(InputError, match=r"weight: 0.4 has no effect with new_interactions"):
        fit(model_dir, "--new_interactions", __file__, "--weight", "0.4")
    with pytest.raises(InputError, match="prior: needs the trie"):
        evaluate.main([*argv, "--decoder", "generate"])
    other = make_index(np.stack([np.arange(50) % 8, np.arange(50) // 8], axis=1), (8, 8))
    with pytest.raises(InputError, match="fitted on other items"):
        FittedPrior.open(model_dir, other)
