"""The torch engine's server under concurrent users: micro-batches against one request at a time.

    python benchmarks/serving.py [--quick] [--users 1 8 32] [--beams 50] [--seconds 8]

A Qwen3 of the toy's size (2 layers x 96, random weights, fp32) over 2,000 random items under 3 x 64 codes.
Two real `python -m serve.launch --engine torch` run side by side; one batches what arrives together, the
other is told to decode requests alone. Users are threads that each keep a connection open, ask
/v1/recommendations for ten items behind a history of 5 to 20 items, read the answer and ask again at once.
The servers are asked in turns, several times each; every answer is checked to be ten distinct items.

The clients run on the same cores as the servers: throughput is the machine's, not the server's alone.
`server_cpu_ms`, CPU time of the server's process per request, is what a busy machine changes least.
"""

import argparse
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from prompts.pack import PromptPack
from serve.vllm.server import free_port
from sft.model_directory import write_model_directory
from sft.models.scratch import ScratchConfig, build_model, train_tokenizer
from sid_builder.artifact import code_version
from sid_builder.catalog import Catalog
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex

ROOT = Path(__file__).resolve().parents[1]
ITEMS, CODES, LEVELS, WANTED = 2000, 64, 3, 10
SERVERS = {"micro_batches": {}, "one_at_a_time": {"batch_tokens": 1}}


def write_model(path: Path, seed: int) -> None:
    """A model directory of the toy's size with random weights."""
    from tokenizers import AddedToken

    rng = np.random.default_rng(seed)
    codes = np.unique(rng.integers(0, CODES, (ITEMS + 200, LEVELS)), axis=0)
    codes_NL = rng.permutation(codes)[:ITEMS].astype(np.int32)
    catalog = Catalog.from_rows([{"item_id": f"I{i}", "title": f"thing number {i}"} for i in range(ITEMS)])
    index = SidIndex(catalog, SemanticIds(codes_NL, (CODES,) * LEVELS), np.zeros(ITEMS, dtype=np.int64))
    tokenizer = train_tokenizer(catalog.titles, 1024)
    tokens = index.semantic_ids.all_tokens()
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    config = ScratchConfig(hidden_size=96, num_layers=2, num_heads=3, intermediate_size=256)
    model = build_model(config, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, seed)
    write_model_directory(path, model, tokenizer, PromptPack.load("plain"), index, None)


def start(model_dir: Path, beams: int, torch_args: dict, log: Path) -> tuple[subprocess.Popen, int]:
    port = free_port()
    command = [sys.executable, "-m", "serve.launch", "--engine", "torch", "--model", str(model_dir)]
    limits = {"beam_width": beams, "max_beam_width": max(beams, 100)}
    command += ["--port", str(port), "--limits", json.dumps(limits), "--torch_args", json.dumps(torch_args)]
    with open(log, "wb") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT), port


def ask(connection: http.client.HTTPConnection, path: str, body: dict | None = None) -> bytes:
    headers = {"Content-Type": "application/json"}
    method, content = ("GET", None) if body is None else ("POST", json.dumps(body))
    connection.request(method, path, content, headers)
    answer = connection.getresponse()
    read = answer.read()
    assert answer.status == 200, read
    return read


def wait(process: subprocess.Popen, port: int, log: Path) -> None:
    while True:
        if process.poll() is not None:
            sys.exit(f"the server ended: {log.read_text()}")
        try:
            ask(http.client.HTTPConnection("127.0.0.1", port, timeout=10), "/health")
            return
        except OSError:
            time.sleep(0.1)


def batches(port: int) -> tuple[float, float]:
    """Requests decoded and batches they came in, so far."""
    text = ask(http.client.HTTPConnection("127.0.0.1", port, timeout=10), "/metrics").decode()
    series = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return tuple(float(series[f"sidereal_batch_size_{name}"]) for name in ("sum", "count"))


def one_user(port: int, seed: int, ends: float) -> list[float]:
    """Seconds of each request one user made until `ends`."""
    rng = np.random.default_rng(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    taken = []
    while time.perf_counter() < ends:
        history = [f"I{item}" for item in rng.integers(0, ITEMS, rng.integers(5, 21))]
        started = time.perf_counter()
        answer = json.loads(ask(connection, "/v1/recommendations", {"history": history, "k": WANTED}))
        taken.append(time.perf_counter() - started)
        found = {item["item_id"] for item in answer["data"]}
        assert len(found) == WANTED and not found & set(history), answer
    connection.close()
    return taken


def cpu_seconds(process: subprocess.Popen) -> float:
    """CPU time a server has taken so far, of all its threads (Linux)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(process: subprocess.Popen, port: int, users: int, seconds: float, seed: int) -> dict[str, float]:
    """Throughput, latencies, the mean batch and the server's CPU time under so many users at once."""
    before, cpu = batches(port), cpu_seconds(process)
    started = time.perf_counter()
    with ThreadPoolExecutor(users) as pool:
        runs = [pool.submit(one_user, port, seed + user, started + seconds) for user in range(users)]
        taken = [second for run in runs for second in run.result()]
    elapsed = time.perf_counter() - started
    requests, count = (after - first for after, first in zip(batches(port), before, strict=True))
    p50, p99 = np.percentile(taken, [50, 99]) * 1000
    return {
        "requests_per_s": len(taken) / elapsed,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "mean_batch": requests / count,
        "server_cpu_ms": 1000 * (cpu_seconds(process) - cpu) / len(taken),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short turn each: under 45 s")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--seconds", type=float, help="of one turn; default 8, with --quick 1.5")
    parser.add_argument("--turns", type=int, help="default 3, with --quick 1")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.seconds = arguments.seconds or (1.5 if arguments.quick else 8.0)
    arguments.turns = arguments.turns or (1 if arguments.quick else 3)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model_dir = Path(folder) / "model"
        write_model(model_dir, arguments.seed)
        logs = {name: Path(folder) / f"{name}.log" for name in SERVERS}
        running = {
            name: start(model_dir, arguments.beams, args, logs[name]) for name, args in SERVERS.items()
        }
        try:
            for name, (process, port) in running.items():
                wait(process, port, logs[name])
                load(process, port, 4, 0.5, arguments.seed)  # warm: allocators, connections
            for users in arguments.users:
                rows = found.setdefault(str(users), {name: [] for name in SERVERS})
                for turn in range(arguments.turns):
                    for name, (process, port) in running.items():
                        rows[name].append(
                            load(process, port, users, arguments.seconds, arguments.seed + 1000 * turn)
                        )
        finally:
            for process, _ in running.values():
                process.terminate()
            for process, _ in running.values():
                process.wait()
    median = {
        users: {
            name: {key: round(statistics.median(turn[key] for turn in turns), 2) for key in turns[0]}
            for name, turns in rows.items()
        }
        for users, rows in found.items()
    }
    result = {
        "benchmark": "serving",
        "users": median,
        "speedup": {
            users: round(rows["micro_batches"]["requests_per_s"] / rows["one_at_a_time"]["requests_per_s"], 2)
            for users, rows in median.items()
        },
        "turns": found,
        "config": vars(arguments),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "code": code_version(),
    }
    for users, rows in median.items():
        for name, row in rows.items():
            print(
                f"{users:>3} users, {name:<14} {row['requests_per_s']:7.1f} requests/s, "
                f"p50 {row['p50_ms']:7.1f} ms, p99 {row['p99_ms']:7.1f} ms, batch {row['mean_batch']:.1f}, "
                f"{row['server_cpu_ms']:.1f} ms of server CPU each"
            )
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
