"""`--plan` of GRPO and DPO against real runs, on a model directory that has no weights."""

import json

import pytest

from prompts.opening import open_template
from rl import train_dpo, train_grpo
from serve.decoding.recommender import load_interactions
from sft.model_directory import save_parts
from sid_builder.artifact import writing
from sid_builder.errors import InputError

COMMON = "--report_to none --bf16 false --disable_tqdm true --valid_cases 0 --seed 1 --save_strategy no"
COMMANDS = {"grpo": train_grpo.main, "dpo": train_dpo.main}
FLAGS = {
    "grpo": "--num_generations 4 --per_device_train_batch_size 8 --gradient_accumulation_steps 2 "
    "--steps_per_generation 2 --max_prompts 14 --num_train_epochs 2",
    "dpo": '--num_beams 6 --negatives {"beam":2} --per_device_train_batch_size 4 --max_prompts 11',
}

SPLIT = ["--gradient_accumulation_steps", "1"]  # two optimizer steps a rollout


@pytest.fixture(scope="module")
def weightless(model_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("weightless") / "model"
    template = open_template(model_dir)
    with writing(path, "model") as artifact:
        interactions = load_interactions(model_dir)
        save_parts(artifact.path, template.tokenizer, template.pack, template.index, interactions)
        (artifact.path / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    assert not list(path.glob("*.safetensors"))
    return path


def plan(stage, model, output, capsys, *more):
    flags = f"--model_name_or_path {model} --output_dir {output} --plan true {COMMON} {FLAGS[stage]}"
    COMMANDS[stage]([*flags.split(), *more])
    text = capsys.readouterr().out
    return text, json.loads(text.strip().splitlines()[-1])


@pytest.mark.parametrize("stage", COMMANDS)
def test_a_plan_is_what_then_happens(stage, model_dir, weightless, tmp_path, capsys):
    output = tmp_path / "out"
    text, figures = plan(stage, weightless, output, capsys)
    assert not output.exists() and "fits" in text
    real = f"--model_name_or_path {model_dir} --output_dir {output} --use_cpu true {COMMON} {FLAGS[stage]}"
    COMMANDS[stage](real.split())
    summary = json.loads((output / "manifest.json").read_text())["summary"]
    assert figures["steps"] == summary["steps"]
    parameters = json.loads((output / "model" / "manifest.json").read_text())["summary"]["parameters"]
    assert figures["parameters"] == figures["trainable"] == parameters


def test_what_a_policy_keeps(weightless, tmp_path, capsys):
    """Full training keeps a reference, LoRA and beta 0 do not; a shared prompt computes fewer tokens."""
    _, full = plan("grpo", weightless, tmp_path, capsys)
    memory = full["memory_gib"]
    assert set(memory) >= {"weights", "reference", "gradients", "optimizer", "activations", "kv cache"}
    assert "reference" not in plan("grpo", weightless, tmp_path, capsys, "--beta", "0")[1]["memory_gib"]
    text, lora = plan("grpo", weightless, tmp_path, capsys, "--training", "lora")
    assert "reference" not in lora["memory_gib"] and lora["trainable"] < full["trainable"]
    _, apart = plan("grpo", weightless, tmp_path, capsys, "--update", '{"shared_prompt": false}')
    assert full["flops_step"] < 0.8 * apart["flops_step"]
    costs = [
        plan("grpo", weightless, tmp_path, capsys, "--rollout", json.dumps(rollout))[1]["flops_step"]
        for rollout in ({"mode": "sample"}, {"oversample": 1.5}, {"mode": "mixed"})
    ]
    assert costs[0] == full["flops_step"] < costs[1] == costs[2]
    _, stale = plan("grpo", weightless, tmp_path, capsys, "--num_iterations", "2")
    assert stale["steps"] == 2 * full["steps"], "every rollout is learnt from twice"


@pytest.mark.parametrize("stage", COMMANDS)
def test_evaluations_are_counted(stage, model_dir, weightless, tmp_path, capsys):
    """Where checkpoints are saved, and at the last step; judging takes fewer cases where a step is chosen."""
    output = tmp_path / "out"
    more = ["--valid_cases", "20", "--save_strategy", "steps", "--save_steps", "2", "--max_steps", "5"]
    _, figures = plan(stage, weightless, output, capsys, *more)
    real = f"--model_name_or_path {model_dir} --output_dir {output} --use_cpu true {COMMON} {FLAGS[stage]}"
    COMMANDS[stage]([*real.split(), *more])
    history = json.loads((output / "log_history.json").read_text())
    assert figures["evaluations"] == sum("eval_ndcg@10" in row and row["step"] > 0 for row in history) == 3
    silent = plan(stage, weightless, output, capsys, *more, "--valid_cases", "0")[1]
    never = plan(stage, weightless, output, capsys, *more, "--save_strategy", "no", "--max_steps", "1")[1]
    once = plan(stage, weightless, output, capsys, *more, "--max_steps", "1")[1]
    assert (silent["evaluations"], never["evaluations"], once["evaluations"]) == (0, 1, 1)
    # With a best step to choose, half of the cases are judged; without one, all of them.
    assert silent["flops_device"] < once["flops_device"] < never["flops_device"]


def test_quantised_weights_take_less(weightless, tmp_path, capsys):
    lora = ["--training", "lora"]
    whole = plan("grpo", weightless, tmp_path, capsys, *lora)[1]["memory_gib"]
    quantised = plan("grpo", weightless, tmp_path, capsys, *lora, "--load_in_4bit", "true")[1]["memory_gib"]
    assert quantised["weights"] < 0.9 * whole["weights"]


def test_what_training_refuses_a_plan_refuses(weightless, tmp_path, capsys, monkeypatch):
    with pytest.raises(InputError, match="patience: 2 has no valid cases to rank"):
        plan("dpo", weightless, tmp_path, capsys, "--patience", "2")
    with pytest.raises(InputError, match="save_steps: 1.0 falls inside a generation batch"):
        plan("grpo", weightless, tmp_path, capsys, "--save_strategy", "steps", "--save_steps", "1", *SPLIT)
    launch = tmp_path / "launch.yaml"
    launch.write_text("distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {zero_stage: 3}\n")
    monkeypatch.setenv("ACCELERATE_CONFIG_FILE", str(launch))
    for stage in COMMANDS:
        with pytest.raises(InputError, match="which zero3 shares out"):
            plan(stage, weightless, tmp_path, capsys)
    launch.write_text("distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {fsdp_version: 2}\n")
    assert "whole policy" in plan("grpo", weightless, tmp_path, capsys)[1]["memory_gib"]
    launch.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")
    shared = plan("grpo", weightless, tmp_path, capsys)[1]
    assert (shared["processes"], shared["sharding"]) == (2, "ddp")
