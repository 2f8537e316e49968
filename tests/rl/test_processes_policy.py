"""A run killed from outside goes on as if nothing had happened; two rank, choose and judge as one."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from rl import train_dpo, train_grpo
from tests.processes import FSDP2, ROOT, SHARDED_ON_CPU, environment, in_two
from tests.rl.builders import grpo_flags, make_model_dir
from tests.rl.dpo_cases import dpo_flags

pytestmark = pytest.mark.slow

MAINS = {"grpo": (train_grpo.main, grpo_flags), "dpo": (train_dpo.main, dpo_flags)}
COMMON = "--seed 3 --logging_steps 1 --learning_rate 1e-3 --save_strategy steps --save_total_limit 9"
WORKER = f"""{SHARDED_ON_CPU}
from rl import train_dpo, train_grpo
{{"grpo": train_grpo, "dpo": train_dpo}}[sys.argv[1]].main(sys.argv[2:])
"""


def words(kind, model_dir, output, *flags):
    return [str(word) for word in MAINS[kind][1](model_dir, output, *COMMON.split(), *flags)]


def found(run):
    return tuple(json.loads((run / name).read_text()) for name in ("log_history.json", "acceptance.json"))


def column(history, name):
    return {row["step"]: row[name] for row in history if row.get(name) is not None}


def weights(run):
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize("kind", MAINS)
def test_a_killed_run_goes_on_exactly(kind, model_dir, tmp_path):
    """Killed by SIGKILL somewhere between its first checkpoint and its second."""
    flags = ["--max_steps", "12", "--save_steps", "4"]
    whole, run = tmp_path / "whole", tmp_path / "killed"
    MAINS[kind][0](words(kind, model_dir, whole, *flags))
    command = [sys.executable, "-m", f"rl.train_{kind}", *words(kind, model_dir, run, *flags)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        state, deadline = run / "checkpoint-4" / "trainer_state.json", time.monotonic() + 300
        while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL and state.is_file()
    assert not (run / "manifest.json").exists() and not (run / "model").exists()
    assert not (run / "checkpoint-12").exists()
    MAINS[kind][0](words(kind, model_dir, run, *flags, "--resume_from_checkpoint", "true"))
    (history, verdict), (expected, judged) = found(run), found(whole)
    for name in ("loss", "grad_norm", "reward", "kl", "eval_ndcg@10", "eval_hr@50", "eval_coverage@10"):
        assert column(history, name) == column(expected, name)
    assert len(column(history, "loss")) == 12 and column(history, "eval_ndcg@10").keys() == {0, 4, 8, 12}
    assert verdict == judged
    ours, theirs = weights(run), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def two(kind, model_dir, output, *flags, **more):
    """The command in two processes under torchrun."""
    worker = output.parent / "worker.py"
    worker.write_text(WORKER)
    return in_two([worker, kind, *words(kind, model_dir, output, *flags)], more).stdout


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", MAINS)
def test_two_processes_choose_and_judge_as_one(kind, sharding, tmp_path):
    """The start exactly (the same weights), what was trained up to another order of addition."""
    start = make_model_dir(tmp_path / "start", tied=False)
    # 48 prompts fill three steps of 16: at an epoch's ragged end accelerate would repeat rows for the second
    # process, where one process has a smaller step.
    flags = ["--max_prompts", "48", "--max_steps", "3", "--save_steps", "1", "--valid_cases", "39"]
    flags += ["--gradient_accumulation_steps"]
    whole, run = tmp_path / "one", tmp_path / "two"
    MAINS[kind][0](words(kind, start, whole, *flags, "2"))
    if sharding == "ddp":
        told = two(kind, start, run, *flags, "1")
    else:
        told = two(kind, start, run, *flags, "1", "--use_cpu", "false", **FSDP2)
    assert told.count("the model holds step") == 1
    (history, verdict), (expected, judged) = found(run), found(whole)
    first = [row for row in history if row["step"] == 0]
    assert first == [row for row in expected if row["step"] == 0] and first[0]["eval_hr@50"] > 0
    assert verdict["before"] == judged["before"] and verdict["cases"] == judged["cases"]
    for name in ("loss", "eval_ndcg@10", "eval_hr@50"):
        assert column(history, name) == pytest.approx(column(expected, name), rel=1e-3, abs=1e-3)
    assert verdict["step"]["kept_step"] == judged["step"]["kept_step"]
    assert (
        verdict["kl"]["mean"] == pytest.approx(judged["kl"]["mean"], rel=1e-2) and verdict["kl"]["mean"] > 0
    )
    ours, theirs = weights(run), weights(whole)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-4, msg=name)
