"""How `vllm serve` is called for a model directory, on CPU and on GPU. Imports neither torch nor vllm."""

import importlib.metadata
import importlib.util
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sid_builder.errors import InputError

PROCESSOR = "serve.vllm.logits_processor:SidLogitsProcessor"


@dataclass(frozen=True)
class EngineOptions:
    """What may differ between two servers of one model; None leaves vLLM's own default."""

    served_model_name: str = "sidereal"
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    dtype: str = "auto"
    api_key: str | None = None
    tensor_parallel_size: int = 1
    cpu_kv_cache_gib: int = 2
    extra: list[str] = field(default_factory=list)


def check_installed() -> None:
    """InputError when vLLM cannot be imported here."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError("vllm: is not installed here; install sidereal[vllm] (NVIDIA GPU) or sidereal[cpu]")


def is_cpu_build() -> bool:
    """Whether the installed vLLM runs on the CPU, read from its version as vLLM's own platform check does."""
    try:
        return "cpu" in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return True  # only the CPU build goes by another name


def vllm_command(
    model: Path, host: str, port: int, options: EngineOptions, template_kwargs: dict[str, Any], cpu: bool
) -> list[str]:
    """The process to start: `vllm serve` with our logits processor and exact scores."""
    flags = {
        "--host": host,
        "--port": port,
        "--served-model-name": options.served_model_name,
        "--logits-processors": PROCESSOR,
        # What the processor writes is what clients read: log-probs over the whole vocabulary at legal tokens.
        "--logprobs-mode": "processed_logits",
        # Sampling defaults of the checkpoint (Qwen Instruct ships a repetition penalty) stay out of requests.
        "--generation-config": "vllm",
        "--max-num-seqs": options.max_num_seqs,
        "--max-model-len": options.max_model_len,
        "--dtype": "float32" if cpu and options.dtype == "auto" else options.dtype,
        "--tensor-parallel-size": options.tensor_parallel_size if options.tensor_parallel_size > 1 else None,
        "--default-chat-template-kwargs": json.dumps(template_kwargs) if template_kwargs else None,
        # The smallest block the CPU kernel takes; its default of 128 makes prefix-cache hits rarer.
        "--block-size": 32 if cpu else None,
    }
    command = [sys.executable, "-m", "serve.vllm.api_server", "serve", str(model)]
    for flag, value in flags.items():
        command += [] if value is None else [flag, str(value)]
    command += ["--disable-uvicorn-access-log"]
    # vLLM 0.31.0 rewinds the generator of a seeded request whose prompt was read in part; a CPU generator
    # cannot be rewound and the engine dies (gpu_model_runner.py, _bookkeeping_sync): prompts are read whole.
    command += ["--enforce-eager", "--no-enable-chunked-prefill"] if cpu else []
    return command + options.extra


def vllm_environment(model: Path, options: EngineOptions, cpu: bool) -> dict[str, str]:
    """The process's environment. CPU settings give way to what the user has set."""
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    environment["SIDEREAL_MODEL"] = str(model)
    environment["SIDEREAL_PARENT"] = str(os.getpid())
    environment.setdefault("VLLM_NO_USAGE_STATS", "1")
    environment.setdefault("HF_HUB_OFFLINE", "1")  # a model directory is complete
    if options.api_key is not None:
        environment["VLLM_API_KEY"] = options.api_key  # not on the command line, where others can read it
    if cpu:
        environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        environment.setdefault("OMP_NUM_THREADS", "1")
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", str(options.cpu_kv_cache_gib))
        if options.tensor_parallel_size == 1:
            # The worker runs inside the engine process: one interpreter less to start (a third of the
            # start-up).
            environment.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return environment
