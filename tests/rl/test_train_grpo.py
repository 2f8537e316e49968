"""GRPO through TRL: whole groups, hand-computed advantages, learning, the command as a whole, bad input."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rl import train_grpo
from rl.rewards.ranking_only import discounts
from serve.decoding.ranking import ItemFilter
from serve.decoding.recommender import Recommender
from serve.decoding.tree_beam import decode
from sid_builder.errors import InputError
from tests.rl.builders import grpo_flags, grpo_trainer, rows_with_hits

G = 8
TOO_MANY = ["--num_generations", "64", "--per_device_train_batch_size", "64"]


@pytest.fixture(scope="module")
def trainer_and_policy(model_dir, tmp_path_factory):
    return grpo_trainer(
        model_dir,
        tmp_path_factory.mktemp("grpo"),
        "--rewards",
        '{"ranking": 1.0}',
        "--steps_per_generation",
        "2",
    )


def test_groups_stay_whole_and_advantages_are_the_hand_computed_ones(trainer_and_policy):
    trainer, policy = trainer_and_policy
    trainer.model.train()
    rows = rows_with_hits(trainer, policy)
    assert len(rows) == 32  # per_device_train_batch_size 16 x steps_per_generation 2
    targets = {}
    for row in rows:
        prompt = policy.template.encode_prompt(row["prompt"][-1]["content"])
        targets[tuple(prompt)] = policy.template.sid_ids[row["target_item"]]
    trainer._step, trainer._buffered_inputs = 0, None
    trainer._prepare_inputs(rows)
    seen = hits = 0
    for batch in trainer._buffered_inputs:
        for start in range(0, 16, G):
            prompts = batch["prompt_ids"][start : start + G]
            assert (prompts == prompts[0]).all()
            prompt = prompts[0][batch["prompt_mask"][start].bool()].tolist()
            completions = batch["completion_ids"][start : start + G].tolist()
            assert len(set(map(tuple, completions))) == G
            hit = np.array([completion == targets[tuple(prompt)] for completion in completions])
            reward = np.where(hit, 1.0, -discounts(G) if hit.any() else 0.0)
            # Beam order survives inside a group, so ranks are the row numbers.
            expected = (reward - reward.mean()) / (reward.std(ddof=1) + 1e-4)
            torch.testing.assert_close(
                batch["advantages"][start : start + G],
                torch.tensor(expected, dtype=torch.float32),
                atol=1e-4,
                rtol=1e-4,
            )
            seen += 1
            hits += hit.sum()
    assert (seen, hits) == (4, 3)


def test_trl_would_scatter_groups(trainer_and_policy):
    """When this fails, TRL keeps groups together by itself and `_prepare_inputs` can go."""
    from trl.trainer.utils import shuffle_sequence_dict

    torch.manual_seed(0)
    group = shuffle_sequence_dict({"prompt_ids": torch.arange(4).repeat_interleave(G)})["prompt_ids"]
    assert not (group.view(4, G) == group.view(4, G)[:, :1]).all()


def test_trls_own_tokenisation_gives_the_templates_ids(trainer_and_policy):
    trainer, policy = trainer_and_policy
    rows = [trainer.train_dataset[row] for row in range(5)]
    ids, _, _ = trainer._tokenize_prompts([row["prompt"] for row in rows])
    assert ids == [policy.template.prompt("seqrec", row["history"]) for row in rows]


def test_first_step_matches_the_loss_by_hand(trainer_and_policy):
    """On policy the ratio is 1, so the gradient is that of -A log p, averaged over completions and tokens."""
    trainer, policy = trainer_and_policy
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer._step, trainer._buffered_inputs = 0, None
    batch = trainer._prepare_inputs(rows_with_hits(trainer, policy))
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    weight = trainer.model.model.layers[0].self_attn.q_proj.weight
    ours = weight.grad.clone()
    trainer.model.zero_grad()
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = trainer.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    logp = logits[:, -4:-1].log_softmax(-1).gather(2, batch["completion_ids"][:, :, None])[..., 0]
    (-(batch["advantages"][:, None] * logp).mean()).backward()
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, weight.grad, atol=2e-5, rtol=2e-3)


def test_shared_prompts_change_nothing_but_the_time(trainer_and_policy):
    """Log-probs, entropies and gradients against TRL's own layout, on ragged prompts."""
    from trl import GRPOTrainer

    trainer, policy = trainer_and_policy
    trainer.model.train()
    trainer._step, trainer._buffered_inputs = 0, None
    trainer._prepare_inputs(rows_with_hits(trainer, policy))
    halves = trainer._buffered_inputs
    batch = {key: torch.cat([half[key] for half in halves]) for key in halves[0] if halves[0][key].dim()}
    assert len(set(batch["prompt_mask"].sum(1).tolist())) > 1
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    mask[3, -1] = 0  # a shorter completion
    results = []
    for method in (
        GRPOTrainer._get_per_token_logps_and_entropies,
        type(trainer)._get_per_token_logps_and_entropies,
    ):
        trainer.model.zero_grad()
        logps, entropies, _ = method(trainer, trainer.model, ids, mask, 3, 8, compute_entropy=True)
        (logps * batch["advantages"][:, None] + 0.1 * entropies.detach()).sum().backward()
        grads = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
        results.append((logps.detach(), entropies.detach(), grads))
    (trl_logps, trl_entropies, trl_grads), (logps, entropies, grads) = results
    torch.testing.assert_close(logps, trl_logps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies, trl_entropies, atol=1e-5, rtol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, trl_grads[name], atol=1e-4, rtol=1e-4, msg=name)


def test_a_whole_run_is_the_same_with_trls_layout(model_dir, tmp_path):
    flags = [
        "--max_steps",
        "3",
        "--learning_rate",
        "1e-3",
        "--valid_cases",
        "0",
        "--save_strategy",
        "no",
        "--beta",
        "0.05",
    ]
    for name, shared in (("ours", "true"), ("trl", "false")):
        train_grpo.main(
            grpo_flags(model_dir, tmp_path / name, *flags, "--update", f'{{"shared_prompt": {shared}}}')
        )
    ours, trl = (Recommender.load(tmp_path / name / "model", device="cpu").model for name in ("ours", "trl"))
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, trl.get_parameter(name), atol=2e-4, rtol=1e-3, msg=name)


def test_reward_rises_on_four_prompts(model_dir, tmp_path):
    """The truth starts anywhere among 48 beams and ends among the first four."""
    sizes = "--num_generations 48 --per_device_train_batch_size 192 --gradient_accumulation_steps 1"
    flags = "--max_prompts 4 --learning_rate 3e-3 --max_steps 25 --beta 0 --save_strategy no"
    argv = [*sizes.split(), *flags.split(), "--lr_scheduler_type", "constant"]
    trainer, policy = grpo_trainer(model_dir, tmp_path / "x", *argv)

    def reward_of_four_beams() -> float:
        rows = [trainer.train_dataset[row] for row in range(4)]
        prompts = [policy.template.seqrec_prompt(row["history"]) for row in rows]
        filters = [ItemFilter(exclude=np.array(row["history"])) for row in rows]
        rankings = decode(policy.model, prompts, policy.trie, 4, filters)
        pairs = zip(rows, rankings, strict=True)
        return np.mean([row["target_item"] in ranking.items_K for row, ranking in pairs])

    before = reward_of_four_beams()
    trainer.train()
    policy.model.eval()
    assert reward_of_four_beams() == 1.0 > before


def test_command_writes_a_model_that_opens_and_a_verdict(model_dir, tmp_path, capsys):
    output = tmp_path / "grpo"
    flags = ["--rewards", '{"rule": 1.0, "ranking": 0.5}', "--training", "lora"]
    flags += ["--max_steps", "2", "--learning_rate", "1e-3", "--logging_steps", "1"]
    train_grpo.main(grpo_flags(model_dir, output, *flags))
    told = capsys.readouterr().out
    assert "NDCG@10" in told and "of the groups were idle" in told
    verdict = json.loads((output / "acceptance.json").read_text())
    assert verdict["cases"] == {"choosing": 10, "judging": 10, "probed": 10}
    assert verdict["verdict"] in ("helped", "hurt", "no clear change")
    assert (output / "curves.png").stat().st_size > 1000
    start, result = (Recommender.load(path, device="cpu") for path in (model_dir, output / "model"))
    assert not any("lora" in name for name, _ in result.model.named_parameters())
    moved = [
        name
        for name, p in result.model.named_parameters()
        if not torch.equal(p, start.model.get_parameter(name))
    ]
    assert moved and all("proj" in name for name in moved)
    assert result.interactions.num_sequences == 40
    with pytest.raises(InputError, match="output_dir"):
        train_grpo.main(grpo_flags(model_dir, output))


@pytest.mark.parametrize("rollout", [{}, {"mode": "sample", "idle_groups": "resample"}])
def test_resumed_run_equals_an_uninterrupted_one(model_dir, tmp_path, rollout):
    flags = [
        "--rollout",
        json.dumps(rollout),
        "--max_steps",
        "4",
        "--save_steps",
        "2",
        "--learning_rate",
        "1e-3",
        "--valid_cases",
        "0",
        "--save_total_limit",
        "3",
    ]
    train_grpo.main(grpo_flags(model_dir, tmp_path / "whole", *flags))
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    train_grpo.main(
        grpo_flags(model_dir, tmp_path / "resumed", *flags, "--resume_from_checkpoint", str(checkpoint))
    )
    whole, resumed = (
        Recommender.load(tmp_path / name / "model", device="cpu").model for name in ("whole", "resumed")
    )
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(resumed.get_parameter(name), parameter, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_generations", "12"], "num_generations: 12 does not divide per_device_train_batch_size 16"),
        (
            ["--save_steps", "3", "--steps_per_generation", "4"],
            "save_steps: 3 falls inside a generation batch",
        ),
        (["--mask_truncated_completions", "true"], "mask_truncated_completions"),
    ],
)
def test_groups_and_checkpoints_are_checked(flags, message):
    from rl.grpo_trainer import check_groups

    values = {
        "num_generations": 8,
        "per_device_train_batch_size": 16,
        "steps_per_generation": 1,
        "gradient_accumulation_steps": 2,
        "num_iterations": 1,
        "save_strategy": "steps",
        "save_steps": 500,
        "mask_truncated_completions": False,
    }
    for name, value in zip(flags[::2], flags[1::2], strict=True):
        values[name.lstrip("-")] = True if value == "true" else int(value)
    with pytest.raises(InputError, match=message):
        check_groups(SimpleNamespace(**values))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rewards", '{"ranked": 1}'], "rewards: 'ranked' is not known"),
        (["--max_prompts", "0"], "max_prompts: 0"),
        (["--valid_cases", "-1"], "valid_cases: -1"),
        (["--eval_num_beams", "5"], "eval_num_beams: 5"),
        (["--training", "half"], "training"),
        (["--reward_weights", "1", "2"], "reward_weights"),
        (["--resume_from_checkpoint", "true"], "resume_from_checkpoint"),
        (["--num_generation", "4"], "num_generation"),
        (["--rollout", '{"mode": "beams"}'], "rollout"),
        (["--rollout", '{"oversample": 0.5}'], "rollout.oversample: 0.5"),
        (
            ["--rollout", '{"mode": "mixed", "sampled": 0.05}'],
            "rollout.sampled: 0.05 of 8 completions is none",
        ),
        (["--temperature", "0.7"], "temperature: 0.7; say --rollout"),
        (["--top_p", "0.9"], "top_p: 0.9 has no effect on rollouts under the trie"),
        (["--use_vllm", "true"], "use_vllm: true is not supported"),
        (TOO_MANY, "num_generations: 64 .*needs 64 SIDs, but only 56 are left"),
        ([*TOO_MANY, "--rollout", '{"mode": "mixed"}'], "num_generations: 64 .*needs 64 SIDs"),
        ([*TOO_MANY, "--rollout", '{"oversample": 1.5}'], "num_generations: 64 .*needs 96 SIDs"),
        (["--push_to_hub", "true"], "push_to_hub: a run directory holds people's interactions"),
    ],
)
def test_bad_input_leaves_nothing_behind(model_dir, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        train_grpo.main(grpo_flags(model_dir, tmp_path / "out", *flags))
    assert not (tmp_path / "out").exists()


def test_a_model_directory_is_needed(tmp_path):
    with pytest.raises(InputError, match="expected a 'model' artefact"):
        train_grpo.main(grpo_flags(tmp_path / "nowhere", tmp_path / "out"))
