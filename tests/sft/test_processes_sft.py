"""Two processes train what one trains: losses, rankings and weights, under DDP, FSDP2 and ZeRO.

Two processes of four rows a device make the step of one process of eight: accelerate hands each a part of
the same batch, and the loss is divided by the labels of all.
"""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from sft import merge, train
from tests.processes import FSDP2, SHARDED_ON_CPU, in_two
from tests.sft.builders import write_checkpoint
from tests.sft.command_line import COMMON, FROM_SCRATCH

pytestmark = pytest.mark.slow

FLAGS = [*COMMON, "--max_steps", "6", "--learning_rate", "0.003", "--save_strategy", "steps"]
FLAGS += ["--save_steps", "2", "--save_total_limit", "5"]
# Without dropout, whose draws differ between one process and two.
LORA = ["--lora", '{"r": 4, "alpha": 8, "dropout": 0.0}']
WHOLE_EMBEDDINGS = ["--new_tokens", '{"train": "full"}']

# sft.train with accelerate's sharding on CPU, and
#   killed: one of the processes in its fifth step
#   ungathered: without what sft/trainer.py does about a sharded head
#   unchecked: without the refusal of tied rows
WORKER = f"""{SHARDED_ON_CPU}
from sft import start, train, trainer

if sys.argv[1] == "killed":
    step = trainer.SidTrainer.training_step
    def dying(self, *given):
        if self.state.global_step == 4 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *given)
    trainer.SidTrainer.training_step = dying
elif sys.argv[1] == "ungathered":
    trainer.FSDPModule = ()
elif sys.argv[1] == "unchecked":
    start.check_rows_whole = lambda *given: None
train.main(sys.argv[2:])
"""
ZERO = {
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "DS_ACCELERATOR": "cpu",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto",
    "ACCELERATE_GRADIENT_CLIPPING": "auto",
}


@pytest.fixture(scope="module")
def tied(index, tmp_path_factory):
    return ["--model_name_or_path", write_checkpoint(tmp_path_factory.mktemp("tied") / "c", index)]


@pytest.fixture(scope="module")
def untied(index, tmp_path_factory):
    path = tmp_path_factory.mktemp("untied") / "c"
    return ["--model_name_or_path", write_checkpoint(path, index, "llama", tied=False)]


def command(sids, output_dir, size, flags):
    paths = ["--sid_dir", sids, "--output_dir", output_dir, "--per_device_train_batch_size", size]
    return [*map(str, paths), *FLAGS, *map(str, flags)]


def one(sids, output_dir, *flags):
    train.main(command(sids, output_dir, 8, flags))
    return output_dir


def two(sids, output_dir, *flags, mode=None, environment=None, fails=False):
    """The command under torchrun, through `WORKER` if there is a `mode`; returns what it says on stderr."""
    module = ["-m", "sft.train"]
    if mode:
        worker = output_dir.parent / "worker.py"
        worker.write_text(WORKER)
        module = [str(worker), mode]
    return in_two([*module, *command(sids, output_dir, 4, flags)], environment, fails).stderr


def sharded(sids, output_dir, *flags, mode="sharded", environment=FSDP2, fails=False):
    """`two` under FSDP2, or what `environment` says."""
    flags = (*flags, "--use_cpu", "false")
    return two(sids, output_dir, *flags, mode=mode, environment=environment, fails=fails)


def history(run):
    """{step: {figure: value}} of everything that was logged per step."""
    logged = {}
    for entry in json.loads((run / "log_history.json").read_text()):
        kept = {key: value for key, value in entry.items() if key.startswith("eval_") or key in FIGURES}
        logged.setdefault(entry["step"], {}).update(kept)
    return logged


FIGURES = ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens")
TIMES = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


def trained(run):
    directory = run / "trained"
    adapter = directory / "adapter_model.safetensors"
    return load_file(adapter if adapter.exists() else directory / "model.safetensors")


def assert_same_run(found, expected):
    """Everything logged to 1e-4, which two ways of adding the same numbers up keep, and the weights."""
    logged, reference = history(found), history(expected)
    assert logged.keys() == reference.keys() and {1, 2, 3, 4, 5, 6} <= logged.keys()
    for step, figures in reference.items():
        assert logged[step].keys() == figures.keys()
        for name, value in figures.items():
            if name not in TIMES:
                assert logged[step][name] == pytest.approx(value, rel=1e-4, abs=1e-4), (step, name)
    ours, theirs = trained(found), trained(expected)
    # FSDP gathers a tied head beside the embedding it is.
    assert ours.keys() - {"lm_head.weight"} == theirs.keys() - {"lm_head.weight"}
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-4, msg=name)


def opened(run, tmp_path):
    """Weights of the model directory that sft.merge makes of a run."""
    merge.main(["--adapter", str(run), "--output_dir", str(tmp_path)])
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()


def assert_same_models(found, expected, tmp_path):
    ours, theirs = opened(found, tmp_path / "ours"), opened(expected, tmp_path / "theirs")
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-4, msg=name)


def test_torch_still_knows_one_cpu():
    """When this fails, delete sft/cpu_checkpoints.py."""
    script = (
        "import io, torch; file = io.BytesIO(); torch.save(torch.ones(2), file); file.seek(0); "
        "torch.load(file, map_location=torch.device('cpu:1'), weights_only=True)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "don't know how to restore data location" in done.stderr


def test_ddp_trains_what_one_process_trains(sids, tmp_path):
    """In full, valid ranked on the way, each process a half of the cases.

    16 cases are two full batches: transformers fills a last one with repeats, which `eval_loss` counts.
    """
    flags = [*FROM_SCRATCH, "--valid_cases", "16", "--gradient_accumulation_steps", "2"]
    expected, found = one(sids, tmp_path / "one", *flags), tmp_path / "two"
    two(sids, found, *flags)
    assert_same_run(found, expected)
    assert {"eval_loss", "eval_ndcg@10", "eval_hr@50"} <= history(found)[6].keys()
    assert_same_models(found, expected, tmp_path)


@pytest.fixture(params=["scratch", "tied", "untied"])
def start(request):
    """Flags of what is trained: all weights, or adapters on a checkpoint."""
    return FROM_SCRATCH if request.param == "scratch" else [*request.getfixturevalue(request.param), *LORA]


def test_ddp_goes_on_after_a_kill(sids, tmp_path, start):
    """One of the processes is killed in its fifth step; both go on from the checkpoint of the fourth."""
    flags = [*start, "--gradient_checkpointing", "true"]
    expected, run = one(sids, tmp_path / "one", *flags), tmp_path / "two"
    two(sids, run, *flags, mode="killed", fails=True)
    assert not (run / "manifest.json").exists() and (run / "checkpoint-4").is_dir()
    (run / "checkpoint-6").mkdir()  # as a process leaves it that is killed while it writes
    two(sids, run, *flags, "--resume_from_checkpoint", "true")
    logged, reference = history(run), history(expected)
    losses = [[steps[step]["loss"] for step in range(1, 7)] for steps in (logged, reference)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert_same_models(run, expected, tmp_path)


def cut_off(run, cut):
    """What is left of a run that was stopped behind its fourth step."""
    shutil.copytree(run / "checkpoint-4", cut / "checkpoint-4")
    shutil.copy(run / "rows.json", cut)
    if (run / "base").exists():
        shutil.copytree(run / "base", cut / "base")


def assert_went_on(cut, whole):
    assert [history(cut)[step]["loss"] for step in (5, 6)] == [history(whole)[s]["loss"] for s in (5, 6)]
    for name, weight in trained(whole).items():
        assert torch.equal(trained(cut)[name], weight), name


@pytest.mark.parametrize(
    ("checkpoint", "embeddings"),
    [(None, []), ("tied", WHOLE_EMBEDDINGS), ("untied", WHOLE_EMBEDDINGS), ("untied", [])],
)
def test_fsdp2_trains_what_one_process_trains_and_goes_on(sids, tmp_path, checkpoint, embeddings, request):
    """All weights; adapters with whole embeddings of a tied and of an untied checkpoint; with untied rows."""
    flags = [*request.getfixturevalue(checkpoint), *LORA, *embeddings] if checkpoint else FROM_SCRATCH
    flags = [*flags, "--gradient_accumulation_steps", "2", "--gradient_checkpointing", "true"]
    expected, found = one(sids, tmp_path / "one", *flags), tmp_path / "two"
    sharded(sids, found, *flags)
    assert_same_run(found, expected)
    assert_same_models(found, expected, tmp_path)
    cut_off(found, tmp_path / "cut")
    sharded(sids, tmp_path / "cut", *flags, "--resume_from_checkpoint", "true")
    assert_went_on(tmp_path / "cut", found)


@pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed is not installed")
@pytest.mark.parametrize(
    ("stage", "checkpoint", "embeddings"),
    [("2", None, []), ("2", "tied", []), ("3", None, []), ("3", "untied", WHOLE_EMBEDDINGS)],
)
def test_zero_trains_what_one_process_trains(sids, tmp_path, stage, checkpoint, embeddings, request):
    """Rows under ZeRO-2, which leaves weights whole."""
    flags = [*request.getfixturevalue(checkpoint), *LORA, *embeddings] if checkpoint else FROM_SCRATCH
    expected, found = one(sids, tmp_path / "one", *flags), tmp_path / "two"
    environment = {**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
    sharded(sids, found, *flags, environment=environment)
    assert_same_run(found, expected)
    assert_same_models(found, expected, tmp_path)


def test_whole_embeddings_go_on_in_one_process(sids, tmp_path, tied):
    flags = [*tied, *WHOLE_EMBEDDINGS]
    one(sids, tmp_path / "whole", *flags)
    cut_off(tmp_path / "whole", tmp_path / "cut")
    one(sids, tmp_path / "cut", *flags, "--resume_from_checkpoint", "true")
    assert_went_on(tmp_path / "cut", tmp_path / "whole")


def test_trl_still_needs_a_gathered_head(sids, tmp_path, untied):
    """When this fails, delete `head.unshard()` from sft/trainer.py.

    accelerate 1.15 finds no final norm in a PEFT model, so that FSDP gathers an untied head with nothing, and
    TRL 1.16 does it with `full_tensor()`: gradients of the head are each process's own.
    """
    flags = [*untied, *LORA, *WHOLE_EMBEDDINGS, "--max_steps", "1"]
    one(sids, tmp_path / "one", *flags)
    sharded(sids, tmp_path / "two", *flags, mode="ungathered")
    found, expected = history(tmp_path / "two")[1], history(tmp_path / "one")[1]
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    assert abs(found["grad_norm"] / expected["grad_norm"] - 1) > 0.05


def test_accelerate_still_cannot_shard_tied_rows(sids, tmp_path, tied):
    """When this fails, `check_rows_whole` may let tied rows through."""
    said = sharded(sids, tmp_path / "two", *tied, *LORA, mode="unchecked", fails=True)
    assert "fsdp2_prepare_model" in said and "Invariant encountered: value was None" in said
