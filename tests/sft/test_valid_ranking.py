"""Valid ranked inside Trainer's evaluation: figures, the best step, and a training that does not notice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from serve.decoding.recommender import Recommender
from serve.evaluation.metrics import metrics_of_ranks
from serve.evaluation.model_ranking import rank_targets, sample_cases
from sft import merge, train
from sid_builder.artifact import open_artifact
from sid_builder.errors import InputError
from tests.sft.builders import make_interactions, write_checkpoint, write_sids
from tests.sft.command_line import COMMON, FROM_SCRATCH

ROOT = Path(__file__).parents[2]
FLAGS = [*COMMON, "--per_device_train_batch_size", "8", "--task_weights", '{"seqrec": 1.0}']
FULL = [*FROM_SCRATCH, "--learning_rate", "0.003"]


@pytest.fixture(scope="module")
def starts(index, tmp_path_factory):
    """Flags of a start, by way of training. Dropout shows whether a random stream has moved."""
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "c", index)
    lora = ["--model_name_or_path", str(checkpoint), "--lora", '{"dropout": 0.3}', "--learning_rate", "0.01"]
    return {"lora": lora, "full": FULL}


def flags_of(sids, output_dir, *flags):
    return ["--sid_dir", str(sids), "--output_dir", str(output_dir), *FLAGS, *map(str, flags)]


def run_sft(sids, output_dir, *flags):
    train.main(flags_of(sids, output_dir, *flags))
    return json.loads((output_dir / "log_history.json").read_text())


def column(history, name):
    return {row["step"]: row[name] for row in history if name in row}


def weights(directory):
    """Every tensor of a trained/ or a checkpoint."""
    from safetensors.torch import load_file

    (file,) = [*directory.glob("model.safetensors"), *directory.glob("adapter_model.safetensors")]
    return load_file(file)


def same_weights(first, second):
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def script(monkeypatch, *values):
    """Let the evaluations find these NDCG@10, one after the other."""
    from sft.valid_ranking import FIGURES, ValidRanking

    left = list(values)
    monkeypatch.setattr(ValidRanking, "figures", lambda self, model: dict.fromkeys(FIGURES, left.pop(0)))


EVERY_STEP = ["--save_strategy", "steps", "--save_steps", 1]


@pytest.mark.parametrize("training", ["lora", "full"])
def test_evaluation_leaves_the_training_as_it_was(sids, starts, tmp_path, training):
    flags = [*starts[training], "--max_steps", 4, *EVERY_STEP, "--save_total_limit", 9]
    without = run_sft(sids, tmp_path / "without", *flags)
    ranked = run_sft(
        sids, tmp_path / "with", *flags, "--valid_cases", 12, "--load_best_model_at_end", "false"
    )
    assert column(ranked, "eval_ndcg@10").keys() == {1, 2, 3, 4}
    for name in ("loss", "grad_norm", "mean_token_accuracy", "num_tokens"):
        assert column(ranked, name) == column(without, name)
    assert same_weights(tmp_path / "with" / "trained", tmp_path / "without" / "trained")

    # Resumed in the middle, elsewhere: the same losses, figures and best step.
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "with" / "checkpoint-2", cut / "checkpoint-2")
    if training == "lora":
        shutil.copytree(tmp_path / "with" / "base", cut / "base")
    more = ["--valid_cases", 12, "--load_best_model_at_end", "false", "--resume_from_checkpoint", "true"]
    resumed = run_sft(sids, cut, *flags, *more)
    for name in ("loss", "eval_ndcg@10", "eval_hr@50", "eval_loss"):
        assert column(resumed, name) == column(ranked, name)
    assert same_weights(cut / "trained", tmp_path / "with" / "trained")


@pytest.mark.parametrize("training", ["lora", "full"])
def test_the_best_step_becomes_trained(sids, starts, tmp_path, training, monkeypatch, capsys):
    script(monkeypatch, 0.1, 0.5, 0.2, 0.3)
    out = tmp_path / "run"
    run_sft(
        sids,
        out,
        *starts[training],
        "--max_steps",
        4,
        *EVERY_STEP,
        "--valid_cases",
        12,
        "--save_total_limit",
        3,
    )
    assert {path.name for path in out.glob("checkpoint-*")} == {
        "checkpoint-2",
        "checkpoint-3",
        "checkpoint-4",
    }
    assert same_weights(out / "trained", out / "checkpoint-2")
    assert not same_weights(out / "trained", out / "checkpoint-4")
    assert "best valid NDCG@10 0.5000 at step 2 of 4; trained/ holds step 2" in capsys.readouterr().out
    outcome = open_artifact(out, "sft").summary["valid"]
    assert outcome == {"metric": "ndcg@10", "best": 0.5, "best_step": 2, "kept_step": 2, "last_step": 4}


def test_a_run_moved_before_it_is_resumed_keeps_its_best(sids, tmp_path, monkeypatch):
    flags = [*FULL, "--max_steps", 4, *EVERY_STEP, "--valid_cases", 12]
    script(monkeypatch, 0.1, 0.5, 0.2, 0.3)
    run_sft(sids, tmp_path / "whole", *flags, "--save_total_limit", 9)
    moved = tmp_path / "moved"
    for step in (2, 3):
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", moved / f"checkpoint-{step}")
    shutil.rmtree(tmp_path / "whole" / "checkpoint-2")
    script(monkeypatch, 0.3)
    run_sft(sids, moved, *flags, "--resume_from_checkpoint", "true")
    assert same_weights(moved / "trained", moved / "checkpoint-2")

    # Without it, the run ends with its last weights and says so.
    shutil.rmtree(moved / "checkpoint-2")
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", moved / "checkpoint-3")
    script(monkeypatch, 0.3)
    run_sft(sids, moved, *flags, "--resume_from_checkpoint", "true")
    outcome = open_artifact(moved, "sft").summary["valid"]
    assert (outcome["best_step"], outcome["kept_step"]) == (2, 4)


def test_patience_ends_the_run(sids, tmp_path, monkeypatch):
    script(monkeypatch, 0.5, 0.4, 0.3)
    out = tmp_path / "run"
    run_sft(sids, out, *FULL, "--max_steps", 9, *EVERY_STEP, "--valid_cases", 12, "--patience", 2)
    outcome = open_artifact(out, "sft").summary["valid"]
    assert (outcome["last_step"], outcome["kept_step"]) == (3, 1)


def test_figures_are_those_of_the_merged_model(sids, starts, tmp_path):
    """By default each epoch is ranked; an adapter in training ranks as the model it is merged into."""
    out, flags = tmp_path / "run", ["--num_train_epochs", 2, "--valid_cases", 12, "--gradient_checkpointing"]
    history = run_sft(sids, out, *starts["lora"], *flags, "true", "--load_best_model_at_end", "false")
    merge.main(["--adapter", str(out), "--output_dir", str(tmp_path / "model")])
    recommender = Recommender.load(tmp_path / "model", device="cpu")
    cases = sample_cases(recommender.interactions.histories("valid"), 12, seed=3)
    ranked = rank_targets(recommender, cases, progress=False)
    expected = metrics_of_ranks(ranked.item_rank_C)
    assert sum("eval_ndcg@10" in row for row in history) == 2
    last = [row for row in history if "eval_ndcg@10" in row][-1]
    for name in ("ndcg@10", "hr@10", "hr@50"):
        assert last[f"eval_{name}"] == pytest.approx(expected[name], abs=1e-9)
    assert last["eval_coverage@10"] == ranked.coverage
    assert last["eval_hr@50"] > 0, "else the comparison says nothing"

    template, total, count = recommender.template, 0.0, 0
    for case in range(len(cases)):
        prompt = template.seqrec_prompt(cases.history(case))
        answer = template.sid_ids[int(cases.targets_C[case])] + template.end_ids
        with torch.no_grad():
            logits = recommender.model(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        count += len(answer)
    assert last["eval_loss"] == pytest.approx(total / count, abs=1e-3)


def test_modes_of_modules_are_put_back(recommender, monkeypatch):
    from sft.valid_ranking import as_before

    model = recommender.model
    model.train()
    model.base_model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    try:
        with as_before(model):
            model.eval()
            torch.rand(3), np.random.rand(3)
        assert {name: module.training for name, module in model.named_modules()} == before
        assert len(set(before.values())) == 2
    finally:
        model.eval()


def test_a_model_that_trains_with_flash_attention_is_ranked(recommender):
    from sft.valid_ranking import ValidRanking

    interactions = make_interactions(recommender.index.catalog.num_items)
    ranking = ValidRanking(recommender.template, interactions, 10, seed=0)
    config, expected = recommender.model.config, ranking.figures(recommender.model)
    config._attn_implementation = "flash_attention_2"
    try:
        assert ranking.figures(recommender.model) == expected
        assert config._attn_implementation == "flash_attention_2"
    finally:
        config._attn_implementation = "sdpa"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--valid_cases -1", "valid_cases: -1; give 0"),
        ("--eval_strategy epoch", "eval_strategy: epoch has no valid cases to rank; set valid_cases"),
        ("--patience 2", "patience: 2 has no valid cases"),
        ("--valid_cases 9 --metric_for_best_model bleu", "metric_for_best_model: 'bleu' is not measured"),
        (
            "--valid_cases 9 --save_strategy steps --save_steps 4 --eval_strategy steps --eval_steps 2 "
            "--load_best_model_at_end true",
            "eval_steps: 2 ranks steps that save_steps: 4 keeps no checkpoint of",
        ),
        ("--valid_cases 9 --save_strategy no --patience 1", "patience: 1 ends a run behind its best step"),
        ("--push_to_hub true", "push_to_hub: a run directory holds people's interactions.*sft.merge"),
        ("--hub_token hf_secret", "hub_token: would be kept in manifests"),
    ],
)
def test_flags_that_contradict_each_other(sids, tmp_path, flags, message):
    with pytest.raises(InputError, match=message) as caught:
        run_sft(sids, tmp_path / "out", *FULL, *flags.split())
    assert "\n" not in str(caught.value) and "hf_secret" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_sharded_weights_are_refused(tmp_path, monkeypatch):
    from trl import SFTConfig

    from sft.valid_ranking import schedule_evaluation

    config = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="valid_cases: 9 cannot be ranked under FSDP"):
        schedule_evaluation(config, 9)


def test_data_without_a_valid_case(index, tmp_path):
    from sid_builder.interactions import Interactions

    pairs = Interactions.leave_one_out(["a", "b"], [np.array([1, 2]), np.array([3, 4])])
    sids = write_sids(tmp_path / "sids", index, pairs)
    with pytest.raises(InputError, match="valid_cases: 9, but of 0 valid cases none"):
        run_sft(sids, tmp_path / "out", *FULL, "--valid_cases", 9)


@pytest.mark.slow
def test_two_processes_find_the_figures_of_one(sids, tmp_path):
    """Each ranks half of the cases; at step 0 both have the same weights."""
    flags = [*FULL, "--max_steps", 1, "--save_strategy", "no", "--valid_cases", 13, "--eval_on_start", "true"]
    one = run_sft(sids, tmp_path / "one", *flags)[0]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", "-m", "sft.train"]
    words = flags_of(sids, tmp_path / "two", *flags, "--per_device_train_batch_size", 4)
    done = subprocess.run([*launch, *words], cwd=ROOT, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "log_history.json").read_text())[0]
    assert one["step"] == two["step"] == 0
    for name in ("eval_ndcg@10", "eval_hr@10", "eval_hr@50", "eval_coverage@10"):
        assert two[name] == one[name]
    assert one["eval_hr@50"] > 0
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=0.02)  # the last batch is padded
