"""Warm-up: the SID rows alone, then all; to the bit, and across a resume."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trl import SFTConfig

from sft.arguments import NewTokenOptions, SftArguments
from sft.warmup import check_warmup
from sid_builder.errors import InputError
from tests.sft.builders import write_checkpoint
from tests.sft.command_line import COMMON, run_sft

ROOT = Path(__file__).parents[2]
EMBEDDINGS = ("embed_tokens", "lm_head")


@pytest.fixture(scope="module")
def checkpoint(index, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "untied", index, "llama", tied=False)


def flags(checkpoint, **new_tokens):
    """Six optimizer steps of two micro-batches, every one kept."""
    steps = ["--max_steps", 6, "--save_strategy", "steps", "--save_steps", 1, "--save_total_limit", 9]
    batches = ["--gradient_accumulation_steps", 2, "--per_device_train_batch_size", 2]
    start = ["--model_name_or_path", checkpoint, "--new_tokens", json.dumps({"warmup_steps": 3} | new_tokens)]
    return [*start, *steps, *batches, "--learning_rate", 0.01]


def saved(run, step):
    """Trainable weights after a step."""
    directory = run / f"checkpoint-{step}"
    files = [directory / name for name in ("adapter_model.safetensors", "model.safetensors")]
    return load_file(next(file for file in files if file.is_file()))


def moved(run, first, last):
    """Names of weights that differ between two steps, and those that do not."""
    before, after = saved(run, first), saved(run, last)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    return changed, before.keys() - changed


@pytest.fixture(scope="module")
def whole(sids, checkpoint, tmp_path_factory):
    """A run under weight decay, which would shrink a parameter whose gradient is but zero."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_sft(sids, run, *flags(checkpoint), "--weight_decay", 0.1)
    return run


def test_adapters_wait_and_rows_move(whole):
    changed, waiting = moved(whole, 1, 3)
    assert changed and all(name.endswith("trainable_tokens_delta") for name in changed)
    assert len(changed) == 2, "input embedding and head"
    assert waiting and all("lora_" in name for name in waiting)
    assert not any(tensor.any() for name, tensor in saved(whole, 3).items() if "lora_B" in name)
    assert not moved(whole, 3, 5)[1], "then everything learns"


@pytest.mark.parametrize("training", ["lora", "full"])
def test_of_whole_embeddings_only_the_sid_rows_move(index, sids, checkpoint, tmp_path, training):
    run_sft(sids, tmp_path / "run", *flags(checkpoint, train="full"), "--training", training)
    first, third, fifth = (saved(tmp_path / "run", step) for step in (1, 3, 5))
    ids = torch.arange(len(index.semantic_ids.all_tokens())) + old_rows(checkpoint)
    for name, before in first.items():
        rows = (before != third[name]).reshape(len(before), -1).any(dim=1)
        if any(part in name for part in EMBEDDINGS):
            assert rows[ids].any() and int(rows.sum()) == int(rows[ids].sum()), name
            head = "lm_head" in name
            assert not head or (third[name] != fifth[name]).any(dim=1).all(), "then every row of the head"
        else:
            assert not rows.any(), name
            assert not torch.equal(before, fifth[name]), name


def old_rows(checkpoint):
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(checkpoint))


@pytest.mark.parametrize("killed_after", [2, 4])
def test_a_killed_run_goes_on_as_the_whole_one(sids, checkpoint, whole, tmp_path, killed_after):
    cut, name = tmp_path / "cut", f"checkpoint-{killed_after}"
    for kept in ("base", name):
        shutil.copytree(whole / kept, cut / kept)
    run_sft(sids, cut, *flags(checkpoint), "--weight_decay", 0.1, "--resume_from_checkpoint", "true")
    losses = [
        {entry["step"]: entry["loss"] for entry in json.loads(path.read_text()) if "loss" in entry}
        for path in (whole / "log_history.json", cut / "log_history.json")
    ]
    for step in range(killed_after + 1, 7):
        assert losses[1][step] == pytest.approx(losses[0][step], abs=1e-6)
    for weight, wanted in saved(whole, 6).items():
        torch.testing.assert_close(saved(cut, 6)[weight], wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("train", "weight_decay", "environment", "message"),
    [
        ("full", 0.1, None, "weight_decay: 0.1 would shrink the old rows"),
        ("rows", 0.0, "ACCELERATE_USE_DEEPSPEED", "warmup_steps: 3 cannot be kept under DeepSpeed"),
        ("full", 0.0, "ACCELERATE_USE_FSDP", "warmup_steps: 3 with whole embeddings cannot be kept"),
    ],
)
def test_refused(sids, tmp_path, monkeypatch, train, weight_decay, environment, message):
    """The check alone: with the variable set before, TRL's configuration would start the real thing."""
    config = SFTConfig(
        str(tmp_path / "run"), use_cpu=True, bf16=False, report_to="none", weight_decay=weight_decay
    )
    if environment:
        monkeypatch.setenv(environment, "true")
    options = NewTokenOptions(train=train, warmup_steps=3)
    with pytest.raises(InputError, match=message):
        check_warmup(SftArguments(sid_dir=str(sids), model_name_or_path="x", new_tokens=options), config)
    check_warmup(SftArguments(sid_dir=str(sids), model_name_or_path="x"), config)


@pytest.mark.slow
def test_two_processes_hold_the_same_parameters_back(sids, checkpoint, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "sft.train"]
    further = ["--sid_dir", sids, "--output_dir", tmp_path / "run", *COMMON, *flags(checkpoint)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    subprocess.run([*command, *map(str, further)], cwd=ROOT, env=environment, check=True, timeout=300)
    changed, waiting = moved(tmp_path / "run", 1, 3)
    assert changed and all(name.endswith("trainable_tokens_delta") for name in changed)
    assert waiting and not moved(tmp_path / "run", 3, 5)[1]
