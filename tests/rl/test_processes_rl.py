"""Two processes train what one trains, under DDP and FSDP2, from the same rollouts; a killed run goes on.

Two processes of 16 completions a device make the step of one process of 32: accelerate hands each its part of
the same generation batch, a group is never cut, and what is drawn for a prompt does not depend on the
process.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from rl import train_grpo
from tests.processes import FSDP2, SHARDED_ON_CPU, in_two
from tests.rl.builders import make_model_dir

pytestmark = pytest.mark.slow

FLAGS = [
    *("--use_cpu", "true", "--bf16", "false", "--disable_tqdm", "true", "--seed", "3", "--valid_cases", "0"),
    *("--num_generations", "8", "--steps_per_generation", "2", "--gradient_accumulation_steps", "2"),
    *("--logging_steps", "1", "--max_steps", "4", "--learning_rate", "0.001", "--beta", "0.05"),
    *("--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "5"),
    *("--rewards", '{"ranking": 1.0, "prefix": 0.5}'),
]
MIXED = ["--rollout", '{"mode": "mixed", "temperature": 1.2, "idle_groups": "skip"}']
SAMPLE = ["--rollout", '{"mode": "sample", "oversample": 1.5, "add_ground_truth": true}']
UPDATE = ["--update", '{"log_probs": "trie", "truth_weight": 0.3, "advantages": "pass_at_k", "k": 2}']
LORA = ["--training", "lora", "--lora", '{"r": 4, "alpha": 8, "dropout": 0.0}']

# rl.train_grpo with accelerate's sharding on CPU, where groups are looked at on their way into a step, and
#   killed: one of the processes in its third step
WORKER = f"""{SHARDED_ON_CPU}
from rl import grpo_trainer, train_grpo
trainer = grpo_trainer.GroupedGRPOTrainer
step = trainer.training_step
def watched(self, model, inputs, count):
    if sys.argv[1] == "killed" and self.state.global_step == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, model, inputs, count)
trainer.training_step = watched
loss = trainer._compute_loss
def whole(self, model, inputs):
    prompts = inputs["prompt_ids"].view(-1, 8, inputs["prompt_ids"].shape[1])
    assert (prompts == prompts[:, :1]).all() and 1 <= len(prompts) <= 2
    return loss(self, model, inputs)
trainer._compute_loss = whole
train_grpo.main(sys.argv[2:])
"""
FIGURES = ("loss", "reward", "reward_std", "kl", "entropy", "grad_norm", "idle_groups", "groups_with_hit")


def command(model_dir, output_dir, size, flags):
    paths = ["--model_name_or_path", model_dir, "--output_dir", output_dir]
    return [*map(str, [*paths, "--per_device_train_batch_size", size]), *FLAGS, *flags]


def one(model_dir, output_dir, *flags):
    train_grpo.main(command(model_dir, output_dir, 32, flags))
    return output_dir


def two(model_dir, output_dir, *flags, mode="watched", environment=None, fails=False):
    """The command under torchrun, through `WORKER`; returns what it says on stderr."""
    worker = output_dir.parent / "worker.py"
    worker.write_text(WORKER)
    asked = [worker, mode, *command(model_dir, output_dir, 16, flags)]
    return in_two(asked, environment, fails).stderr


def sharded(model_dir, output_dir, *flags, environment=FSDP2, fails=False):
    flags = (*flags, "--use_cpu", "false")
    return two(model_dir, output_dir, *flags, environment=environment, fails=fails)


def history(run):
    """{step: {figure: value}} of everything that was logged per step."""
    logged = json.loads((run / "log_history.json").read_text())
    return {row["step"]: {name: row[name] for name in FIGURES} for row in logged if "reward" in row}


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def assert_same_run(found, expected):
    """Everything logged to 1e-4, which two ways of adding the same numbers up keep, and the weights."""
    logged, reference = history(found), history(expected)
    assert logged.keys() == reference.keys() == {1, 2, 3, 4}
    for step, figures in reference.items():
        assert logged[step] == pytest.approx(figures, rel=1e-4, abs=1e-4), step
    assert any(figures["grad_norm"] > 0 for figures in reference.values())
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    "options", [[], MIXED, SAMPLE, [*MIXED, *UPDATE]], ids=["beam", "mixed", "sample", "update"]
)
def test_ddp_trains_what_one_process_trains(model_dir, tmp_path, options):
    expected, found = one(model_dir, tmp_path / "one", *options), tmp_path / "two"
    two(model_dir, found, *options)
    assert_same_run(found, expected)


def test_ddp_goes_on_after_a_kill(model_dir, tmp_path):
    """One of the processes is killed in its third step; both go on from the checkpoint of the second."""
    expected, run = one(model_dir, tmp_path / "one", *MIXED), tmp_path / "two"
    two(model_dir, run, *MIXED, mode="killed", fails=True)
    assert not (run / "manifest.json").exists() and (run / "checkpoint-2").is_dir()
    two(model_dir, run, *MIXED, "--resume_from_checkpoint", "true")
    assert_same_run(run, expected)


@pytest.mark.parametrize("training", ["full", "untied", "lora", "update", "update lora"])
def test_fsdp2_trains_what_one_process_trains_and_goes_on(model_dir, tmp_path, training):
    """Rollouts with weights that are gathered once each."""
    if training not in ("full", "lora"):
        model_dir = make_model_dir(tmp_path / "start", tied=False)
    flags = [*MIXED, *(LORA if "lora" in training else ()), *(UPDATE if "update" in training else ())]
    expected, found = one(model_dir, tmp_path / "one", *flags), tmp_path / "two"
    sharded(model_dir, found, *flags)
    assert_same_run(found, expected)
    cut = tmp_path / "cut"
    shutil.copytree(found / "checkpoint-2", cut / "checkpoint-2")
    shutil.copy(found / "settings.json", cut)
    sharded(model_dir, cut, *flags, "--resume_from_checkpoint", "true")
    assert_same_run(cut, expected)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"},
            "which fsdp1 shares out; launch with ddp.yaml",
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            "which zero3 shares out",
        ),
        ({**FSDP2, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "fsdp_state_dict_type: must be FULL"),
    ],
)
def test_other_ways_of_sharing_out_are_refused(environment, message):
    from rl.launch import check_sharding
    from sid_builder.errors import InputError

    with pytest.raises(InputError, match=message):
        check_sharding(environment)
