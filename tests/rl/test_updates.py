"""A step of every loss, layout and option: log-probs and gradients against TRL's own, or by hand."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

from rl import train_grpo
from rl.advantages import pass_at_k
from rl.trie_log_probs import TrieLogProbs
from rl.update_options import UpdateOptions
from serve.decoding.recommender import Recommender
from serve.decoding.tree_beam import decode
from serve.decoding.trie_step import DeviceTrie
from sft.start import quantised
from sid_builder.errors import InputError
from tests.builders import make_index, make_recommender
from tests.rl.builders import grpo_flags, grpo_trainer, rows_with_hits

G, DEPTH = 8, 3
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


def scored_batch(trainer, policy):
    """A generation batch of four groups that an older policy has drawn, with one shorter completion."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    trainer._step, trainer._buffered_inputs = 0, None
    trainer._prepare_inputs(rows_with_hits(trainer, policy))
    halves = trainer._buffered_inputs
    batch = {
        key: torch.cat([half[key] for half in halves]) if value.dim() else value
        for key, value in halves[0].items()
    }
    batch["completion_mask"][3, -1] = 0
    with torch.no_grad():
        log_p = log_probs(trainer, batch)[0]
    generator = torch.Generator().manual_seed(1)
    batch["old_per_token_logps"] = log_p + 0.3 * torch.randn(log_p.shape, generator=generator)
    return batch


def log_probs(trainer, batch):
    """Log-probs and entropies of the completions; each row's prompt by itself where rows are no groups."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    kept = trainer.update
    trainer.update = dataclasses.replace(kept, shared_prompt=len(ids) % G == 0)
    found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, DEPTH, compute_entropy=True)
    trainer.update = kept
    return found[:2]


def loss_and_gradients(trainer, batch, **update):
    """Of one step under other options than the trainer's."""
    kept = trainer.update
    trainer.update = dataclasses.replace(kept, **update)
    try:
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    finally:
        trainer.update = kept
    learnt = [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
    return loss.detach(), {name: p.grad.clone() for name, p in learnt}


def assert_same_step(found, expected, atol=1e-5, rtol=1e-4):
    torch.testing.assert_close(found[0], expected[0], atol=atol, rtol=rtol)
    assert max(gradient.abs().max() for gradient in expected[1].values()) > 1e-2
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=atol, rtol=rtol, msg=name)


@pytest.fixture(scope="module")
def given(model_dir, tmp_path_factory):
    """Trainer, policy and a batch."""
    flags = ["--rewards", '{"ranking": 1.0}', "--steps_per_generation", "2", "--beta", "0.05"]
    trainer, policy = grpo_trainer(model_dir, tmp_path_factory.mktemp("updates"), *flags)
    return trainer, policy, scored_batch(trainer, policy)


@pytest.fixture(scope="module")
def of_trie(model_dir, tmp_path_factory):
    """The same under `log_probs: trie`, at another temperature."""
    update = '{"log_probs": "trie", "truth_weight": 0.5, "advantages": "pass_at_k", "k": 3}'
    rollout = '{"mode": "sample", "temperature": 1.5}'
    flags = ["--update", update, "--rollout", rollout, "--steps_per_generation", "2", "--num_iterations", "2"]
    trainer, policy = grpo_trainer(model_dir, tmp_path_factory.mktemp("trie"), *flags)
    return trainer, policy, scored_batch(trainer, policy)


@pytest.mark.parametrize(("loss", "level"), LOSSES)
def test_every_loss_steps_as_in_trls_layout(given, monkeypatch, loss, level):
    trainer, _, batch = given
    monkeypatch.setattr(trainer, "loss_type", loss)
    monkeypatch.setattr(trainer, "importance_sampling_level", level)
    monkeypatch.setattr(trainer, "epsilon_high", 5.0 if loss == "cispo" else 0.2)
    expected = loss_and_gradients(trainer, batch, shared_prompt=False)
    assert_same_step(loss_and_gradients(trainer, batch), expected)


def test_losses_differ(given, monkeypatch):
    """That ratios, clipping and masks of the batch tell them apart."""
    trainer, _, batch = given
    seen = []
    for loss, level in LOSSES:
        monkeypatch.setattr(trainer, "loss_type", loss)
        monkeypatch.setattr(trainer, "importance_sampling_level", level)
        seen.append(float(loss_and_gradients(trainer, batch)[0]))
    assert len({round(value, 6) for value in seen}) == len(LOSSES)


def test_micro_batches_that_cut_groups_share_what_is_left(given, monkeypatch):
    trainer, policy, batch = given
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


def test_trls_head_is_given_the_completions_alone(given, monkeypatch):
    from trl.trainer import utils

    trainer, _, batch = given
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


def test_mixed_precision(model_dir, tmp_path, given):
    """bf16 moves numbers, in our layout as far as in TRL's."""
    flags = ["--rewards", '{"ranking": 1.0}', "--steps_per_generation", "2", "--beta", "0.05"]
    trainer, policy = grpo_trainer(model_dir, tmp_path, *flags, "--bf16", "true")
    batch = given[2]
    exact = loss_and_gradients(given[0], batch)[1]
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


# Log-probs over the trie.


def test_probabilities_of_all_sids_add_up_to_1(of_trie, monkeypatch):
    """Every SID of the catalogue behind one prompt, and each is what a beam says it is."""
    trainer, policy, batch = of_trie
    trie = policy.index.trie
    sids = torch.tensor([policy.template.vocabulary.encode(codes) for codes in trie.codes_ML])
    prompt = batch["prompt_ids"][:1][batch["prompt_mask"][:1].bool()].tolist()
    rows = {
        "prompt_ids": torch.tensor([prompt]).expand(len(sids), -1),
        "completion_ids": sids,
        "prompt_mask": torch.ones(len(sids), len(prompt), dtype=torch.long),
        "completion_mask": torch.ones_like(sids),
    }
    with torch.no_grad():
        log_p, entropy = log_probs(trainer, rows)
    assert log_p.sum(dim=1).exp().sum() == pytest.approx(1, abs=1e-5)
    # The chain rule: the entropy of the catalogue is that of each step, by how often it is taken.
    assert (log_p.sum(dim=1).exp() * entropy.sum(dim=1)).sum() == pytest.approx(
        float(-(log_p.sum(dim=1).exp() * log_p.sum(dim=1)).sum()), abs=1e-4
    )
    monkeypatch.setattr(trainer._trie, "temperature", 1.0)
    with torch.no_grad():
        plain = log_probs(trainer, rows)[0].sum(dim=1)
    (ranking,) = decode(policy.model, [prompt], policy.trie, len(sids), score="trie")
    scores = {
        tuple(codes): score for codes, score in zip(ranking.codes_BL, ranking.beam_scores_B, strict=True)
    }
    expected = [scores[tuple(codes)] for codes in trie.codes_ML]
    np.testing.assert_allclose(plain.numpy(), expected, atol=1e-4)


def dense_trie_log_probs(trainer, policy, batch):
    """TRL's layout, all logits, those of illegal tokens at minus infinity."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = trainer.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    logits = logits[:, -DEPTH - 1 : -1] / trainer.temperature
    illegal = torch.ones_like(logits, dtype=torch.bool)
    sids = [policy.template.vocabulary.encode(codes) for codes in policy.index.trie.codes_ML]
    for row, completion in enumerate(batch["completion_ids"].tolist()):
        for level in range(DEPTH):
            legal = [sid[level] for sid in sids if sid[:level] == completion[:level]]
            illegal[row, level, legal] = False
    log_p = log_softmax(logits.masked_fill(illegal, -torch.inf), dim=-1)
    return log_p.gather(2, batch["completion_ids"][:, :, None])[..., 0]


def test_log_probs_and_gradients_against_masked_logits(of_trie):
    trainer, policy, batch = of_trie
    mask = batch["completion_mask"]
    results = []
    for log_p in (log_probs(trainer, batch)[0], dense_trie_log_probs(trainer, policy, batch)):
        trainer.model.zero_grad()
        (log_p * mask * batch["advantages"][:, None]).sum().backward()
        results.append(
            ((log_p * mask).detach(), {name: p.grad.clone() for name, p in trainer.model.named_parameters()})
        )
    assert_same_step(*results, atol=1e-4)


def test_trie_in_every_layout_and_for_every_policy(of_trie, monkeypatch):
    trainer, _, batch = of_trie
    shared = loss_and_gradients(trainer, batch)
    assert_same_step(loss_and_gradients(trainer, batch, shared_prompt=False), shared)
    monkeypatch.setattr(trainer.args, "per_device_train_batch_size", 4)
    assert_same_step(loss_and_gradients(trainer, batch), shared)
    monkeypatch.undo()
    # The reference is the policy as it began, which it still is; the rollout's old log-probs as well.
    trainer._step, trainer._buffered_inputs = 0, None
    inputs = trainer._prepare_inputs(rows_with_hits(trainer, of_trie[1]))
    with torch.no_grad():
        now = log_probs(trainer, inputs)[0]
    for name in ("ref_per_token_logps", "old_per_token_logps"):
        torch.testing.assert_close(inputs[name], now, atol=1e-5, rtol=1e-5)


def test_short_sids_end_without_a_choice():
    codes = np.array([(0, -1, -1), (1, 0, -1), (1, 1, 0), (1, 1, 1), (2, 0, 0)])
    recommender = make_recommender(make_index(codes, (3, 2, 2)))
    vocabulary = recommender.template.vocabulary
    trie = DeviceTrie(recommender.index.trie, vocabulary)
    head = recommender.model.get_output_embeddings()
    labels = torch.full((len(codes), DEPTH), -100)
    for row, sid in enumerate(codes):
        ids = vocabulary.encode(sid)
        labels[row, : len(ids)] = torch.tensor(ids)
    # A state that depends on the prefix alone, as a model's does.
    state = {
        prefix: torch.randn(head.weight.shape[1])
        for sid in codes.tolist()
        for prefix in (tuple(sid[:level]) for level in range(DEPTH))
    }
    hidden = torch.stack(
        [torch.stack([state[tuple(sid[:level])] for level in range(DEPTH)]) for sid in codes.tolist()]
    )
    with torch.no_grad():
        log_p, entropy = TrieLogProbs(trie, 0.7)(head, hidden, labels)
    assert log_p.sum(dim=1).exp().sum() == pytest.approx(1, abs=1e-6)
    assert (log_p[labels == -100] == 0).all() and (entropy[labels == -100] == 0).all()
    with pytest.raises(AssertionError, match="no SID of the trie"):
        TrieLogProbs(trie, 1.0)(head, hidden, labels.roll(1, dims=0)[:, [1, 0, 2]])


# The truth's cross-entropy, and pass@k.


@pytest.mark.parametrize("fixture", ["given", "of_trie"])
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
    if fixture == "of_trie":
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
    assert trainer._metrics["train"]["truth_loss"] == pytest.approx([float(entropy)] * 2, abs=1e-5)


def test_the_truth_travels_with_its_group(of_trie):
    trainer, policy, _ = of_trie
    batch = scored_batch(trainer, policy)
    assert batch["truth_ids"].shape == (32, DEPTH)
    asked = {}
    for row in trainer.rollout_rows:
        prompt = tuple(policy.template.encode_prompt(row["prompt"][-1]["content"]))
        asked.setdefault(prompt, set()).add(tuple(policy.template.sid_ids[row["target_item"]]))
    for ids, mask, truth in zip(batch["prompt_ids"], batch["prompt_mask"], batch["truth_ids"], strict=True):
        assert tuple(truth.tolist()) in asked[tuple(ids[mask.bool()].tolist())]


def test_without_a_weight_nothing_changes(given):
    trainer, _, batch = given
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
        total += float(trainer.compute_loss(trainer.model, half))
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


def test_pass_at_k_is_added_to_trls_advantages(given):
    trainer, policy, _ = given
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


# The reference, the command, and what is refused.


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
