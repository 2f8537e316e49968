"""Training of SASRec: what it may see, when it stops, and that it can be interrupted."""

import dataclasses

import numpy as np
import pytest
import torch

from sid_builder import train_sasrec
from sid_builder.artifact import open_artifact, writing
from sid_builder.collaborative import epochs, sasrec_training
from sid_builder.collaborative.item_ranking import ndcg_at_10
from sid_builder.collaborative.sasrec import SASRec
from sid_builder.embedders import ItemData
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.processes import Processes
from tests.builders import make_index
from tests.sid_builder.item_ring import (
    NUM_ITEMS,
    SMALL,
    UNSEEN,
    assert_same_weights,
    catalog,
    follow_the_chain,
    make_embedder,
    weights_of,
)


@pytest.fixture(scope="module")
def chain():
    return follow_the_chain()


@pytest.fixture(scope="module")
def trained(chain):
    return sasrec_training.train_sasrec(chain[0], NUM_ITEMS, SMALL, seed=3)


def test_it_learns_what_follows_what(chain, trained):
    interactions, ring = chain
    model, log = trained
    assert len(log.epochs) == log.kept_epoch == 6 and log.epochs[-1]["loss"] < log.epochs[0]["loss"]
    cases = interactions.histories("test")
    histories = [cases.history(case) for case in range(len(cases))]
    items_BK, scores_BK = model.rank(histories, 3, exclude_history=True)
    assert (items_BK[:, 0] == cases.targets_C).mean() > 0.95
    assert (np.diff(scores_BK) <= 0).all()
    assert not any(np.isin(row, history).any() for row, history in zip(items_BK, histories, strict=True))
    assert ndcg_at_10(model.score_cases, cases, NUM_ITEMS) > 0.97


def test_weights_depend_on_the_seed_alone(chain, trained):
    torch.manual_seed(99)  # the caller's random state is neither read nor moved
    state = torch.get_rng_state()
    again, _ = sasrec_training.train_sasrec(chain[0], NUM_ITEMS, SMALL, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_weights(again, trained[0])
    other, _ = sasrec_training.train_sasrec(chain[0], NUM_ITEMS, SMALL, seed=4)
    assert not np.array_equal(weights_of(other)["items.weight"], weights_of(again)["items.weight"])


def stop_before(monkeypatch, trainee, epoch):
    """Let training be interrupted when it reaches `epoch`; returns the epochs that ran."""
    ran, run_epoch = [], trainee.run_epoch

    def interrupted(self, number):
        if number == epoch:
            raise KeyboardInterrupt
        ran.append(number)
        return run_epoch(self, number)

    monkeypatch.setattr(trainee, "run_epoch", interrupted)
    return ran


@pytest.mark.parametrize("patience", [None, 2])
def test_an_interrupted_training_goes_on_to_the_same_weights(chain, tmp_path, monkeypatch, patience):
    config = dataclasses.replace(SMALL, patience=patience)
    straight, log = sasrec_training.train_sasrec(chain[0], NUM_ITEMS, config, seed=3)
    with monkeypatch.context() as patch:
        assert stop_before(patch, sasrec_training._Trainee, 2) == []
        with pytest.raises(KeyboardInterrupt):
            sasrec_training.train_sasrec(chain[0], NUM_ITEMS, config, 3, tmp_path)
    ran = stop_before(monkeypatch, sasrec_training._Trainee, None)
    resumed, resumed_log = sasrec_training.train_sasrec(chain[0], NUM_ITEMS, config, 3, tmp_path)
    assert ran[0] == 2 and resumed_log == log
    assert_same_weights(resumed, straight)
    # Done is done; and another seed or other data never goes on from this run's state.
    finished = len(ran)
    again, _ = sasrec_training.train_sasrec(chain[0], NUM_ITEMS, config, 3, tmp_path)
    assert len(ran) == finished
    assert_same_weights(again, straight)
    sasrec_training.train_sasrec(chain[0], NUM_ITEMS, config, 4, tmp_path)
    sasrec_training.train_sasrec(follow_the_chain(149)[0], NUM_ITEMS, config, 3, tmp_path)
    assert ran[finished:].count(0) == 2
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


def test_early_stopping_keeps_the_best_epoch(chain, monkeypatch):
    told = iter([0.2, 0.5, 0.4, 0.5, 0.9])
    kept = {}

    def valid_ndcg(self):
        kept[len(kept) + 1] = self.model.items.weight.detach().clone()
        return next(told)

    monkeypatch.setattr(sasrec_training._Trainee, "valid_ndcg", valid_ndcg)
    model, log = sasrec_training.train_sasrec(
        chain[0], NUM_ITEMS, dataclasses.replace(SMALL, patience=2, epochs=5)
    )
    assert log.kept_epoch == 2 and [entry["valid_ndcg@10"] for entry in log.epochs] == [0.2, 0.5, 0.4, 0.5]
    torch.testing.assert_close(model.items.weight.detach(), kept[2], rtol=0, atol=0)


def test_the_number_of_valid_cases_is_bounded(chain):
    config = dataclasses.replace(SMALL, patience=1, valid_cases=20)
    chosen = epochs.cases_to_choose_by(chain[0], config, 0)
    assert len(chosen) == 20 and (np.diff(chosen.sequence_C) > 0).all()
    assert not np.array_equal(chosen.sequence_C, epochs.cases_to_choose_by(chain[0], config, 1).sequence_C)
    assert len(epochs.cases_to_choose_by(chain[0], dataclasses.replace(config, valid_cases=0), 0)) == 150


def test_valid_and_test_leave_no_trace(chain, trained):
    """Other valid and test items, the same weights; with the first epoch chosen by nobody."""
    interactions, _ = chain
    items_I = interactions.items_I.copy()
    for split in ("valid", "test"):
        cases = interactions.histories(split)
        items_I[interactions.indptr_S1[cases.sequence_C] + cases.position_C] = UNSEEN
    changed = dataclasses.replace(interactions, items_I=items_I)
    model, _ = sasrec_training.train_sasrec(changed, NUM_ITEMS, SMALL, seed=3)
    assert not model.seen_N[UNSEEN] and model.seen_N[:UNSEEN].all()
    assert_same_weights(model, trained[0])


def test_data_that_cannot_be_learnt_from_is_named():
    singles = Interactions.leave_one_out(["u", "v"], [np.array([1]), np.array([2])])
    with pytest.raises(InputError, match="no train case has a history and a target"):
        sasrec_training.train_sasrec(singles, NUM_ITEMS, SMALL)
    train_only = Interactions.leave_one_out(["u"], [np.array([1, 2])])
    with pytest.raises(InputError, match="patience: 3 needs valid cases, and there are none; set it to null"):
        sasrec_training.train_sasrec(train_only, NUM_ITEMS, dataclasses.replace(SMALL, patience=3))


def test_a_loss_that_runs_away_stops_training(chain):
    config = dataclasses.replace(SMALL, head="dot", learning_rate=1e30)
    with pytest.raises(
        InputError, match="learning_rate: the loss of sasrec is nan in epoch 1; choose a smaller"
    ):
        sasrec_training.train_sasrec(chain[0], NUM_ITEMS, config)


def test_of_several_processes_one_trains_and_the_others_read(chain, tmp_path, monkeypatch):
    order = []
    train = sasrec_training.train_sasrec
    monkeypatch.setattr(sasrec_training, "train_sasrec", lambda *args: order.append("train") or train(*args))
    monkeypatch.setattr(Processes, "wait", lambda self: order.append("wait"))
    vectors = []
    for rank in (0, 1):
        monkeypatch.setattr(Processes, "current", staticmethod(lambda rank=rank: Processes(rank, 2)))
        ran = stop_before(monkeypatch, sasrec_training._Trainee, None)
        embedder = make_embedder(**{**vars(SMALL), "patience": None})
        vectors.append(embedder.encode(ItemData(catalog(), chain[0], work_dir=tmp_path)))
        assert len(ran) == (6 if rank == 0 else 0)
    assert order == ["train", "wait", "wait", "train"]
    np.testing.assert_array_equal(*vectors)
    with pytest.raises(InputError, match="need a work_dir to share"):
        make_embedder().encode(ItemData(catalog(), chain[0]))


def test_the_command_trains_and_clears_its_work_away(chain, tmp_path, monkeypatch, capsys):
    index = make_index(np.arange(NUM_ITEMS)[:, None], (NUM_ITEMS,))
    with writing(tmp_path / "sids", "sids") as artifact:
        index.save(artifact.path / "sid_index")
        (artifact.path / "interactions").mkdir()
        chain[0].save(artifact.path / "interactions")
    path = tmp_path / "small.yaml"
    options = {**vars(SMALL), "patience": 1, "epochs": 3}
    lines = [f"  {key}: {'null' if value is None else value}" for key, value in options.items()]
    path.write_text("\n".join([f"sid_dir: {tmp_path / 'sids'}", "sasrec:", *lines]) + "\n")
    argv = ["--config", str(path), "--output_dir", str(tmp_path / "out"), "--seed", "3"]
    with monkeypatch.context() as patch:
        stop_before(patch, sasrec_training._Trainee, 1)
        with pytest.raises(KeyboardInterrupt):
            train_sasrec.main(argv)
    assert (tmp_path / "out.work").is_dir() and not (tmp_path / "out").exists()
    ran = stop_before(monkeypatch, sasrec_training._Trainee, None)
    train_sasrec.main(argv)
    assert ran[0] == 1 and not (tmp_path / "out.work").exists()
    artifact = open_artifact(tmp_path / "out", "sasrec")
    assert artifact.summary["valid_ndcg@10"] > 0.5 and artifact.manifest["seeds"] == {"seed": 3}
    assert "train_sasrec: kept epoch" in capsys.readouterr().out
    model = SASRec.load(tmp_path / "out", index.catalog, "cpu")
    assert ndcg_at_10(model.score_cases, chain[0].histories("valid"), NUM_ITEMS) == pytest.approx(
        artifact.summary["valid_ndcg@10"]
    )
    with pytest.raises(InputError, match="output_dir: .* exists already"):
        train_sasrec.main(argv)
    with pytest.raises(InputError, match="sasrec.heads: 3 does not divide dim 16"):
        train_sasrec.main([*argv, "--overwrite", "--sasrec", '{"dim": 16, "heads": 3}'])
