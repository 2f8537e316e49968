"""The server process and its command: what is checked before the start, and that nothing is left behind."""

import dataclasses
import inspect
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import serve.vllm.server
from prompts.pack import PromptPack
from serve.launch import LaunchArguments, check_cpu_attention, check_model_directory, main
from serve.vllm.command import EngineOptions, vllm_command, vllm_environment
from serve.vllm.server import Server, ServerError
from sft.model_directory import write_model_directory
from sid_builder.cli import parse
from sid_builder.errors import InputError
from tests.builders import make_recommender

CONFIGS = Path(__file__).parents[2] / "configs" / "serve"


@pytest.fixture(scope="module")
def model_dir(small_index, tmp_path_factory):
    recommender = make_recommender(small_index, num_heads=2)
    path = tmp_path_factory.mktemp("launch") / "model"
    pack = recommender.template.pack
    write_model_directory(path, recommender.model, recommender.tokenizer, pack, small_index, None)
    return path


@pytest.fixture
def copy_of_model(model_dir, tmp_path):
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    reseal(path.parent, path.name)


def reseal(directory, name):
    """Keep a changed file's size in the manifest true."""
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"][name]["bytes"] = (directory / name).stat().st_size
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["cpu.yaml", "gpu.yaml"])
def test_shipped_configs_parse(name):
    (arguments,) = parse(LaunchArguments, ["--config", str(CONFIGS / name), "--model", "somewhere"])
    assert arguments.model == "somewhere" and arguments.max_num_seqs


def test_a_good_directory_passes(model_dir):
    assert check_model_directory(model_dir).index.catalog.num_items == 300
    check_cpu_attention(model_dir)


def test_truncated_weights_are_named(copy_of_model):
    weights = copy_of_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match="model.safetensors: has .* bytes"):
        main(["--model", str(copy_of_model)])


def test_a_plain_checkpoint_is_no_model_directory(tmp_path):
    with pytest.raises(InputError, match="has no manifest.json"):
        main(["--model", str(tmp_path)])


def test_tokenizer_that_disagrees_with_the_index(copy_of_model):
    content = json.loads((copy_of_model / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<c_3>"]
    edit_json(copy_of_model / "tokenizer.json", added_tokens=content["added_tokens"])
    with pytest.raises(
        InputError, match="tokenizer: '<c_3>', which the SID index uses, is not in its vocabulary"
    ):
        main(["--model", str(copy_of_model)])


def test_more_tokens_than_embedding_rows(copy_of_model):
    edit_json(copy_of_model / "config.json", vocab_size=600)
    with pytest.raises(InputError, match="beyond the model's 600 embedding rows"):
        main(["--model", str(copy_of_model)])


def test_answers_that_would_not_end(copy_of_model):
    edit_json(copy_of_model / "config.json", eos_token_id=5)
    edit_json(copy_of_model / "generation_config.json", eos_token_id=[5])
    edit_json(copy_of_model / "tokenizer_config.json", eos_token="<|pad|>")
    pack = PromptPack.load(copy_of_model / "prompt_pack.yaml")
    framed = pack.chat_template.replace("eos_token", "'<|end|>'")
    dataclasses.replace(pack, chat_template=framed).save(copy_of_model / "prompt_pack.yaml")
    reseal(copy_of_model, "prompt_pack.yaml")
    with pytest.raises(
        InputError, match=r"an answer ends with '<\|end\|>', which is no end token of the model"
    ):
        check_model_directory(copy_of_model)


def test_heads_the_cpu_kernel_lacks(copy_of_model):
    edit_json(copy_of_model / "config.json", head_dim=24)
    with pytest.raises(InputError, match="heads of 24 cannot be served on CPU; use head_dim in"):
        check_cpu_attention(copy_of_model)


def test_vllm_missing_names_the_extra(monkeypatch, model_dir):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"vllm: is not installed here; install sidereal\[vllm\]"):
        main(["--model", str(model_dir)])


def test_port_taken(model_dir):
    pytest.importorskip("vllm", reason="vLLM is not installed (extra [cpu] or [vllm])")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port: {port} on 127.0.0.1 is taken"):
            main(["--model", str(model_dir), "--port", str(port)])


def test_the_config_of_the_torch_engine_parses():
    (arguments,) = parse(LaunchArguments, ["--config", str(CONFIGS / "torch.yaml"), "--model", "somewhere"])
    assert arguments.engine == "torch" and arguments.torch_options().batch_tokens == 4096
    assert arguments.http_limits().beam_width == 50


def test_keys_come_from_the_flag_and_the_environment(monkeypatch):
    monkeypatch.setenv("SIDEREAL_API_KEYS", " one,, two")
    assert LaunchArguments("m", engine="torch", api_key="three").api_keys() == ["three", "one", "two"]
    monkeypatch.delenv("SIDEREAL_API_KEYS")
    assert LaunchArguments("m", engine="torch").api_keys() == []


def test_keys_that_vllm_would_not_read_are_refused(monkeypatch):
    monkeypatch.setenv("SIDEREAL_API_KEYS", "secret")
    with pytest.raises(InputError, match="SIDEREAL_API_KEYS: --engine vllm would not read it") as raised:
        main(["--model", "m"])
    assert "secret" not in str(raised.value)


def test_server_packages_missing_name_the_extra(monkeypatch, model_dir):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"fastapi: is not installed here; install sidereal\[serve\]"):
        main(["--engine", "torch", "--model", str(model_dir)])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--engine", "jax"], "engine: .*jax"),
        (["--engine", "torch", "--max_num_seqs", "3"], "max_num_seqs: does nothing for --engine torch"),
        (["--limits", '{"max_items": 3}'], "limits: does nothing for --engine vllm"),
        (["--engine", "torch", "--torch_args", '{"batch": 3}'], "torch_args.batch: unknown key; known"),
        (["--engine", "torch", "--torch_args", '{"batch_wait_ms": -1}'], "torch_args.batch_wait_ms: -1"),
        (["--engine", "torch", "--torch_args", '{"max_waiting": 0}'], "torch_args.max_waiting: 0"),
        (["--engine", "torch", "--limits", '{"max_items": 500}'], "limits.max_items: 500 is over max_beam"),
        (["--engine", "torch", "--limits", '{"beam_width": 500}'], "limits.beam_width: 500 is over max_beam"),
        (["--engine", "torch", "--limits", '{"max_history": 0}'], "limits.max_history: 0 is too small"),
        (["--port", "70000"], "port: 70000"),
        (["--max_num_seqs", "0"], "max_num_seqs: 0"),
        (["--dtype", "int8"], "dtype: 'int8'"),
        (["--max_seqs", "3"], "max_seqs: unknown key; did you mean 'max_num_seqs'"),
    ],
)
def test_bad_flags(flags, words):
    with pytest.raises(InputError, match=words):
        main(["--model", "m", *flags])


def test_command_and_environment(monkeypatch):
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-1")
    options = EngineOptions(api_key="secret", max_num_seqs=3, extra=["--seed", "5"])
    command = vllm_command(Path("m"), "127.0.0.1", 81, options, {"enable_thinking": False}, cpu=True)
    text = " ".join(command)
    for part in (
        "--logits-processors serve.vllm.logits_processor:SidLogitsProcessor",
        "--logprobs-mode processed_logits",
        "--generation-config vllm",
        "--dtype float32",
        "--block-size 32",
        "--enforce-eager",
        '--default-chat-template-kwargs {"enable_thinking": false}',
        "--max-num-seqs 3",
        "--seed 5",
    ):
        assert part in text
    assert "secret" not in text
    environment = vllm_environment(Path("m"), options, cpu=True)
    assert environment["VLLM_API_KEY"] == "secret" and environment["OMP_NUM_THREADS"] == "1"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"  # the user's own setting wins
    gpu = " ".join(vllm_command(Path("m"), "127.0.0.1", 81, EngineOptions(), {}, cpu=False))
    assert "float32" not in gpu and "--enforce-eager" not in gpu and "--block-size" not in gpu
    assert "OMP_NUM_THREADS" not in vllm_environment(Path("m"), EngineOptions(), cpu=False)


def test_chunked_prefill_is_off_on_cpu_as_long_as_seeded_requests_would_end_the_engine():
    runner = pytest.importorskip("vllm.v1.worker.gpu_model_runner", reason="vLLM is not installed")
    assert "get_offset() - 4" in inspect.getsource(runner.GPUModelRunner._bookkeeping_sync)
    with pytest.raises(RuntimeError, match="does not use offset"):
        torch.Generator().get_offset()
    assert "--no-enable-chunked-prefill" in vllm_command(Path("m"), "h", 1, EngineOptions(), {}, cpu=True)


STAND_IN = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
if sys.argv[1] == "dies":
    sys.exit("ValueError: no such model")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if sys.argv[1] == "hangs" else 200)
        self.end_headers()
    def do_POST(self):
        self.send_response(500 if sys.argv[1] == "refuses" else 200)
        self.end_headers()
    def log_message(self, *arguments): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


def stand_in(monkeypatch, behaviour):
    """A server that answers, hangs or dies in place of vLLM; it has a child, as vLLM has an engine."""

    def command(model, host, port, options, template_kwargs, cpu):
        return [sys.executable, "-c", STAND_IN, behaviour, str(port)]

    monkeypatch.setattr(serve.vllm.server, "vllm_command", command)
    monkeypatch.setattr(serve.vllm.server, "is_cpu_build", lambda: True)


def assert_gone(log_file):
    child = int(log_file.read_text().split()[1])
    for _ in range(50):
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(child)], capture_output=True, text=True
        ).stdout.strip()
        if state in ("", "Z"):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {child} is still there: {state}")


def test_server_starts_and_leaves_nothing_behind(monkeypatch, tmp_path):
    stand_in(monkeypatch, "answers")
    with Server("m", tmp_path / "logs" / "vllm.log", timeout_s=60) as server:
        assert server.healthy() and server.start_seconds > 0
        assert server.base_url == f"http://127.0.0.1:{server.port}/v1"
    server.stop()  # twice is harmless
    assert_gone(tmp_path / "logs" / "vllm.log")


def test_server_that_dies_says_why(monkeypatch, tmp_path):
    stand_in(monkeypatch, "dies")
    with pytest.raises(
        ServerError, match="vLLM ended with status 1: ValueError: no such model; see .*vllm.log"
    ):
        Server("m", tmp_path / "vllm.log", timeout_s=60).start()
    assert_gone(tmp_path / "vllm.log")


def test_server_that_never_answers_is_stopped(monkeypatch, tmp_path):
    stand_in(monkeypatch, "hangs")
    with pytest.raises(ServerError, match="did not answer within 3 s"):
        Server("m", tmp_path / "vllm.log", timeout_s=3).start()
    assert_gone(tmp_path / "vllm.log")


def test_server_that_is_healthy_and_answers_nothing_is_stopped(monkeypatch, tmp_path):
    stand_in(monkeypatch, "refuses")
    with pytest.raises(ServerError, match="vLLM started but answers no request .*500"):
        Server("m", tmp_path / "vllm.log", timeout_s=60).start()
    assert_gone(tmp_path / "vllm.log")


@pytest.mark.vllm
def test_engine_that_refuses_its_flags_ends_the_command_in_one_line(model_dir, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed (extra [cpu] or [vllm])")
    log_file = tmp_path / "vllm.log"
    command = [sys.executable, "-m", "serve.launch", "--model", str(model_dir), "--log_file", str(log_file)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command += ["--port", str(port), "--vllm_flags=--no-such-flag"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=root,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode != 0
    error = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "vLLM ended with status" in error[0] and "no-such-flag" in error[0], (
        done.stderr[-2000:]
    )
