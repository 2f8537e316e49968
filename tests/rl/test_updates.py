"""A step of every loss, layout and option: log-probs and gradients against TRL's own, or by hand."""

import functools
from types import SimpleNamespace

import pytest
import torch

from rl import train_grpo
from rl.launch import check_launch
from rl.update_options import UpdateOptions
from serve.decoding.recommender import Recommender
from sft.start import quantised
from sid_builder.errors import InputError
from tests.rl.builders import grpo_flags, grpo_trainer
from tests.rl.update_cases import (
    DEPTH,
    assert_same_step,
    log_probs,
    loss_and_gradients,
    scored_batch,
)

LOSSES = [
    ("grpo", "token"),
    ("grpo", "sequence"),  # GSPO
    ("dapo", "token"),
    ("dapo", "sequence"),
    ("dr_grpo", "token"),
    ("bnpo", "token"),
    ("cispo", "token"),
    ("sapo", "token"),
    ("luspo", "sequence"),
    ("vespo", "token"),
]


@pytest.mark.parametrize(("loss", "level"), LOSSES)
def test_every_loss_steps_as_in_trls_layout(plain_step, monkeypatch, loss, level):
    trainer, _, batch = plain_step
    monkeypatch.setattr(trainer, "loss_type", loss)
    monkeypatch.setattr(trainer, "importance_sampling_level", level)
    monkeypatch.setattr(trainer, "epsilon_high", 5.0 if loss == "cispo" else 0.2)
    expected = loss_and_gradients(trainer, batch, shared_prompt=False)
    assert_same_step(loss_and_gradients(trainer, batch), expected)


def test_losses_differ(plain_step, monkeypatch):
    """That ratios, clipping and masks of the batch tell them apart."""
    trainer, _, batch = plain_step
    seen = []
    for loss, level in LOSSES:
        monkeypatch.setattr(trainer, "loss_type", loss)
        monkeypatch.setattr(trainer, "importance_sampling_level", level)
        seen.append(float(loss_and_gradients(trainer, batch)[0]))
    assert len({round(value, 6) for value in seen}) == len(LOSSES)


def test_micro_batches_that_cut_groups_share_what_is_left(plain_step, monkeypatch):
    trainer, policy, batch = plain_step
    whole = loss_and_gradients(trainer, batch)
    read = []
    embeddings = policy.model.get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda module, args, output: read.append(args[0].shape))
    monkeypatch.setattr(trainer.args, "per_device_train_batch_size", 4)
    cut = loss_and_gradients(trainer, batch)
    hook.remove()
    width = batch["prompt_ids"].shape[1]
    assert read == [(8, width - 1 + 4 * DEPTH)]
    assert_same_step(cut, whole)


def test_trls_head_is_given_the_completions_alone(plain_step, monkeypatch):
    from trl.trainer import utils

    trainer, _, batch = plain_step
    scored = []
    original = utils._ChunkedLogProbFunction.apply

    def counted(hidden, *rest):
        scored.append(len(hidden))
        return original(hidden, *rest)

    monkeypatch.setattr(utils._ChunkedLogProbFunction, "apply", counted)
    log_probs(trainer, batch)
    assert scored == [32 * DEPTH]


@pytest.mark.parametrize("adapters", [False, True])
def test_gradient_checkpointing_and_lora_change_nothing(model_dir, tmp_path, adapters):
    flags = ["--gradient_checkpointing", "true", "--beta", "0.05", "--rewards", '{"ranking": 1.0}']
    flags += ["--training", "lora"] if adapters else []
    trainer, policy = grpo_trainer(model_dir, tmp_path, *flags, "--steps_per_generation", "2")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:  # begin at 0, where nothing would reach A
            parameter.data.normal_(std=0.1, generator=generator)
    batch = scored_batch(trainer, policy)
    trainer.model.gradient_checkpointing_enable()  # as train() does
    checkpointed = loss_and_gradients(trainer, batch)
    assert_same_step(checkpointed, loss_and_gradients(trainer, batch, shared_prompt=False), 2e-5, 5e-4)
    trainer.model.gradient_checkpointing_disable()
    assert_same_step(checkpointed, loss_and_gradients(trainer, batch))
    if adapters:
        with trainer.model.disable_adapter(), torch.no_grad():
            reference = log_probs(trainer, batch)[0]
        mask = batch["completion_mask"].bool()
        torch.testing.assert_close(batch["ref_per_token_logps"][mask], reference[mask], atol=1e-5, rtol=1e-5)


def test_mixed_precision(model_dir, tmp_path, plain_step):
    """bf16 moves numbers, in our layout as far as in TRL's."""
    flags = ["--rewards", '{"ranking": 1.0}', "--steps_per_generation", "2", "--beta", "0.05"]
    trainer, policy = grpo_trainer(model_dir, tmp_path, *flags, "--bf16", "true")
    batch = plain_step[2]
    exact = loss_and_gradients(plain_step[0], batch)[1]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    for shared in (True, False):
        half = loss_and_gradients(trainer, batch, shared_prompt=shared)[1]
        assert all(gradient.dtype == torch.float32 for gradient in half.values())
        flat, expected = (torch.cat([g.flatten() for g in grads.values()]) for grads in (half, exact))
        assert torch.nn.functional.cosine_similarity(flat, expected, dim=0) > 0.98


def test_four_bit_weights(model_dir, tmp_path):
    """QLoRA: our step on weights in nf4, against TRL's layout on what they stand for."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    policy = Recommender.load(model_dir, device="cpu")
    policy.model = quantised(model_dir, "float32")
    flags = ["--training", "lora", "--steps_per_generation", "2", "--rewards", '{"ranking": 1.0}']
    trainer, policy = grpo_trainer(model_dir, tmp_path, *flags, policy=policy)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:  # TRL keeps them in bfloat16, whose gradients are too coarse to compare
            parameter.data = parameter.data.float()
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    batch = scored_batch(trainer, policy)  # behind a rollout in eval mode
    found = loss_and_gradients(trainer, batch)
    layers = [module for module in policy.model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 2 * 7
    for layer in layers:
        weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        layer.forward = functools.partial(torch.nn.functional.linear, weight=weight)
    assert_same_step(found, loss_and_gradients(trainer, batch, shared_prompt=False))


@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit")
def test_bitsandbytes_still_has_no_way_back(model_dir):
    """When this fails, delete the loop from `sft.start.quantised`."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    if not bitsandbytes.functional.has_avx512bf16():
        pytest.skip("this processor has no AVX512-BF16")
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32).to("cpu").eval()
    assert layer.support_avx512bf16_for_cpu
    layer(torch.ones(2, 64))
    states = torch.ones(2, 64, requires_grad=True)
    layer.train()(states).sum().backward()
    assert states.grad is None
    assert not any(
        getattr(module, "support_avx512bf16_for_cpu", False)
        for module in quantised(model_dir, "float32").modules()
    )


def test_a_reference_that_follows_is_resumed_as_it_was(model_dir, tmp_path):
    from safetensors.torch import load_file

    flags = (
        "--max_steps 4 --save_steps 2 --learning_rate 1e-3 --valid_cases 0 --save_total_limit 3 --beta 0.1"
    )
    flags += " --sync_ref_model true --ref_model_sync_steps 1 --ref_model_mixup_alpha 0.5"
    train_grpo.main(grpo_flags(model_dir, tmp_path / "whole", *flags.split()))
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    begun, moved = (
        load_file(path) for path in (model_dir / "model.safetensors", checkpoint / "reference.safetensors")
    )
    shared = set(begun) & set(moved)  # of tied matrices each file has the one or the other
    assert shared and not any(torch.equal(moved[name], begun[name]) for name in shared if "proj" in name)
    resume = ["--resume_from_checkpoint", str(checkpoint)]
    train_grpo.main(grpo_flags(model_dir, tmp_path / "resumed", *flags.split(), *resume))
    whole, resumed = (
        Recommender.load(tmp_path / name / "model", device="cpu").model for name in ("whole", "resumed")
    )
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(resumed.get_parameter(name), parameter, atol=1e-6, rtol=1e-5)
    (checkpoint / "reference.safetensors").unlink()
    with pytest.raises(InputError, match="has no reference.safetensors"):
        train_grpo.main(grpo_flags(model_dir, tmp_path / "again", *flags.split(), *resume))


def test_a_reference_in_parts_does_not_follow(monkeypatch):
    monkeypatch.setattr("rl.launch.check_machine", lambda args: None)  # accelerate shards on GPUs alone
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    own = SimpleNamespace(load_in_4bit=False)
    with pytest.raises(InputError, match="sync_ref_model: true moves a reference that FSDP2 shares out"):
        check_launch(own, SimpleNamespace(sync_ref_model=True))
    check_launch(own, SimpleNamespace(sync_ref_model=False))


def test_mixtures_of_experts_take_trls_own_pass(model_dir, tmp_path):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    policy = Recommender.load(model_dir, device="cpu")
    config = Qwen3MoeConfig(
        vocab_size=policy.model.config.vocab_size,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=2,
        num_experts_per_tok=1,
    )
    policy.model = Qwen3MoeForCausalLM(config)
    for update in ('{"log_probs": "trie"}', '{"truth_weight": 0.1}'):
        with pytest.raises(InputError, match="router_aux_loss_coef: 0.001 counts in TRL's own pass"):
            grpo_trainer(model_dir, tmp_path, "--update", update, "--beta", "0", policy=policy)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loss_type", "gspo"], "loss_type: 'gspo' is not known; use one of"),
        (["--importance_sampling_level", "group"], "importance_sampling_level: 'group' is not known"),
        (["--scale_rewards", "sometimes"], "scale_rewards: 'sometimes' is not known"),
        (["--loss_type", "luspo"], "'token' is not what loss_type: luspo is defined by; set 'sequence'"),
        (["--loss_type", "vespo", "--importance_sampling_level", "sequence"], "set 'token'"),
        (["--loss_type", "cispo"], "epsilon_high: 0.2 would cut every ratio"),
        (["--update", '{"advantages": "pass_at_k", "k": 8}'], "update.k: 8 of 8 completions"),
        (["--update", '{"k": 2}'], "update.k: 2 has no effect"),
        (["--update", '{"advantages": "pass_at_k", "k": 0}'], "update.k: 0"),
        (["--update", '{"truth_weight": -1}'], "update.truth_weight: -1"),
        (["--update", '{"truth_weight": Infinity}'], "update.truth_weight: inf"),
        (["--update", '{"log_probs": "sid"}'], "update.log_probs: 'sid' is not one of"),
        (["--sync_ref_model", "true", "--beta", "0"], "sync_ref_model: true has no reference"),
        (
            ["--sync_ref_model", "true", "--training", "lora"],
            "sync_ref_model: true needs a reference of its own",
        ),
    ],
)
def test_bad_options_leave_nothing_behind(model_dir, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        train_grpo.main(grpo_flags(model_dir, tmp_path / "out", *flags))
    assert not (tmp_path / "out").exists()


def test_defaults_are_trls():
    assert UpdateOptions() == UpdateOptions("group", 4, "vocabulary", 0.0, True)
