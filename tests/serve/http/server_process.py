"""A real `python -m serve.launch --engine torch` over a tiny model, asked over loopback."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serve.decoding.recommender import Recommender
from serve.vllm.server import free_port

ROOT = Path(__file__).parents[3]
KEY = "key-of-the-tests"


@dataclass(frozen=True)
class Served:
    """A running process, the recommender it serves, a real OpenAI client of it, and a plain one."""

    process: subprocess.Popen
    model_dir: Path
    recommender: Recommender
    port: int
    client: Any
    http: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: Any, key: str | None = KEY) -> tuple[int, Any]:
        """Status and parsed body of a JSON request."""
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
        answer = self.http.post(path, content=content, headers=headers)
        return answer.status_code, answer.json()

    def metric(self, name: str) -> float:
        """A metric's value, summed over its labels."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        values = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return sum(float(value) for series, value in values if series.partition("{")[0] == name)


@contextmanager
def serving(model_dir: Path, recommender: Recommender, log: Path, *flags: str) -> Iterator[Served]:
    """The server of a model directory, stopped at the end whatever happened."""
    openai = pytest.importorskip("openai", reason="openai is not installed (extra [serve], [cpu] or [vllm])")
    import httpx

    port = free_port()
    command = [sys.executable, "-m", "serve.launch", "--engine", "torch", "--model", str(model_dir)]
    command += ["--port", str(port), *flags]
    environment = {**os.environ, "SIDEREAL_API_KEYS": f"another-key, {KEY}", "OMP_NUM_THREADS": "1"}
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_for_health(process, port, log)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, timeout=60, max_retries=0)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            yield Served(process, model_dir, recommender, port, client, http)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()


def wait_for_health(process: subprocess.Popen, port: int, log: Path) -> None:
    ends = time.monotonic() + 120
    while time.monotonic() < ends:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no answer within 120 s: {log.read_text()}")
