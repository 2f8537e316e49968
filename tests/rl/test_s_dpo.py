"""S-DPO against its formula and against DPO, and prompts read once against TRL's own rows."""

import numpy as np
import pytest
import torch

from rl.dpo_losses import OF_PAIRS, softmax_dpo
from serve.decoding.recommender import Recommender
from sid_builder.errors import InputError
from tests.rl.dpo_cases import dpo_trainer, preference_rows, step_of


@pytest.fixture(scope="module")
def policy(model_dir) -> Recommender:
    return Recommender.load(model_dir, device="cpu")


@pytest.fixture(scope="module")
def ragged(policy):
    return preference_rows(policy, [3, 1, 2, 4, 1])


@pytest.fixture(scope="module")
def pairs(policy):
    return preference_rows(policy, [1] * 6)


def assert_same_step(found, expected, tolerance=1e-5, but=()):
    loss, gradients, metrics = found
    assert loss == pytest.approx(expected[0], abs=tolerance)
    assert gradients.keys() == expected[1].keys() and gradients
    for name, gradient in expected[1].items():
        torch.testing.assert_close(gradients[name], gradient, atol=tolerance, rtol=tolerance, msg=name)
    assert metrics.keys() == expected[2].keys()
    for name in metrics.keys() - set(but):
        assert metrics[name] == pytest.approx(expected[2][name], abs=1e-5, rel=1e-5), name


def test_the_loss_is_the_papers():
    margin_P = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = softmax_dpo(margin_P, torch.tensor([0, 0, 0, 1, 2, 2]))
    for margins, loss in zip(([0, 1, 2], [3], [4, 5]), found.tolist(), strict=True):
        of_rejected = np.exp(-margin_P[margins].numpy())
        assert loss == pytest.approx(-np.log(1 / (1 + np.exp(np.log(of_rejected.sum())))), abs=1e-12)


def test_its_gradient_goes_to_what_is_still_preferred():
    margin_P = torch.tensor([4.0, -2.0, 0.5], requires_grad=True)
    softmax_dpo(margin_P, torch.zeros(3, dtype=torch.long)).sum().backward()
    share_P = torch.softmax(-margin_P.detach(), dim=0)
    weight = torch.sigmoid(torch.logsumexp(-margin_P.detach(), dim=0))
    torch.testing.assert_close(margin_P.grad, -weight * share_P)


def test_one_rejected_answer_is_sigmoid_exactly(model_dir, tmp_path, pairs):
    """To the last bit: loss, every gradient and every metric."""
    expected = step_of(dpo_trainer(model_dir, tmp_path / "a", pairs, "--loss_type", "sigmoid"))
    found = step_of(dpo_trainer(model_dir, tmp_path / "b", pairs, "--loss_type", "s_dpo"))
    assert found[0] == expected[0] and found[2] == expected[2]
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())


@pytest.mark.parametrize("training", ["full", "lora"])
@pytest.mark.parametrize("losses", ["sigmoid", "s_dpo sft", "ipo sigmoid_norm"])
def test_prompts_read_once_change_nothing(model_dir, tmp_path, ragged, training, losses):
    """Loss, gradients and metrics of TRL's own rows, on ragged prompts and sets; LoRA's reference too."""
    flags = ["--training", training, "--loss_type", *losses.split()]
    apart = dpo_trainer(model_dir, tmp_path / "trl", ragged, *flags, shared_prompt=False)
    shared = dpo_trainer(model_dir, tmp_path / "ours", ragged, *flags)
    assert "tree_ids" not in apart.data_collator([ragged[0]])
    assert_same_step(step_of(shared), step_of(apart))


def test_the_rows_of_sets_are_trls_pairs(model_dir, tmp_path, policy, ragged):
    """Sets as pairs of their own are what TRL's trainer and collator make of them."""
    from trl import DPOTrainer

    single = [{**row, "rejected_ids": [ids]} for row in ragged for ids in row["rejected_ids"]]
    trainer = dpo_trainer(model_dir, tmp_path / "a", ragged, shared_prompt=False)
    batch = trainer.data_collator(list(ragged))
    plain = trainer.data_collator.collate_pairs(
        [{**row, "rejected_ids": row["rejected_ids"][0]} for row in single]
    )
    for key, value in plain.items():
        assert torch.equal(batch[key], value), key
    theirs = DPOTrainer._compute_loss(trainer, trainer.model, plain, False)
    assert torch.equal(trainer.compute_loss(trainer.model, batch), theirs)


def test_only_answers_reach_the_head_and_a_prompt_is_read_once(model_dir, tmp_path, ragged, monkeypatch):
    from trl.trainer import utils

    trainer, scored, read = dpo_trainer(model_dir, tmp_path, ragged, "--loss_type", "s_dpo"), [], []
    plain = utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(
        utils._ChunkedLogProbFunction,
        "apply",
        lambda states, *rest: scored.append(len(states)) or plain(states, *rest),
    )
    trainer.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    step_of(trainer)
    answers = sum(1 + len(row["rejected_ids"]) for row in ragged)
    assert scored == [4 * answers] * 2  # policy and reference; three codes and the end of a turn
    longest = max(len(row["prompt_ids"]) - 1 + 4 * (1 + len(row["rejected_ids"])) for row in ragged)
    assert read == [(len(ragged), longest)]


@pytest.mark.parametrize("training", ["full", "lora"])
def test_log_probs_taken_before_are_those_taken_on_the_way(model_dir, tmp_path, ragged, training):
    flags = ["--training", training, "--loss_type", "s_dpo", "sigmoid", "--precompute_ref_batch_size", "2"]
    on_the_way = dpo_trainer(model_dir, tmp_path / "a", ragged, *flags)
    before = dpo_trainer(model_dir, tmp_path / "b", ragged, *flags, "--precompute_ref_log_probs", "true")
    assert before.ref_model is None and [len(row) for row in before.train_dataset["ref_rejected_logps"]] == [
        len(row) for row in ragged["rejected_ids"]
    ]
    assert_same_step(step_of(before), step_of(on_the_way))


def test_gradient_checkpointing_changes_nothing(model_dir, tmp_path, ragged):
    flags = ["--training", "lora", "--loss_type", "s_dpo"]
    expected = step_of(dpo_trainer(model_dir, tmp_path / "a", ragged, *flags))
    trainer = dpo_trainer(model_dir, tmp_path / "b", ragged, *flags, "--gradient_checkpointing", "true")
    trainer.model.gradient_checkpointing_enable({"use_reentrant": False})  # as Trainer does in train()
    assert_same_step(step_of(trainer), expected, tolerance=1e-6)


def test_weights_of_losses_add_up(model_dir, tmp_path, ragged):
    alone = [
        step_of(dpo_trainer(model_dir, tmp_path / name, ragged, "--loss_type", name))[0]
        for name in ("s_dpo", "sigmoid", "sft")
    ]
    flags = ["--loss_type", "sigmoid", "s_dpo", "sft", "--loss_weights", "0.5", "2", "0.1"]
    together = step_of(dpo_trainer(model_dir, tmp_path / "all", ragged, *flags))[0]
    assert together == pytest.approx(0.5 * alone[1] + 2 * alone[0] + 0.1 * alone[2], rel=1e-5)


def test_trl_still_knows_these_losses_and_no_s_dpo(model_dir, tmp_path, pairs):
    """When this fails, bring `OF_PAIRS` up to date; if TRL knows s_dpo, `rl.dpo_losses` may go."""
    trainer = dpo_trainer(model_dir, tmp_path, pairs, "--label_smoothing", "0.1")
    for name in (*OF_PAIRS, "s_dpo"):
        trainer.loss_types, trainer.loss_weights = [name], [1.0]
        batch = trainer.data_collator(list(pairs))
        if name == "s_dpo":
            with pytest.raises(ValueError, match="Unknown loss type: s_dpo"):
                trainer.compute_loss(trainer.model, batch)
        else:
            assert torch.isfinite(trainer.compute_loss(trainer.model, batch)), name


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loss_type", "sigmoids"], "loss_type: 'sigmoids' is not known"),
        (["--loss_type", "s_dpo", "--ld_alpha", "0.5"], "ld_alpha: 0.5 is not defined for loss_type: s_dpo"),
        (["--loss_type", "s_dpo", "--f_divergence_type", "js_divergence"], "f_divergence_type"),
        (["--loss_type", "exo_pair"], "label_smoothing: must be above 0"),
        (
            ["--sync_ref_model", "true", "--training", "lora"],
            "sync_ref_model: true needs a reference of its own",
        ),
        (
            ["--sync_ref_model", "true", "--precompute_ref_log_probs", "true"],
            "precompute_ref_log_probs: true fixes the reference",
        ),
    ],
)
def test_losses_that_do_not_fit_are_refused(model_dir, tmp_path, pairs, flags, message):
    with pytest.raises(InputError, match=message):
        dpo_trainer(model_dir, tmp_path, pairs, *flags)
