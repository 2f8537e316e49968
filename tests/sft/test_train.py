"""sft.train and sft.merge through their own command lines, on models of two layers."""

import json
import shutil

import pytest
import torch

from serve.decoding.recommender import Recommender
from sft import merge
from sid_builder.artifact import open_artifact
from sid_builder.errors import InputError
from tests.sft.builders import make_interactions, write_checkpoint
from tests.sft.command_line import FROM_SCRATCH, SCRATCH, run_sft


def weights(path):
    from transformers import AutoModelForCausalLM

    return {
        key: value.clone() for key, value in AutoModelForCausalLM.from_pretrained(path).state_dict().items()
    }


@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", True), ("llama", False)])
def test_lora_moves_exactly_the_sid_rows(index, sids, tmp_path, architecture, tied):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", index, architecture, tied)
    flags = ["--num_train_epochs", 1, "--learning_rate", 0.01, "--save_strategy", "no"]
    run_sft(sids, tmp_path / "sft", "--model_name_or_path", checkpoint, *flags)
    merge.main(["--adapter", str(tmp_path / "sft"), "--output_dir", str(tmp_path / "model")])
    before, after = weights(tmp_path / "sft" / "base"), weights(tmp_path / "model")
    recommender = Recommender.load(tmp_path / "model")
    sid_rows = torch.zeros(before["model.embed_tokens.weight"].shape[0], dtype=torch.bool)
    sid_rows[torch.from_numpy(recommender.template.vocabulary.all_ids)] = True
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        moved = (before[name] != after[name]).any(dim=1)
        assert torch.equal(moved, sid_rows), f"{name}: exactly the SID rows move"
    assert (
        (before["lm_head.weight"] is before["model.embed_tokens.weight"])
        or not tied
        or torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
    )
    projection = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(before[projection], after[projection]), (
        "adapters are merged into the linear layers"
    )
    assert (tmp_path / "sft" / "curves.png").stat().st_size > 5_000
    assert json.loads((tmp_path / "sft" / "log_history.json").read_text())[0]["loss"] > 0


@pytest.mark.parametrize("init", ["mean", "text", "codebook"])
@pytest.mark.parametrize("tied", [True, False])
def test_gradient_of_new_rows_comes_through_head_and_input(index, sids, tmp_path, tied, init):
    """The fused head's gradient on the SID rows equals that of a plain cross-entropy over full logits."""
    from trl import SFTConfig

    from prompts.pack import PromptPack
    from sft.adapters import lora_config
    from sft.arguments import NewTokenOptions, SftArguments
    from sft.examples import TaskContext
    from sft.shards import training_rows
    from sft.start import start_model
    from sft.trainer import SidTrainer

    checkpoint = write_checkpoint(tmp_path / "checkpoint", index, "qwen3", tied)
    options = NewTokenOptions(init=init)
    args = SftArguments(sid_dir=str(sids), model_name_or_path=str(checkpoint), new_tokens=options)
    interactions = make_interactions(40)
    model, tokenizer, template, ids = start_model(args, PromptPack.load("chat"), index, 0)
    context = TaskContext(index, interactions, template)
    table = training_rows(context, {"seqrec": 1.0}, 0, tmp_path / "rows", {}).select(range(6))
    config = SFTConfig(
        str(tmp_path / "run"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_length=None,
        remove_unused_columns=False,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SidTrainer(
        model, config, table, tokenizer, template, interactions, 0, lora_config(args, model, ids)
    )
    batch = trainer.data_collator([table[i] for i in range(6)])
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    fused = _row_gradients(trainer.model)
    trainer.model.zero_grad()
    labels = batch.pop("shift_labels")
    del batch["labels"]
    trainer.model.eval()  # no LoRA dropout; B is zero, so the loss is the same
    logits = trainer.model(**batch).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100).backward()
    plain = _row_gradients(trainer.model)
    assert len(fused) == len(plain) == (1 if tied else 2)
    for ours, reference in zip(fused, plain, strict=True):
        # Float32 noise is that of the largest entries, which small ones are sums of.
        atol = 1e-5 * float(reference.abs().max())
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=atol)
        assert ours.abs().sum() > 0


def _row_gradients(model):
    return [
        p.grad.clone()
        for name, p in model.named_parameters()
        if "trainable_tokens" in name and p.grad is not None
    ]


def test_trl_still_needs_the_bias(index, tmp_path):
    """PEFT's wrapper has no `bias`, which TRL's fused head reads. When this fails, delete the line in
    sft/trainer.py.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path / "c", index))
    wrapped = get_peft_model(model, LoraConfig(trainable_token_indices=[3], target_modules="all-linear"))
    assert not hasattr(wrapped.get_output_embeddings(), "bias")


FULL = [*FROM_SCRATCH, "--learning_rate", 0.003]


@pytest.mark.parametrize("training", ["full", "lora"])
def test_resume_continues_the_loss_curve(index, sids, tmp_path, training):
    start = FULL
    if training == "lora":
        start = ["--model_name_or_path", write_checkpoint(tmp_path / "checkpoint", index)]
    flags = [
        *start,
        "--max_steps",
        6,
        "--save_steps",
        3,
        "--save_strategy",
        "steps",
        "--save_total_limit",
        5,
    ]
    run_sft(sids, tmp_path / "whole", *flags)
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "cut" / "checkpoint-3")
    if training == "lora":
        shutil.copytree(tmp_path / "whole" / "base", tmp_path / "cut" / "base")
    run_sft(sids, tmp_path / "cut", *flags, "--resume_from_checkpoint", "true")

    def losses(run):
        history = json.loads((tmp_path / run / "log_history.json").read_text())
        return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}

    whole, cut = losses("whole"), losses("cut")
    assert [cut[step] for step in (4, 5, 6)] == pytest.approx([whole[step] for step in (4, 5, 6)], abs=1e-6)
    with pytest.raises(InputError, match="is not empty; pass --resume_from_checkpoint true"):
        run_sft(sids, tmp_path / "whole", *flags)


def test_a_refused_run_leaves_the_old_one_as_it_was(sids, tmp_path):
    """Whatever is refused after the output directory was looked at must not have cost a finished run."""
    short = ["--max_steps", 1, "--save_strategy", "no"]
    run_sft(sids, tmp_path / "run", *FULL, *short)
    for mistake in (["--model_name_or_path", "no/such/checkpoint"], ["--from_scratch", '{"num_heads": 5}']):
        with pytest.raises(InputError):
            run_sft(
                sids,
                tmp_path / "run",
                *mistake,
                "--training",
                "full",
                "--prompt_pack",
                "plain",
                "--overwrite",
                "true",
            )
        open_artifact(tmp_path / "run", "sft").verify_hashes()
    run_sft(sids, tmp_path / "run", *FULL, *short, "--overwrite", "true")
    open_artifact(tmp_path / "run", "sft").verify_hashes()


def test_from_scratch_learns_and_merges(index, sids, tmp_path):
    flags = [*FULL, "--num_train_epochs", 12, "--save_strategy", "no", "--valid_cases", 10]
    weights_flag = ["--task_weights", '{"seqrec": 1.0, "title2sid": 2.0}']
    run_sft(sids, tmp_path / "sft", *flags, *weights_flag)
    merge.main(["--adapter", str(tmp_path / "sft"), "--output_dir", str(tmp_path / "model")])
    recommender = Recommender.load(tmp_path / "model")
    history = json.loads((tmp_path / "sft" / "log_history.json").read_text())
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < 0.6 * losses[0]
    assert any("eval_ndcg@10" in entry for entry in history)
    assert recommender.interactions.num_sequences == 30
    assert recommender.tokenizer.chat_template == recommender.template.pack.chat_template


def test_full_training_of_a_checkpoint(index, sids, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", index, "llama", tied=False)
    flags = ["--training", "full", "--max_steps", 2, "--save_strategy", "no", "--learning_rate", 0.01]
    run_sft(sids, tmp_path / "sft", "--model_name_or_path", checkpoint, *flags)
    merge.main(["--adapter", str(tmp_path / "sft"), "--output_dir", str(tmp_path / "model")])
    before, after = weights(checkpoint), weights(tmp_path / "model")
    projection = "model.layers.1.mlp.down_proj.weight"
    assert not torch.equal(before[projection], after[projection])
    assert len(after["lm_head.weight"]) > len(before["lm_head.weight"])
    Recommender.load(tmp_path / "model")


def test_quantised_lora(index, sids, tmp_path):
    pytest.importorskip("bitsandbytes")
    checkpoint = write_checkpoint(tmp_path / "checkpoint", index, "llama", tied=False)
    flags = ["--max_steps", 2, "--save_strategy", "no", "--load_in_4bit", "true", "--learning_rate", 0.01]
    run_sft(sids, tmp_path / "sft", "--model_name_or_path", checkpoint, *flags)
    merge.main(["--adapter", str(tmp_path / "sft"), "--output_dir", str(tmp_path / "model")])
    before, after = weights(tmp_path / "sft" / "base"), weights(tmp_path / "model")
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert torch.isfinite(after["model.layers.0.mlp.up_proj.weight"]).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_name_or_path", "x", "--from_scratch", SCRATCH], "model_name_or_path: .*give exactly one"),
        ([], "model_name_or_path: None .*give exactly one"),
        (["--from_scratch", SCRATCH], "training: 'lora' would freeze random weights"),
        ([*FULL, "--task_weights", '{"seqrek": 1}'], "task_weights: 'seqrek' is not known"),
        ([*FULL, "--task_weights", '{"seqrec": -1}'], "task_weights.seqrec: -1"),
        ([*FULL, "--task_weights", '{"seqrec": 0}'], "trains nothing"),
        ([*FULL, "--prompt_pack", "nowhere"], "prompt_pack: 'nowhere'"),
        (
            ["--from_scratch", '{"hiden_size": 3}', "--training", "full"],
            "from_scratch.hiden_size: unknown key.*hidden_size",
        ),
        (
            ["--model_name_or_path", "no/such/checkpoint"],
            "model_name_or_path: 'no/such/checkpoint' cannot be opened",
        ),
        ([*FULL, "--learning_rat", 1], "--learning_rat: unknown key; did you mean 'learning_rate'"),
        ([*FULL, "--resume_from_checkpoint", "true"], "holds no checkpoint"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(sids, tmp_path, flags, message):
    with pytest.raises(InputError, match=message) as caught:
        run_sft(sids, tmp_path / "out", *map(str, flags))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_sid_dir_must_be_complete(sids, tmp_path):
    broken = tmp_path / "sids"
    shutil.copytree(sids, broken)
    codes = broken / "sid_index" / "codes.npy"
    codes.write_bytes(codes.read_bytes()[:-8])
    with pytest.raises(InputError, match="codes.npy: has .* bytes, manifest.json says"):
        run_sft(broken, tmp_path / "out", *FULL)
    with pytest.raises(InputError, match="sid_dir: .* is no directory"):
        run_sft(tmp_path / "nowhere", tmp_path / "out", *FULL)
