"""The truth's cross-entropy beside the policy's loss, and pass@k beside TRL's advantages."""

import dataclasses

import numpy as np
import pytest
import torch

from rl.advantages import pass_at_k
from tests.rl.builders import grpo_trainer, rows_with_hits
from tests.rl.update_cases import (
    DEPTH,
    G,
    assert_same_step,
    dense_trie_log_probs,
    log_probs,
    loss_and_gradients,
    scored_batch,
)


@pytest.mark.parametrize("fixture", ["plain_step", "trie_step"])
def test_truth_is_one_more_branch(fixture, request):
    trainer, policy, batch = request.getfixturevalue(fixture)
    rows = trainer.rollout_rows
    truths = [
        policy.template.sid_ids[item] for item in (rows[0]["target_item"], rows[G]["target_item"], 58, 3)
    ]
    batch = {**batch, "truth_ids": torch.tensor(truths).repeat_interleave(G, dim=0)}
    batch["truth_ids"][-G:, -1] = -1  # a shorter SID
    read = []
    hook = policy.model.get_input_embeddings().register_forward_hook(
        lambda m, args, o: read.append(args[0].shape)
    )
    trainer._metrics["train"]["truth_loss"].clear()
    found = loss_and_gradients(trainer, batch, truth_weight=0.7)
    hook.remove()
    assert read == [(4, batch["prompt_ids"].shape[1] - 1 + (G + 1) * DEPTH)]
    assert_same_step(loss_and_gradients(trainer, batch, truth_weight=0.7, shared_prompt=False), found)

    policy_loss, expected = loss_and_gradients(trainer, batch, truth_weight=0.0)
    first = {key: batch[key][::G] for key in ("prompt_ids", "prompt_mask")}
    one = first | {
        "completion_ids": batch["truth_ids"][::G].clamp(min=0),
        "completion_mask": (batch["truth_ids"][::G] >= 0).long(),
    }
    trainer.model.zero_grad()
    if fixture == "trie_step":
        one["completion_ids"][-1, -1] = policy.template.sid_ids[3][-1]
        log_p = dense_trie_log_probs(trainer, policy, one) * one["completion_mask"]
    else:
        log_p = log_probs(trainer, one)[0]
    entropy = (-log_p.sum(dim=1) / torch.tensor([3, 3, 3, 2])).mean()
    (0.7 * entropy / 2).backward()  # over two accumulated micro-batches
    torch.testing.assert_close(found[0], policy_loss + 0.35 * entropy.detach(), atol=1e-5, rtol=1e-5)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(
            found[1][name], expected[name] + parameter.grad, atol=2e-5, rtol=2e-4, msg=name
        )
    assert trainer._metrics["train"]["truth_loss"] == pytest.approx([entropy.item()] * 2, abs=1e-5)


def test_the_truth_travels_with_its_group(trie_step):
    trainer, policy, _ = trie_step
    batch = scored_batch(trainer, policy)
    assert batch["truth_ids"].shape == (32, DEPTH)
    asked = {}
    for row in trainer.rollout_rows:
        prompt = tuple(policy.template.encode_prompt(row["prompt"][-1]["content"]))
        asked.setdefault(prompt, set()).add(tuple(policy.template.sid_ids[row["target_item"]]))
    for ids, mask, truth in zip(batch["prompt_ids"], batch["prompt_mask"], batch["truth_ids"], strict=True):
        assert tuple(truth.tolist()) in asked[tuple(ids[mask.bool()].tolist())]


def test_without_a_weight_nothing_changes(plain_step):
    trainer, _, batch = plain_step
    assert "truth_ids" not in batch
    trainer._metrics["train"].clear()
    from trl import GRPOTrainer

    trainer.model.zero_grad()
    expected = GRPOTrainer._compute_loss(trainer, trainer.model, batch)
    assert torch.equal(loss_and_gradients(trainer, batch)[0], expected.detach())
    assert "truth_loss" not in trainer._metrics["train"]


def test_idle_groups_that_are_left_out_have_no_truth(model_dir, tmp_path):
    flags = ["--rollout", '{"idle_groups": "skip"}', "--update", '{"truth_weight": 1.0}', "--beta", "0"]
    trainer, policy = grpo_trainer(model_dir, tmp_path, *flags, "--steps_per_generation", "2")
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    trainer._step, trainer._buffered_inputs = 0, None
    trainer._prepare_inputs(rows_with_hits(trainer, policy))
    total = 0.0
    seen = []
    for half in trainer._buffered_inputs:
        half["advantages"] = torch.zeros_like(half["advantages"])
        total += trainer.compute_loss(trainer.model, half).item()
        seen += [tuple(row) for row in half["truth_ids"][::G].tolist() if row[0] >= 0]
    targets = [row["target_item"] for row in trainer.rollout_rows[::G]]
    live = [policy.template.sid_ids[item] for item in targets[:3]]  # the fourth group has no hit
    assert sorted(seen) == sorted(map(tuple, live))
    expected = []
    for row, sid in zip(trainer.rollout_rows[::G], live, strict=False):
        prompt = policy.template.encode_prompt(row["prompt"][-1]["content"])
        ids, ones = torch.tensor([prompt]), torch.ones(1, len(prompt), dtype=torch.long)
        one = {"prompt_ids": ids, "prompt_mask": ones, "completion_ids": torch.tensor([sid])}
        with torch.no_grad():
            expected.append(
                -float(log_probs(trainer, one | {"completion_mask": torch.ones(1, 3).long()})[0].mean())
            )
    assert total == pytest.approx(np.mean(expected), abs=1e-5)


def test_pass_at_k_is_added_to_trls_advantages(plain_step):
    trainer, policy, _ = plain_step
    rows = rows_with_hits(trainer, policy)
    plain, of_sets = [], []
    for advantages in ("group", "pass_at_k"):
        kept = trainer.update
        trainer.update = dataclasses.replace(kept, advantages=advantages)
        (plain if advantages == "group" else of_sets).append(
            trainer._generate_and_score_completions(rows)["advantages"]
        )
        trainer.update = kept
    hit = np.array([row["hit"] for row in rows]).reshape(-1, G)
    assert hit.any()
    expected = plain[0] + torch.from_numpy(pass_at_k(hit, 4).flatten()).float()
    torch.testing.assert_close(of_sets[0], expected, atol=1e-6, rtol=1e-6)
    assert list(trainer._logs["advantages"])[-32:] == pytest.approx(expected.tolist(), abs=1e-6)
