"""Where a planned run would happen: machines with their peaks, and the processes of an accelerate launch."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sft.launch import sharding_of
from sid_builder.cli import load_yaml
from sid_builder.errors import InputError

GIB = 2**30
# Share of a machine's peak that training is assumed to reach. Large models got .21 (GPT-3) to .46 (PaLM) of
# theirs (Chowdhery et al. 2022, PaLM, table 3); short steps of small models stay below.
EFFICIENCY = 0.3
FITS = 0.95  # of a device's memory: the allocator's blocks are never all full
CONFIG_VARIABLE = "ACCELERATE_CONFIG_FILE"

Shared = Literal["none", "ddp", "fsdp2", "zero2", "zero3"]


@dataclass(frozen=True)
class Machine:
    """One device: usable memory in GiB, dense peaks in TFLOP/s without sparsity."""

    name: str
    memory_gib: float
    bf16_tflops: float
    fp32_tflops: float


# NVIDIA's data sheets and white papers (Ada GPU Architecture v2.1 appendix A; L4, A100 and H100 SXM data
# sheets, whose figures "with sparsity" are halved); bf16 with fp32 accumulation, fp32 without tensor cores,
# torch's default. Memory is what the driver leaves of the nominal size.
GPUS = (
    Machine("RTX 4090 24 GB", 23.5, 165.2, 82.6),
    Machine("L4 24 GB", 22.0, 121.0, 30.3),
    Machine("A100 40 GB", 39.4, 312.0, 19.5),
    Machine("A100 80 GB", 79.2, 312.0, 19.5),
    Machine("H100 80 GB", 79.2, 989.4, 66.9),
)


def this_cpu() -> Machine:
    """The CPU the plan runs on; its peak is that of an fp32 matrix product of 1,024 x 1,024, timed here."""
    import torch

    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    tflops = 2 * 1024**3 / min(times) / 1e12
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Machine(f"this CPU, {torch.get_num_threads()} threads", memory, tflops, tflops)


@dataclass(frozen=True)
class Launch:
    """Processes of a run, one device each, and what of a model they share out among them.

    `mixed` says whether accelerate's mixed precision is on: FSDP2 then keeps trainable weights in fp32, and
    DeepSpeed all weights in half precision with an fp32 copy of the trainable ones.
    """

    processes: int
    sharding: Shared
    mixed: bool
    source: str

    @staticmethod
    def current(config: Any, environment: Mapping[str, str] = os.environ) -> "Launch":
        """The launch this process belongs to, or the one that ACCELERATE_CONFIG_FILE describes.

        Args:
            config: TRL's configuration; its world size counts under a launcher.

        Raises:
            InputError: when the file describes a kind of launch that sidereal does not train under.
        """
        mixed = bool(config.bf16 or config.fp16)
        if environment.get(CONFIG_VARIABLE):
            return Launch.of_file(environment[CONFIG_VARIABLE], mixed)
        return Launch.of(config.world_size, sharding_of(environment), mixed, "this launch")

    @staticmethod
    def of_file(path: str, mixed: bool) -> "Launch":
        """What `accelerate launch --config_file PATH` would start."""
        content = load_yaml(path)
        kind, processes = str(content.get("distributed_type", "NO")), content.get("num_processes", 1)
        if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
            raise InputError(f"{path}: num_processes is {processes!r}; give a whole number of at least 1")
        if kind not in ("NO", "MULTI_GPU", "MULTI_CPU", "FSDP", "DEEPSPEED"):
            raise InputError(
                f"{path}: distributed_type {kind!r} cannot be planned; use NO, MULTI_GPU, FSDP or DEEPSPEED"
            )
        fsdp, zero = content.get("fsdp_config") or {}, content.get("deepspeed_config") or {}
        environment = {
            "ACCELERATE_USE_FSDP": str(kind == "FSDP"),
            "FSDP_VERSION": str(fsdp.get("fsdp_version", 1)),
            "ACCELERATE_USE_DEEPSPEED": str(kind == "DEEPSPEED"),
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(zero.get("zero_stage", 2)),
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": zero.get("deepspeed_config_file", ""),
        }
        return Launch.of(processes, sharding_of(environment), mixed, path)

    @staticmethod
    def of(processes: int, sharding: str, mixed: bool, source: str) -> "Launch":
        """From `sft.launch.sharding_of`."""
        kept: dict[str, Shared] = {"fsdp2": "fsdp2", "zero2": "zero2", "zero3": "zero3"}
        copied: Shared = "ddp" if processes > 1 else "none"
        kept |= {"none": copied, "zero0": copied}
        if sharding not in kept:
            raise InputError(f"{source}: {sharding} cannot be planned; use fsdp2, zero2 or zero3")
        return Launch(processes, kept[sharding], mixed, source)
