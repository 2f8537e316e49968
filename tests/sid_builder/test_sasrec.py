"""SASRec: what it learns from, what its parts compute, and what it gives and keeps."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from sid_builder.collaborative import full_softmax, sasrec_training
from sid_builder.collaborative.item_ranking import ndcg_at_10, top_items
from sid_builder.collaborative.sasrec import SASRec
from sid_builder.collaborative.windows import NO_TARGET, TrainWindows
from sid_builder.embedders import ItemData
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from tests.builders import make_index
from tests.sid_builder.item_ring import NUM_ITEMS, SMALL, UNSEEN, catalog, follow_the_chain, make_embedder


@pytest.fixture(scope="module")
def chain():
    return follow_the_chain()


@pytest.fixture(scope="module")
def trained(chain):
    return sasrec_training.train_sasrec(chain[0], NUM_ITEMS, SMALL, seed=3)


# What is learnt from


def pre_split_rows():
    """Rows that ask for their last item in one split each, as MiniOneRec's, and one that asks nothing."""
    rng = np.random.default_rng(5)
    lengths = np.array([2, 5, 30, 3, 4, 1])
    zeros, last = np.zeros(6, np.int64), lengths - 1
    split = np.array(["train", "train", "train", "valid", "test", "none"])
    bounds = {f"{name}_lo_S": np.where(split == name, last, zeros) for name in ("train", "valid", "test")}
    bounds |= {f"{name}_hi_S": np.where(split == name, lengths, zeros) for name in ("train", "valid", "test")}
    return Interactions(
        users=pa.array(list("abcdef")),
        indptr_S1=np.concatenate([[0], np.cumsum(lengths)]),
        items_I=rng.integers(NUM_ITEMS, size=lengths.sum()).astype(np.int32),
        **bounds,
    )


@pytest.mark.parametrize("max_history", [3, 8, 50])
@pytest.mark.parametrize("make", [lambda: follow_the_chain(30)[0], pre_split_rows], ids=["loo", "rows"])
def test_every_train_case_is_a_target_once_with_its_history(make, max_history):
    interactions = make()
    windows = TrainWindows.of(interactions, max_history)
    cases = interactions.histories("train")
    wanted = {}
    for case in range(len(cases)):
        at = int(interactions.indptr_S1[cases.sequence_C[case]] + cases.position_C[case])
        wanted[at] = cases.history(case).tolist()
    for begin, first, end in zip(windows.begin_W, windows.first_W, windows.end_W, strict=True):
        assert end - 1 - begin <= max_history
        for at in range(first, end):
            history = wanted.pop(at)
            shown = interactions.items_I[begin:at].tolist()
            assert shown and history[-len(shown) :] == shown
            assert len(shown) == len(history) or len(shown) >= max_history / 2
    assert not wanted


def test_batches_hold_every_target_and_little_padding(chain):
    interactions, _ = chain
    windows = TrainWindows.of(interactions, 8)
    pairs, padded = [], 0
    for inputs_bT, targets_bT in windows.batches(64, np.random.default_rng(0)):
        assert inputs_bT.shape == targets_bT.shape and (inputs_bT.size <= 64 or len(inputs_bT) == 1)
        counts = targets_bT != NO_TARGET
        pairs += list(zip(inputs_bT[counts], targets_bT[counts], strict=True))
        padded += inputs_bT.size
    cases = interactions.histories("train")
    wanted = [(cases.history(c)[-1], target) for c, target in enumerate(cases.targets_C)]
    assert sorted(pairs) == sorted(wanted)
    assert padded < 1.25 * windows.end_W.size + 1.25 * len(wanted)
    order = [next(iter(windows.batches(64, np.random.default_rng(seed))))[0].tolist() for seed in (1, 1, 2)]
    assert order[0] == order[1] != order[2]


# What is computed


@pytest.mark.parametrize("floats", [1, 1 << 20])
def test_full_softmax_is_cross_entropy(monkeypatch, floats):
    monkeypatch.setattr(full_softmax, "_CPU_FLOATS", floats)
    monkeypatch.setattr(full_softmax, "_FEWEST_ROWS", 7)
    generator = torch.Generator().manual_seed(0)
    hidden_TD, items_ND = (torch.randn(size, 6, generator=generator) for size in (50, 33))
    targets_T = torch.randint(33, (50,), generator=generator)
    results = []
    for loss_of in (
        full_softmax.FullSoftmaxLoss.apply,
        lambda h, i, t: torch.nn.functional.cross_entropy(h @ i.T, t),
    ):
        inputs = [x.clone().requires_grad_() for x in (hidden_TD, items_ND)]
        loss = loss_of(*inputs, targets_T)
        (3 * loss).backward()
        results.append([loss.detach(), *(x.grad for x in inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("head", ["cosine", "dot"])
def test_training_positions_and_histories_agree(head):
    """Position t of a padded window is what a history of t + 1 items gives: causal, padding is ignored."""
    torch.manual_seed(0)
    model = SASRec(dataclasses.replace(SMALL, head=head, layers=2), NUM_ITEMS).eval()
    windows = [np.array([5, 2, 7, 7, 1]), np.array([9, 3])]
    inputs_bT = torch.zeros((2, 8), dtype=torch.int64)
    for row, window in enumerate(windows):
        inputs_bT[row, : len(window)] = torch.from_numpy(window)
    with torch.no_grad():
        hidden_bTD, items_ND = model.comparable(model(inputs_bT))
        logits_bTN = (hidden_bTD @ items_ND.T).numpy()
    histories = [window[: t + 1] for window in windows for t in range(len(window))]
    wanted = [logits_bTN[row, t] for row, window in enumerate(windows) for t in range(len(window))]
    np.testing.assert_allclose(model.scores(histories), wanted, atol=2e-5)
    long = np.arange(20)
    np.testing.assert_allclose(model.scores([long]), model.scores([long[-8:]]), atol=1e-6)


def test_listed_items_are_sorted_with_ties_by_index():
    scores_bN = np.array([[1, 3, 3, 0, 3, 2], [5, 5, 5, 5, 5, 5]], np.float32)
    before = scores_bN.copy()
    items_bK, best_bK = top_items(scores_bN, 2)
    assert items_bK.tolist() == [[1, 2], [0, 1]] and best_bK.tolist() == [[3, 3], [5, 5]]
    items_bK, best_bK = top_items(scores_bN, 4, exclude=[np.array([1, 1, 4]), np.arange(1, 6)])
    assert items_bK.tolist() == [[2, 5, 0, 3], [0, -1, -1, -1]] and best_bK[1, 1] == -np.inf
    np.testing.assert_array_equal(scores_bN, before)
    assert items_bK.dtype == np.int32 and best_bK.dtype == np.float32
    for k in (0, 7):
        with pytest.raises(InputError, match=f"k: {k} is outside 1..6"):
            top_items(scores_bN, k)


@pytest.mark.parametrize("repeats", [False, True])
def test_ndcg_is_the_evaluations_own(chain, repeats):
    """Against `serve.evaluation`, which ranks floors by the protocol; scores with many ties."""
    from serve.evaluation.floors import rank_floor
    from serve.evaluation.metrics import metrics_of_ranks

    interactions, _ = chain
    if repeats:
        items_I = interactions.items_I.copy()
        items_I[1] = items_I[0]
        interactions = dataclasses.replace(interactions, items_I=items_I)
    cases = interactions.histories("valid")
    table_NN = np.random.default_rng(1).integers(6, size=(NUM_ITEMS, NUM_ITEMS)).astype(np.float32)

    def score(batch):
        return table_NN[[batch.history(case)[-1] for case in range(len(batch))]]

    trie = make_index(np.arange(NUM_ITEMS)[:, None], (NUM_ITEMS,)).trie
    ranked = rank_floor(score, cases, trie, exclude_history=not repeats)
    wanted = metrics_of_ranks(ranked.item_rank_C)["ndcg@10"]
    assert 0 < wanted < 1 and ndcg_at_10(score, cases, NUM_ITEMS) == pytest.approx(wanted, abs=1e-12)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, r"embedder_args\.dim: 0 is below 1"),
        ({"dim": 10, "heads": 4}, r"embedder_args\.heads: 4 does not divide dim 10"),
        ({"dropout": 1.0}, r"embedder_args\.dropout: 1.0 is outside 0..1"),
        ({"temperature": 0.0}, r"embedder_args\.temperature: 0.0 is not above 0"),
        ({"learning_rate": float("nan")}, r"embedder_args\.learning_rate: nan is not above 0"),
        ({"epochs": 0}, r"embedder_args\.epochs: 0 is below 1"),
        ({"patience": 0}, r"embedder_args\.patience: 0 is below 1"),
        ({"valid_cases": -1}, r"embedder_args\.valid_cases: -1 is below 0"),
        ({"dmi": 3}, "embedder_args.dmi: unknown key; did you mean 'dim'"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        make_embedder(**options)


def test_histories_that_cannot_be_read_are_named(trained):
    with pytest.raises(InputError, match=r"histories\[1\]: is empty"):
        trained[0].scores([np.array([1]), np.array([], np.int32)])
    for item in (-1, NUM_ITEMS):
        with pytest.raises(InputError, match=r"histories\[0\]: has an item_index outside 0..40"):
            trained[0].scores([np.array([1, item])])


# Vectors and artefacts


def test_the_embedder_gives_the_models_item_vectors(chain, trained):
    options = {key: value for key, value in vars(SMALL).items() if value is not None}
    embedder = make_embedder(**options, patience=None)
    vectors_ND = embedder.encode(ItemData(catalog(), chain[0]))
    assert vectors_ND.shape == (NUM_ITEMS, 16) and vectors_ND.dtype == np.float32
    np.testing.assert_array_equal(vectors_ND, trained[0].item_vectors())
    assert embedder.notes["epochs"] == 6 and embedder.notes["loss"] > 0
    np.testing.assert_allclose(np.linalg.norm(vectors_ND[:UNSEEN], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors_ND[UNSEEN], vectors_ND[:UNSEEN].mean(axis=0), atol=1e-6)


def test_the_artefact_comes_back_the_same(chain, trained, tmp_path):
    model, _ = trained
    model.save(tmp_path / "sasrec", catalog(), seeds={"seed": 3})
    assert {path.suffix for path in (tmp_path / "sasrec").iterdir()} == {".safetensors", ".json"}
    back = SASRec.load(tmp_path / "sasrec", catalog(), device="cpu")
    histories = [np.array([3, 1]), np.array([2])]
    np.testing.assert_array_equal(back.scores(histories), model.scores(histories))
    np.testing.assert_array_equal(back.item_vectors(), model.item_vectors())
    assert not back.training and back.config == SMALL
    others = make_index(np.arange(NUM_ITEMS - 1)[:, None], (NUM_ITEMS,)).catalog
    with pytest.raises(InputError, match="was trained on 41 items that are not this catalogue's 40"):
        SASRec.load(tmp_path / "sasrec", others)
