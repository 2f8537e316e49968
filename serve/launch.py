"""Serve a model directory behind an OpenAI-compatible endpoint.

    python -m serve.launch --model out/beauty/model
    python -m serve.launch --config configs/serve/gpu.yaml --model out/beauty/model --port 8001
    python -m serve.launch --engine torch --model out/beauty/model    # the tree beam in this process

Runs a real `vllm serve` with the trie as logits processor, so that every answer is an item of the catalogue.
`--engine torch` needs no vLLM: one process ranks items exactly as evaluation does, for small models.
"""

import dataclasses
import importlib.util
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prompts.opening import open_template
from prompts.template import PromptTemplate
from serve.engine.torch_options import TorchOptions
from serve.http.limits import HttpLimits
from serve.vllm.command import EngineOptions, check_installed, is_cpu_build
from serve.vllm.server import Server, ServerError, port_is_free
from sid_builder.cli import build_dataclass, parse, run
from sid_builder.errors import InputError

API_KEYS_VARIABLE = "SIDEREAL_API_KEYS"
# Settings of one engine that would do nothing for the other.
VLLM_ONLY = (
    "max_num_seqs",
    "max_model_len",
    "tensor_parallel_size",
    "cpu_kv_cache_gib",
    "start_timeout_s",
    "log_file",
    "vllm_flags",
)
TORCH_ONLY = ("torch_args", "limits")
SERVER_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")  # of engine torch; vllm brings them as well
# vllm 0.31.0, v1/attention/backends/cpu_attn.py, get_supported_head_sizes; a test compares.
CPU_HEAD_SIZES = [32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512]


@dataclass
class LaunchArguments:
    """One server."""

    model: str = field(metadata={"help": "model directory (from sft.merge or rl)"})
    engine: Literal["vllm", "torch"] = field(
        default="vllm",
        metadata={"help": "vllm: a server of its own; torch: the tree beam in this process, small models"},
    )
    host: str = field(default="127.0.0.1", metadata={"help": "address; 0.0.0.0 opens it to the network"})
    port: int = field(default=8000, metadata={"help": "port to listen on"})
    served_model_name: str = field(default="sidereal", metadata={"help": "name clients ask for"})
    api_key: str | None = field(
        default=None,
        metadata={
            "help": "key clients must send; None: open. The torch engine also takes keys, with commas, from "
            f"{API_KEYS_VARIABLE} in the environment, where other users of the machine cannot see them"
        },
    )
    max_num_seqs: int | None = field(
        default=None, metadata={"help": "most sequences decoded at once (vLLM's default)"}
    )
    max_model_len: int | None = field(
        default=None, metadata={"help": "most tokens of a request (the model's own limit)"}
    )
    dtype: str = field(
        default="auto", metadata={"help": "auto (float32 on CPU), float32, bfloat16 or float16"}
    )
    tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that share the model"})
    cpu_kv_cache_gib: int = field(default=2, metadata={"help": "GiB of key-value cache on CPU"})
    start_timeout_s: int = field(default=600, metadata={"help": "how long the start may take"})
    log_file: str | None = field(
        default=None, metadata={"help": "vLLM's output (a file in the temp directory)"}
    )
    vllm_flags: str = field(default="", metadata={"help": "further flags of `vllm serve`, in one string"})
    torch_args: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "engine torch: batch_tokens, ... of serve.engine.torch_options.TorchOptions"},
    )
    limits: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "engine torch: what clients may ask for, of serve.http.limits.HttpLimits"},
    )

    def check(self) -> None:
        if not 1 <= self.port <= 65535:
            raise InputError(f"port: {self.port} is no port number; choose one between 1 and 65535")
        for name in (
            "max_num_seqs",
            "max_model_len",
            "tensor_parallel_size",
            "cpu_kv_cache_gib",
            "start_timeout_s",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: {value} is too small; give at least 1")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise InputError(
                f"dtype: {self.dtype!r} is not one of ['auto', 'bfloat16', 'float16', 'float32']"
            )
        other = VLLM_ONLY if self.engine == "torch" else TORCH_ONLY
        for entry in dataclasses.fields(self):
            plain = {} if entry.default is dataclasses.MISSING else entry.default
            if entry.name in other and getattr(self, entry.name) != plain:
                raise InputError(f"{entry.name}: does nothing for --engine {self.engine}; leave it out")
        if self.engine == "vllm" and os.environ.get(API_KEYS_VARIABLE):
            raise InputError(f"{API_KEYS_VARIABLE}: --engine vllm would not read it; set VLLM_API_KEY")
        self.torch_options()
        self.http_limits()

    def torch_options(self) -> TorchOptions:
        return build_dataclass(TorchOptions, self.torch_args, "torch_args")

    def http_limits(self) -> HttpLimits:
        return build_dataclass(HttpLimits, self.limits, "limits")

    def api_keys(self) -> list[str]:
        """Keys of clients, from the flag and the environment; empty: open."""
        given = [self.api_key or "", *os.environ.get(API_KEYS_VARIABLE, "").split(",")]
        return [key.strip() for key in given if key.strip()]

    def options(self) -> EngineOptions:
        return EngineOptions(
            served_model_name=self.served_model_name,
            max_num_seqs=self.max_num_seqs,
            max_model_len=self.max_model_len,
            dtype=self.dtype,
            api_key=self.api_key,
            tensor_parallel_size=self.tensor_parallel_size,
            cpu_kv_cache_gib=self.cpu_kv_cache_gib,
            extra=shlex.split(self.vllm_flags),
        )


def check_model_directory(model_dir: str | Path) -> PromptTemplate:
    """Open everything but the weights and see that it fits together.

    Raises:
        InputError: for an incomplete directory, a tokenizer that disagrees with the index, more SID tokens
            than embedding rows, or answers that would not end (their end token does not end generation).
    """
    template = open_template(model_dir)
    path = Path(model_dir)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    highest = int(template.vocabulary.all_ids.max())
    if rows is not None and highest >= rows:
        raise InputError(
            f"{path}: token id {highest} is beyond the model's {rows} embedding rows; merge again"
        )
    ends = {template.tokenizer.eos_token_id, *_as_list(config.get("eos_token_id"))}
    if (path / "generation_config.json").is_file():
        generation = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
        ends.update(_as_list(generation.get("eos_token_id")))
    if template.end_id not in ends:
        token = template.tokenizer.convert_ids_to_tokens(template.end_id)
        raise InputError(
            f"{path}: an answer ends with {token!r}, which is no end token of the model; "
            f"add {template.end_id} to eos_token_id in generation_config.json"
        )
    return template


def check_cpu_attention(model_dir: str | Path) -> None:
    """InputError for heads that vLLM's CPU kernel lacks: its engine would die at the first request."""
    config = json.loads((Path(model_dir) / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if size not in CPU_HEAD_SIZES:
        raise InputError(
            f"{model_dir}: heads of {size} cannot be served on CPU; use head_dim in {CPU_HEAD_SIZES}"
        )


def _as_list(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


class _Progress:
    """Seconds waited: one line that is rewritten on a terminal, a line every 15 s elsewhere."""

    def __init__(self) -> None:
        self.shown = 0.0

    def __call__(self, seconds: float) -> None:
        if sys.stderr.isatty():
            print(f"\rvLLM is starting ... {seconds:.0f} s", end="", file=sys.stderr, flush=True)
        elif seconds - self.shown >= 15:
            print(f"vLLM is starting ... {seconds:.0f} s", file=sys.stderr, flush=True)
            self.shown = seconds


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> None:
    """Start the server and stay with it until it ends or this process is told to stop (SIGINT, SIGTERM)."""
    (arguments,) = parse(LaunchArguments, argv, description=__doc__)
    start = {"vllm": serve_with_vllm, "torch": serve_with_torch}[arguments.engine]
    start(arguments)


def _check_port(arguments: LaunchArguments) -> None:
    if not port_is_free(arguments.host, arguments.port):
        raise InputError(f"port: {arguments.port} on {arguments.host} is taken; choose another --port")


def serve_with_torch(arguments: LaunchArguments) -> None:
    """The tree beam behind HTTP in this process; a signal lets running requests end first."""
    missing = [name for name in SERVER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{missing[0]}: is not installed here; install sidereal[serve], [cpu] or [vllm]")
    template = check_model_directory(arguments.model)
    _check_port(arguments)
    print(f"loading {arguments.model}: {template.index.catalog.num_items} items", flush=True)
    import torch

    from serve.decoding.recommender import Recommender
    from serve.engine.torch_engine import TorchEngine
    from serve.http.app import make_app, serve

    options, limits = arguments.torch_options(), arguments.http_limits()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = "float32" if device == "cpu" and arguments.dtype == "auto" else arguments.dtype
    recommender = Recommender.load(arguments.model, device, dtype)
    engine, name = TorchEngine(recommender, options), arguments.served_model_name
    app = make_app(name, recommender.template, engine, limits, arguments.api_keys())
    address = "127.0.0.1" if arguments.host in ("0.0.0.0", "::") else arguments.host
    url = f"http://{address}:{arguments.port}/v1"

    def ready() -> None:
        example = _example(url, name, bool(arguments.api_keys()))
        print(f"ready: {url} ({device}, {recommender.model.dtype})\n\n{example}\n", flush=True)

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        serve(app, arguments.host, arguments.port, limits.shutdown_s, ready)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)


def serve_with_vllm(arguments: LaunchArguments) -> None:
    """A `vllm serve` of its own, watched until it ends."""
    check_installed()
    template = check_model_directory(arguments.model)
    if is_cpu_build():
        check_cpu_attention(arguments.model)
    _check_port(arguments)
    log_file = arguments.log_file or Path(tempfile.gettempdir()) / f"sidereal-serve-{arguments.port}.log"
    kind, num_items = "CPU" if is_cpu_build() else "GPU", template.index.catalog.num_items
    print(f"starting vLLM ({kind}) for {arguments.model}: {num_items} items; log: {log_file}")
    server = Server(
        arguments.model,
        log_file,
        arguments.options(),
        arguments.host,
        arguments.port,
        arguments.start_timeout_s,
        template.pack.chat_template_kwargs,
        _Progress(),
    )
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        server.start()
        example = _example(server.base_url, arguments.served_model_name, bool(arguments.api_key))
        print(
            f"\nready after {server.start_seconds:.0f} s: {server.base_url}\n\n{example}\n",
            flush=True,
        )
        assert server.process is not None
        status = server.process.wait()
        raise ServerError(f"vLLM ended with status {status}: {server.last_error()}; see {log_file}")
    except ServerError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print("\nstopping vLLM ...", file=sys.stderr)
    finally:
        server.stop()


def _example(base_url: str, name: str, with_key: bool) -> str:
    body = {
        "model": name,
        "messages": [{"role": "user", "content": "something like the red trail shoes, but waterproof"}],
        "temperature": 0,
    }
    key = ' -H "Authorization: Bearer $KEY"' if with_key else ""
    return (
        f"curl {base_url}/chat/completions -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'"
    )


if __name__ == "__main__":
    run(main)
