"""The chain of README.md as a user runs it: real command lines, a process each, on a small generated shop."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sid_builder.artifact import open_artifact

ROOT = Path(__file__).parents[1]
CPU = ["--use_cpu", "true", "--bf16", "false", "--disable_tqdm", "true", "--save_strategy", "no"]
LAUNCH = ["accelerate", "launch", "--config_file", "configs/accelerate/cpu.yaml", "-m"]


def run(*command: object) -> str:
    """Run a command of README.md from the repository's root; its output, or a failure that shows it."""
    bin_dir = Path(sys.executable).parent
    words = [str(word) for word in command]
    words = [str(bin_dir / words[0]), *words[1:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280, env={**os.environ})
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_whole_chain(tmp_path):
    sids, sft, model, grpo, dpo = (tmp_path / name for name in ("sids", "sft", "model", "grpo", "dpo"))
    toy = json.dumps({"seed": 7, "num_users": 400})
    build = ["--config", "configs/sid/toy_rq_kmeans.yaml", "--source_args", toy, "--output_dir", sids]
    run("python", "-m", "sid_builder.build", *build)
    learn = ["--config", "configs/sft/toy_qwen3_scratch.yaml", "--num_train_epochs", 4, "--valid_cases", 50]
    run(*LAUNCH, "sft.train", *learn, "--sid_dir", sids, "--output_dir", sft, *CPU)
    run("python", "-m", "sft.merge", "--adapter", sft, "--output_dir", model)
    short = ["--model_name_or_path", model, "--max_prompts", 64, "--valid_cases", 50, *CPU]
    said = run(
        *LAUNCH, "rl.train_grpo", "--config", "configs/grpo/toy_cpu.yaml", *short, "--output_dir", grpo
    )
    assert re.search(r"(helped|hurt|no clear change): NDCG@10", said)
    # A model of a few steps hits nothing: let every prompt give a pair.
    anything = [*short, "--only_hits", "false"]
    run(*LAUNCH, "rl.train_dpo", "--config", "configs/dpo/toy_cpu.yaml", *anything, "--output_dir", dpo)
    evaluate = ["--model", model, "--also", grpo / "model", dpo / "model", "--max_cases", 100]
    table = run("python", "-m", "serve.evaluate", *evaluate, "--output_dir", tmp_path / "results")
    for row in ("popularity", "one-hop", "model", "grpo/model", "dpo/model"):
        assert row in table, table
    results = open_artifact(tmp_path / "results", "evaluation")
    results.verify_hashes()
    for directory, kind in ((sids, "sids"), (sft, "sft"), (model, "model"), (grpo / "model", "model")):
        open_artifact(directory, kind).verify_hashes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["sid_builder.build", "--config", "configs/sid/toy_rq_kmeans.yaml", "--embeder", "x"],
        ["sft.train", "--config", "configs/sft/toy_qwen3_scratch.yaml", "--sid_dir", "nowhere"],
        ["sft.merge", "--adapter", "nowhere"],
        ["rl.train_grpo", "--config", "configs/grpo/toy_cpu.yaml", "--model_name_or_path", "nowhere"],
        ["serve.evaluate", "--model", "nowhere"],
    ],
    ids=lambda command: command[0],
)
def test_mistakes_end_in_one_line(tmp_path, command):
    """Exit status 2, one line on stderr that begins with `error:`, nothing written."""
    out = tmp_path / "out"
    words = [sys.executable, "-m", *command, "--output_dir", str(out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "nowhere" in line or "embeder" in line
    assert "Traceback" not in done.stderr
    assert not out.exists()
