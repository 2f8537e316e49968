"""A vLLM server as a context manager: starts, waits until it answers, and leaves no process behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from serve.vllm.command import EngineOptions, is_cpu_build, vllm_command, vllm_environment


class ServerError(RuntimeError):
    """The server died or did not answer in time; one line that names the log."""


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def port_is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class Server:
    """`vllm serve` of one model directory.

    Args:
        log_file: everything the processes print; kept.
        port: 0 takes a free one.
        timeout_s: how long the start may take.
        template_kwargs: chat template arguments of the prompt pack, the server's default for every request.
        progress: called about once a second with the seconds waited, while the server starts.
    """

    def __init__(
        self,
        model: str | Path,
        log_file: str | Path,
        options: EngineOptions | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        timeout_s: float = 600,
        template_kwargs: dict[str, Any] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.model = Path(model).resolve()
        self.log_file = Path(log_file)
        self.options = options or EngineOptions()
        self.host, self.port = host, port or free_port(host)
        self.timeout_s = timeout_s
        self.template_kwargs = template_kwargs or {}
        self.progress = progress or (lambda seconds: None)
        self.process: subprocess.Popen | None = None
        self.start_seconds = float("nan")

    @property
    def root_url(self) -> str:
        return f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client calls `base_url`."""
        return self.root_url + "/v1"

    def start(self) -> None:
        """Start, wait for /health and let it answer one request.

        Raises:
            ServerError: when a process dies or `timeout_s` passes; everything started is stopped first.
        """
        cpu = is_cpu_build()
        command = vllm_command(self.model, self.host, self.port, self.options, self.template_kwargs, cpu)
        begun = time.monotonic()
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log_file, "wb") as log:
            self.process = subprocess.Popen(
                command,
                env=vllm_environment(self.model, self.options, cpu),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a process group of its own, stopped as a whole
            )
        try:
            self._wait_until_ready(begun)
            self._first_request()
        except BaseException:
            self.stop(grace_s=2)
            raise
        self.start_seconds = time.monotonic() - begun

    def _wait_until_ready(self, begun: float) -> None:
        assert self.process is not None
        while not self.healthy():
            waited = time.monotonic() - begun
            if (status := self.process.poll()) is not None:
                raise ServerError(
                    f"vLLM ended with status {status}: {self.last_error()}; see {self.log_file}"
                )
            if waited > self.timeout_s:
                raise ServerError(f"vLLM did not answer within {self.timeout_s:.0f} s; see {self.log_file}")
            self.progress(waited)
            time.sleep(0.5)

    def _first_request(self) -> None:
        """vLLM reports health before its frontend has loaded the logits processor or a kernel has run."""
        body = {"model": self.options.served_model_name, "prompt": "a", "temperature": 0, "max_tokens": 30}
        headers = {"Content-Type": "application/json"}
        if key := self.options.api_key or os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        url = self.base_url + "/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            urllib.request.urlopen(request, timeout=120).read()
        except OSError as error:
            raise ServerError(
                f"vLLM started but answers no request ({error}): {self.last_error()}; see {self.log_file}"
            ) from error

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self.root_url + "/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def last_error(self) -> str:
        """The last line of the log that looks like an error, without vLLM's prefix."""
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if "Error" in line or line.startswith("error:")]
        return (errors or lines or ["no output"])[-1].split("] ")[-1].strip()[:300]

    def stop(self, grace_s: float = 20) -> None:
        """Ask the server to end, then end its whole process group. Safe to call again."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
