"""A vLLM server over a tiny model, started once per test run and stopped with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serve.decoding.recommender import Recommender


@dataclass(frozen=True)
class Endpoint:
    """A running server, the recommender it serves, and a real OpenAI client of it."""

    server: Any
    model_dir: Path
    recommender: Recommender
    client: Any


@pytest.fixture(scope="session")
def endpoint(small_index, tmp_path_factory):
    """Random weights in fp32: every legal path has a probability, so nothing is illegal by luck."""
    pytest.importorskip("vllm", reason="vLLM is not installed (extra [cpu] or [vllm])")
    openai = pytest.importorskip("openai", reason="openai is not installed (extra [cpu] or [vllm])")
    from serve.vllm.command import EngineOptions
    from serve.vllm.server import Server
    from sft.model_directory import write_model_directory
    from tests.builders import make_recommender

    recommender = make_recommender(small_index, num_heads=2)  # heads of 32: vLLM's CPU kernel has none of 16
    folder = tmp_path_factory.mktemp("endpoint")
    model_dir = folder / "model"
    pack, tokenizer = recommender.template.pack, recommender.tokenizer
    write_model_directory(model_dir, recommender.model, tokenizer, pack, small_index, None)
    # Little room, so that requests are preempted.
    tight = ["--num-gpu-blocks-override", "48"]
    options = EngineOptions(max_num_seqs=32, max_model_len=512, cpu_kv_cache_gib=1, extra=tight)
    with Server(model_dir, folder / "vllm.log", options, timeout_s=420) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="none", timeout=120, max_retries=0)
        yield Endpoint(server, model_dir, recommender, client)
    assert server.process.poll() is not None
