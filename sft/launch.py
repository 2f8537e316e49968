"""What a launch can train: processes, sharding, devices and number formats, checked before data is read.

`accelerate launch` hands its configuration on in environment variables. Those about sharding are looked at
before torch, TRL or DeepSpeed is imported (`check_sharding`), what depends on TRL's flags once they are
parsed (`check_launch`), batches once there are rows (`check_batches`).

What was run: one process, DDP and FSDP2 on CPU with two (tests/sft/test_processes_sft.py), and ZeRO-2 and
ZeRO-3 where DeepSpeed is installed; they give the losses and weights of one process. Rows alone are not
trained everywhere. Under ZeRO-3 PEFT 0.21 reads an embedding that is not gathered, for it never runs its
forward pass. Under FSDP2 accelerate 1.15 shards a tied matrix twice: it looks at whether two layers hold the
same tensor, and PEFT's wrappers make a new one whenever they are asked (`fsdp2_prepare_model`).
"""

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sid_builder.errors import InputError
from sid_builder.processes import Processes

if TYPE_CHECKING:
    from sft.arguments import TrainingOptions

Sharding = Literal["none", "fsdp1", "fsdp2", "zero0", "zero1", "zero2", "zero3"]

# Flags of TRL's SFTConfig that would change nothing here, or break batches, and what takes their place.
_NOT_OURS = {
    "packing": "set layout.batches: packed",
    "padding_free": "set layout.batches: padding_free",
    "max_length": "prompts are bounded by max_prompt_tokens, and answers never cut",
    "assistant_only_loss": "only answers are learnt as it is",
    "label_smoothing_factor": "it would need the scores of all tokens at every position; leave it out",
    "remove_unused_columns": "it would remove what batches are made of; leave it out",
}


def sharding_of(environment: Mapping[str, str] = os.environ) -> Sharding:
    """How the launcher of this process shares a model out, as `accelerate launch` says it.

    Raises:
        InputError: for a DeepSpeed configuration file that cannot be read.
    """
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return "fsdp2" if environment.get("FSDP_VERSION") == "2" else "fsdp1"
    if environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return "none"
    stage: Any = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")  # accelerate's default
    if path := environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            stage = content.get("zero_optimization", {}).get("stage", 0)
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"deepspeed_config_file: {path} cannot be read ({error}); give JSON") from error
    if str(stage) not in ("0", "1", "2", "3"):
        raise InputError(f"deepspeed_config: zero_stage is {stage!r}; use configs/accelerate/zero2.yaml")
    return f"zero{stage}"  # type: ignore[return-value]


def sharded_by() -> str | None:
    """What splits every weight over the processes of this launch, if anything does: none holds them whole."""
    return {"fsdp1": "FSDP", "fsdp2": "FSDP", "zero3": "ZeRO-3"}.get(sharding_of())


def check_sharding(args: "TrainingOptions", environment: Mapping[str, str] = os.environ) -> None:
    """Refuse ways of sharing a model out that would not train what `args` asks for.

    Raises:
        InputError: naming what to launch or to train instead.
    """
    sharding = sharding_of(environment)
    check_rows_whole(args, sharding)

    def says(name: str, value: str) -> bool:
        return environment.get(name, "").upper() == value

    if sharding == "fsdp1":
        raise InputError(
            "fsdp_version: 1 is not supported; launch with configs/accelerate/fsdp2.yaml (fsdp_version: 2)"
        )
    if sharding == "fsdp2" and not says("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT"):
        raise InputError(
            "fsdp_state_dict_type: must be FULL_STATE_DICT, or no whole weights are saved that sft.merge "
            "opens; launch with configs/accelerate/fsdp2.yaml"
        )
    if sharding == "fsdp2" and args.training == "lora" and says("FSDP_CPU_RAM_EFFICIENT_LOADING", "TRUE"):
        raise InputError(
            "fsdp_cpu_ram_efficient_loading: true cannot load adapters (accelerate 1.15 ties their weights "
            "twice); set it to false"
        )
    if sharding.startswith("zero") and find_spec("deepspeed") is None:
        raise InputError(f"distributed_type: DEEPSPEED ({sharding}) is not installed; pip install deepspeed")
    gathers = "ACCELERATE_DEEPSPEED_CONFIG_FILE" in environment or says(
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "TRUE"
    )
    if sharding == "zero3" and not gathers:
        raise InputError(
            "zero3_save_16bit_model: must be true, or no whole weights are saved that sft.merge opens; "
            "launch with configs/accelerate/zero3.yaml"
        )


def check_rows_whole(args: "TrainingOptions", sharding: str, tied: bool = False) -> None:
    """Refuse rows alone where what shares a model out would not train them.

    Args:
        sharding: of `sharding_of`.
        tied: whether the model's embedding and head are one matrix.

    Raises:
        InputError: naming what to launch or to train instead.
    """
    if args.training != "lora" or args.new_tokens.train != "rows":
        return
    if sharding == "zero3" or sharding == "fsdp2" and tied:
        where = (
            "under ZeRO-3" if sharding == "zero3" else "under FSDP2 where embedding and head are one matrix"
        )
        raise InputError(
            f"new_tokens.train: 'rows' cannot be trained {where}; set new_tokens: {{train: full}}, or launch "
            "with configs/accelerate/ddp.yaml or zero2.yaml"
        )


def precision_defaults() -> dict[str, bool]:
    """TRL's default is bf16 everywhere; ours is bf16 where a GPU has it, fp32 elsewhere."""
    import torch

    return {"bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported()}


def check_launch(args: "TrainingOptions", config: Any) -> None:
    """Refuse flags of TRL's configuration that this launch, this machine or our batches cannot honour.

    Raises:
        InputError: naming the flag and what to give instead.
    """
    check_machine(config)
    for name, instead in _NOT_OURS.items():
        if getattr(config, name):
            raise InputError(f"{name}: {getattr(config, name)!r} is not for batches of sidereal; {instead}")
    if args.layout.attention == "flash_attention_2":
        _check_flash(args, config)


def check_machine(config: Any) -> None:
    """Refuse flags of any of TRL's configurations that this launch or this machine cannot honour.

    Raises:
        InputError: naming the flag and what to give instead.
    """
    processes = Processes.current()
    if processes.world_size != config.world_size:
        raise InputError(
            f"use_cpu: {config.use_cpu}, and without a GPU each of {processes.world_size} processes would "
            "train alone; pass --use_cpu true, or start one process"
        )
    if config.n_gpu > 1:
        raise InputError(
            f"num_processes: one process sees {config.n_gpu} GPUs; start one for each: accelerate launch "
            "--config_file configs/accelerate/ddp.yaml, or show it one: CUDA_VISIBLE_DEVICES=0"
        )
    for name in ("fsdp", "deepspeed"):
        if getattr(config, name):
            raise InputError(
                f"{name}: {getattr(config, name)!r} comes too late for the checks of a launch; leave it out, "
                "and accelerate launch --config_file with fsdp2, zero2 or zero3.yaml of configs/accelerate"
            )
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(config, name) < 1:
            raise InputError(f"{name}: {getattr(config, name)}; give at least 1")
    sharding, state = sharding_of(), config.distributed_state
    if sharding != "none" and state.distributed_type.value in ("NO", "MULTI_CPU"):
        raise InputError(
            f"use_cpu: accelerate does not apply {sharding} on CPU; launch with configs/accelerate/cpu.yaml"
        )
    if config.device.type == "cpu":
        for name in ("bf16", "fp16"):
            if getattr(config, name):
                raise InputError(f"{name}: true needs a GPU, and this run trains on CPU; set {name}: false")


def _check_flash(args: "TrainingOptions", config: Any) -> None:
    if config.device.type == "cpu":
        raise InputError("layout.attention: 'flash_attention_2' needs a GPU; set layout.attention: sdpa")
    if find_spec("flash_attn") is None:
        raise InputError(
            "layout.attention: 'flash_attention_2' is not installed; pip install flash-attn, or use sdpa"
        )
    if args.dtype == "float32" and not (config.bf16 or config.fp16):
        raise InputError(
            "layout.attention: 'flash_attention_2' takes no fp32; set bf16: true, or dtype: bfloat16"
        )


def check_batches(config: Any, num_rows: int) -> None:
    """Refuse a batch that `num_rows` cannot fill: an epoch without a step, or of rows repeated to fill it.

    Raises:
        InputError: naming the batch, the processes and the rows.
    """
    size, processes = config.per_device_train_batch_size, config.world_size
    rows_of_all = size * processes
    if rows_of_all > num_rows and (config.dataloader_drop_last or processes > 1):
        raise InputError(
            f"per_device_train_batch_size: {size} on {processes} process(es) is more than there are rows "
            f"({num_rows}); give at most {max(num_rows // processes, 1)}"
            + (", or dataloader_drop_last: false" if config.dataloader_drop_last else "")
        )
