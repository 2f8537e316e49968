"""Launches and flags that cannot train are one line, before anything is read or written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft import train
from sft.arguments import NewTokenOptions, SftArguments
from sft.launch import check_rows_whole, check_sharding, sharding_of
from sid_builder.errors import InputError
from tests.sft.command_line import FROM_SCRATCH

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
ZERO3 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
}
ZERO2 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
ROOT = Path(__file__).parents[2]


def lora(**changes):
    return SftArguments(sid_dir=".", model_name_or_path="m", **changes)


FULL_ROWS = {"new_tokens": NewTokenOptions(train="full")}


@pytest.mark.parametrize(
    ("environment", "sharding"),
    [
        ({}, "none"),
        ({"ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": "false"}, "none"),
        (FSDP2, "fsdp2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp1"),
        (ZERO2, "zero2"),
        (ZERO3, "zero3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "zero2"),
    ],
)
def test_sharding_is_read_as_accelerate_does(environment, sharding):
    assert sharding_of(environment) == sharding


def test_sharding_is_read_from_a_deepspeed_file(tmp_path):
    path = tmp_path / "ds.json"
    environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}
    path.write_text('{"zero_optimization": {"stage": 3}}')
    assert sharding_of(environment) == "zero3"
    path.write_text("{")
    with pytest.raises(InputError, match="deepspeed_config_file: .* cannot be read"):
        sharding_of(environment)


@pytest.mark.parametrize(
    ("args", "environment", "message"),
    [
        (lora(), ZERO3, "new_tokens.train: 'rows' cannot be trained under ZeRO-3; .*ddp.yaml or zero2.yaml"),
        (lora(**FULL_ROWS), {**FSDP2, "FSDP_VERSION": "1"}, "fsdp_version: 1 is not supported"),
        (lora(**FULL_ROWS), {**FSDP2, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "FULL_STATE_DICT"),
        (
            lora(**FULL_ROWS),
            {**FSDP2, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
            "fsdp_cpu_ram_efficient_loading: true cannot load adapters",
        ),
        (lora(**FULL_ROWS), {**ZERO3, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "7"}, "zero_stage is '7'"),
    ],
)
def test_sharding_that_cannot_train_is_refused(args, environment, message):
    """Without torch, TRL or DeepSpeed: the last is not even installed."""
    with pytest.raises(InputError, match=message) as caught:
        check_sharding(args, environment)
    assert "\n" not in str(caught.value)


def test_sharding_that_can_train_passes(monkeypatch):
    check_sharding(lora(), {})
    check_sharding(lora(), FSDP2)
    check_sharding(lora(training="full"), {**FSDP2, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"})
    monkeypatch.setattr("sft.launch.find_spec", lambda name: object())
    check_sharding(lora(), ZERO2)
    check_sharding(lora(**FULL_ROWS), ZERO3)
    with pytest.raises(InputError, match="zero3_save_16bit_model: must be true"):
        check_sharding(lora(**FULL_ROWS), {**ZERO3, "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "false"})
    monkeypatch.setattr("sft.launch.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"DEEPSPEED \(zero2\) is not installed; pip install deepspeed"):
        check_sharding(lora(), ZERO2)


def test_rows_of_a_tied_matrix_are_refused_under_fsdp2():
    check_rows_whole(lora(), "none", tied=True)
    check_rows_whole(lora(), "zero2", tied=True)
    check_rows_whole(lora(), "fsdp2", tied=False)
    check_rows_whole(lora(**FULL_ROWS), "fsdp2", tied=True)
    with pytest.raises(InputError, match="under FSDP2 where embedding and head are one matrix.*ddp.yaml"):
        check_rows_whole(lora(), "fsdp2", tied=True)


CPU = ["--use_cpu", "true", "--bf16", "false"]
FLASH = '{"positions": "windows", "batches": "padding_free", "attention": "flash_attention_2"}'


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--use_cpu", "true", "--bf16", "true"], "bf16: true needs a GPU, .* set bf16: false"),
        ([*CPU, "--fp16", "true"], "fp16: true needs a GPU"),
        ([*CPU, "--per_device_train_batch_size", "0"], "per_device_train_batch_size: 0; give at least 1"),
        ([*CPU, "--per_device_train_batch_size", "-4"], "per_device_train_batch_size: -4; give at least 1"),
        ([*CPU, "--gradient_accumulation_steps", "0"], "gradient_accumulation_steps: 0; give at least 1"),
        (
            [*CPU, "--per_device_train_batch_size", "5000", "--dataloader_drop_last", "true"],
            r"per_device_train_batch_size: 5000 on 1 process\(es\) is more than there are rows \(103\); give "
            "at most 103, or dataloader_drop_last: false",
        ),
        ([*CPU, "--packing", "true"], "packing: True is not for batches of sidereal; set layout.batches"),
        (
            [*CPU, "--max_length", "512"],
            "max_length: 512 is not for batches of sidereal; prompts are bounded",
        ),
        ([*CPU, "--remove_unused_columns", "true"], "remove_unused_columns: True is not for batches"),
        ([*CPU, "--layout", FLASH], "'flash_attention_2' needs a GPU; set layout.attention: sdpa"),
    ],
)
def test_flags_that_cannot_train_are_refused(sids, tmp_path, flags, message):
    command = ["--sid_dir", str(sids), "--output_dir", str(tmp_path / "out"), "--report_to", "none"]
    with pytest.raises(InputError, match=message) as caught:
        train.main([*command, *FROM_SCRATCH, *flags])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_fsdp_is_not_dropped_silently_on_cpu(sids, tmp_path, monkeypatch):
    """accelerate 1.15 trains under DDP where it is told FSDP and finds no GPU."""
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    flags = [*FROM_SCRATCH, "--report_to", "none"]
    with pytest.raises(InputError, match="use_cpu: accelerate does not apply fsdp2 on CPU"):
        train.main(["--sid_dir", str(sids), "--output_dir", str(tmp_path / "out"), *CPU, *flags])


@pytest.mark.slow
def test_two_processes_that_would_not_meet_are_refused(sids, tmp_path):
    """Without --use_cpu, accelerate makes each of torchrun's processes on a CPU machine a run of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    flags = [*FROM_SCRATCH, "--report_to", "none"]
    paths = ["--sid_dir", str(sids), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "-m", "sft.train", *paths, *flags],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "error: use_cpu: False, and without a GPU each of 2 processes would train alone" in done.stderr
    assert not (tmp_path / "out").exists()


def test_bf16_is_the_default_of_gpus_alone(sids, tmp_path, monkeypatch):
    from sid_builder import cli

    argv = ["--sid_dir", str(sids), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]
    argv += FROM_SCRATCH
    for has_gpu in (False, True):
        monkeypatch.setattr("torch.cuda.is_available", lambda has=has_gpu: has)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
        _, config = cli.parse(SftArguments, argv, lazy=["trl:SFTConfig"])
        assert config.bf16 is has_gpu
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="SFTConfig: Your setup doesn't support bf16"):
        cli.parse(SftArguments, [*argv, "--bf16", "true", "--use_cpu", "false"], lazy=["trl:SFTConfig"])


@pytest.mark.parametrize("name", ["fsdp2", "zero2", "zero3"])
def test_shipped_launches_are_ones_we_train_under(name, monkeypatch):
    """What `accelerate launch --config_file` would put into the environment."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    path = str(ROOT / "configs" / "accelerate" / f"{name}.yaml")
    args = launch_command_parser().parse_args(["--config_file", path, "-m", "sft.train"])
    args, _, _ = _validate_launch_command(args)
    args.deepspeed_fields_from_accelerate_config = ""
    environment = prepare_multi_gpu_env(args) if name == "fsdp2" else prepare_deepspeed_cmd_env(args)[1]
    assert sharding_of(environment) == name
    monkeypatch.setattr("sft.launch.find_spec", lambda package: object())
    check_sharding(lora(**FULL_ROWS), environment)
