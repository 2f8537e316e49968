"""RQ-KMeans at catalogue scale: time and memory against faiss, and against the matrix products alone.

    python benchmarks/sid_scale.py [--quick] [--rows 1000000] [--dims 384] [--codes 1024] [--levels 3]

Generated unit vectors in crowded and sparse clusters, in a memory-mapped file. Each contestant fits on the
same sample (256 points per code) for the same number of Lloyd iterations on raw residuals, and then encodes
every row, in a process of its own: ours, `faiss.ResidualQuantizer` (k-means training, a beam of 1), and
`faiss.Kmeans` level by level. Memory is the peak of RssAnon, pages of the process itself, above what it had
after imports: pages of the mapped file can be dropped at any time and are not counted.

Limit: assigning a row to a code of every level takes 2 x dims x codes x levels operations. The floor is
their time at the rate of the same products and nothing else, measured before and after in the same process;
by wall time and, for a machine that is shared with others, by CPU time.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import faiss
import numpy as np
import torch

from sid_builder.artifact import code_version
from sid_builder.encoding import encode_in_shards, fit_and_share, fit_sample
from sid_builder.quantizers.row_chunks import CHUNK_ROWS, in_order
from sid_builder.quantizers.rq_kmeans import RQKMeans, RQKMeansConfig

CONTESTANTS = ("sidereal", "faiss.ResidualQuantizer", "faiss.Kmeans per level")
BAR = 1.5  # encoding over the floor
SHARD_ROWS = 65536
ERROR_ROWS = 20000


class PeakMemory:
    """Highest RssAnon of this process since it was made, in MiB above its value then."""

    def __init__(self) -> None:
        self._start = self._peak = self._now()
        threading.Thread(target=self._watch, daemon=True).start()

    def mib(self) -> float:
        return round((max(self._peak, self._now()) - self._start) / 1024, 1)

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, self._now())
            time.sleep(0.02)

    @staticmethod
    def _now() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
        raise RuntimeError("/proc/self/status has no RssAnon: this benchmark needs Linux")


def generate(path: Path, arguments: argparse.Namespace) -> None:
    """Write the vectors: cluster sizes fall like 1 / rank, axes like 1 / sqrt(rank)."""
    rng = np.random.default_rng(arguments.seed)
    spectrum_D = (1 / np.sqrt(np.arange(1, arguments.dims + 1))).astype(np.float32)
    num_clusters = arguments.codes * 2
    centres = rng.standard_normal((num_clusters, arguments.dims), dtype=np.float32) * spectrum_D
    share = 1 / np.arange(1, num_clusters + 1)
    shape = (arguments.rows, arguments.dims)
    rows_ND = np.lib.format.open_memmap(path, mode="w+", dtype="<f4", shape=shape)
    for low in range(0, arguments.rows, SHARD_ROWS):
        size = min(SHARD_ROWS, arguments.rows - low)
        block = centres[rng.choice(num_clusters, size, p=share / share.sum())]
        block += 0.7 * rng.standard_normal(block.shape, dtype=np.float32) * spectrum_D
        rows_ND[low : low + size] = block / np.linalg.norm(block, axis=1, keepdims=True)
    rows_ND.flush()


def now() -> np.ndarray:
    """Wall and CPU seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def gemm_rates(dims: int, codes: int, seconds: float = 1.0) -> np.ndarray:
    """Operations per wall and per CPU second of one chunk's product, by all threads as encoding does them."""
    chunk_CD, centroids_KD = torch.randn(CHUNK_ROWS, dims), torch.randn(codes, dims)
    out = threading.local()

    def multiply(_: int) -> None:
        if not hasattr(out, "scores"):
            out.scores = torch.empty(CHUNK_ROWS, codes)
        torch.mm(chunk_CD, centroids_KD.T, out=out.scores)

    done, started = 0, now()
    while now()[0] - started[0] < seconds:
        done += sum(1 for _ in in_order(multiply, range(64), torch.device("cpu")))
    return 2 * CHUNK_ROWS * dims * codes * done / (now() - started)


def compete(name: str, path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fit and encode; seconds, peak memory, and the error on the first rows."""
    rows_ND = np.load(path, mmap_mode="r")
    sizes = (arguments.codes,) * arguments.levels
    sample = fit_sample(*rows_ND.shape, level_sizes=sizes, seed=arguments.seed, min_rows=0)
    contestant = {CONTESTANTS[0]: ours, CONTESTANTS[1]: faiss_rq, CONTESTANTS[2]: faiss_kmeans}[name]
    memory, started = PeakMemory(), now()
    encode, decode = contestant(rows_ND, sample, arguments)
    fitting, fit_mib = now() - started, memory.mib()
    rates = [gemm_rates(arguments.dims, arguments.codes)]
    memory, started = PeakMemory(), now()
    codes = encode()
    encoding, encode_mib = now() - started, memory.mib()
    rates.append(gemm_rates(arguments.dims, arguments.codes))
    head_ND = np.array(rows_ND[:ERROR_ROWS])
    error = ((head_ND - decode(codes[:ERROR_ROWS])) ** 2).sum() / (head_ND**2).sum()
    operations = 2 * arguments.rows * arguments.dims * arguments.codes * arguments.levels
    floor = operations / np.mean(rates, axis=0)
    return {
        "sample_rows": len(sample),
        "fit_seconds": round(fitting[0], 2),
        "fit_cpu_seconds": round(fitting[1], 2),
        "encode_seconds": round(encoding[0], 2),
        "floor_seconds": round(floor[0], 2),
        "encode_over_floor": round(encoding[0] / floor[0], 2),
        "encode_over_floor_cpu": round(encoding[1] / floor[1], 2),
        "gemm_gflops": [round(rate[0] / 1e9, 1) for rate in rates],
        "fit_peak_mib": fit_mib,
        "encode_peak_mib": encode_mib,
        "error": round(float(error), 4),
    }


Coders = tuple[Callable[[], np.ndarray], Callable[[np.ndarray], np.ndarray]]


def ours(rows_ND: np.ndarray, sample: np.ndarray, arguments: argparse.Namespace) -> Coders:
    config = RQKMeansConfig(
        levels=arguments.levels,
        codes_per_level=arguments.codes,
        normalize="none",
        iterations=arguments.iterations,
        device="cpu",
    )
    directory = Path(arguments.directory)
    quantizer = fit_and_share(RQKMeans(config, arguments.seed), rows_ND, sample, directory / "quantizer")

    def encode() -> np.ndarray:
        return encode_in_shards(directory / "quantizer", rows_ND, directory / "codes", shard_rows=SHARD_ROWS)

    return encode, quantizer.reconstruct


def faiss_rq(rows_ND: np.ndarray, sample: np.ndarray, arguments: argparse.Namespace) -> Coders:
    bits = arguments.codes.bit_length() - 1
    quantizer = faiss.ResidualQuantizer(arguments.dims, arguments.levels, bits)
    quantizer.train_type = faiss.ResidualQuantizer.Train_default
    quantizer.max_beam_size = 1
    quantizer.cp.niter, quantizer.cp.seed = arguments.iterations, arguments.seed
    quantizer.train(rows_ND[sample])

    def encode() -> np.ndarray:
        blocks = range(0, len(rows_ND), SHARD_ROWS)
        return np.concatenate([quantizer.compute_codes(rows_ND[low : low + SHARD_ROWS]) for low in blocks])

    return encode, quantizer.decode


def faiss_kmeans(rows_ND: np.ndarray, sample: np.ndarray, arguments: argparse.Namespace) -> Coders:
    tables = []
    rest_MD = rows_ND[sample]
    for level in range(arguments.levels):
        kmeans = faiss.Kmeans(
            arguments.dims, arguments.codes, niter=arguments.iterations, seed=arguments.seed + level
        )
        kmeans.train(rest_MD)
        tables.append(kmeans.centroids.copy())
        rest_MD -= tables[-1][faiss.knn(rest_MD, tables[-1], 1)[1][:, 0]]

    def encode() -> np.ndarray:
        codes_NL = np.empty((len(rows_ND), arguments.levels), dtype=np.int32)
        for low in range(0, len(rows_ND), SHARD_ROWS):
            rest_ND = np.array(rows_ND[low : low + SHARD_ROWS])
            for level, table in enumerate(tables):
                codes_NL[low : low + SHARD_ROWS, level] = faiss.knn(rest_ND, table, 1)[1][:, 0]
                rest_ND -= table[codes_NL[low : low + SHARD_ROWS, level]]
        return codes_NL

    return encode, lambda codes_NL: sum(table[codes_NL[:, level]] for level, table in enumerate(tables))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="60,000 rows, 512 codes: under 45 s")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=384)
    parser.add_argument("--codes", type=int, default=1024, help="a power of two, for faiss's sake")
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--directory", help="for the vectors (4 x rows x dims bytes); a temporary one")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.rows, arguments.codes, arguments.iterations = 60_000, 512, 4
    if arguments.contestant:
        path = Path(arguments.directory) / "vectors.npy"
        print(json.dumps(compete(arguments.contestant, path, arguments)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        generate(Path(directory) / "vectors.npy", arguments)
        results = {}
        for name in CONTESTANTS:
            command = [
                sys.executable,
                __file__,
                *sys.argv[1:],
                "--directory",
                directory,
                "--contestant",
                name,
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[name] = json.loads(done.stdout.splitlines()[-1])
    mine, peer = results[CONTESTANTS[0]], results[CONTESTANTS[1]]
    per_item = mine["encode_seconds"] / arguments.rows
    # A chunk, the centroids it is to lose, its scores; float32.
    chunk_bytes = 4 * arguments.threads * CHUNK_ROWS * (2 * arguments.dims + arguments.codes)
    result = {
        "benchmark": "sid_scale",
        "contestants": results,
        "fit_over_faiss": round(mine["fit_seconds"] / peer["fit_seconds"], 2),
        "encode_over_faiss": round(mine["encode_seconds"] / peer["encode_seconds"], 2),
        "encode_over_floor": mine["encode_over_floor"],
        "encode_over_floor_cpu": mine["encode_over_floor_cpu"],
        "chunk_rows": CHUNK_ROWS,
        "chunks_mib": round(chunk_bytes / 2**20, 1),
        "sample_mib": round(mine["sample_rows"] * arguments.dims * 4 / 2**20, 1),
        "hours_for_100_million": round(per_item * 1e8 / 3600, 3),
        "bars": {"encode_over_floor": BAR},
        "config": {key: value for key, value in vars(arguments).items() if key != "contestant"},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__},
        "code": code_version(),
    }
    print(
        f"{'':24} {'fit s':>8} {'encode s':>9} {'floor s':>8} {'fit MiB':>8} {'encode MiB':>10} {'error':>7}"
    )
    for name, got in results.items():
        print(
            f"{name:24} {got['fit_seconds']:8} {got['encode_seconds']:9} {got['floor_seconds']:8} "
            f"{got['fit_peak_mib']:8} {got['encode_peak_mib']:10} {got['error']:7}"
        )
    print(
        f"limit: encoding takes its products {mine['floor_seconds']} s; measured {mine['encode_over_floor']} "
        f"times that (bar {BAR}), {mine['encode_over_floor_cpu']} times by CPU time"
    )
    print(
        f"memory: fitting holds the sample ({result['sample_mib']} MiB) twice, encoding a chunk of "
        f"{CHUNK_ROWS} rows a thread ({result['chunks_mib']} MiB), whatever the number of rows"
    )
    print(
        f"100 million items by that law: the fit stays as it is, encoding takes "
        f"{result['hours_for_100_million']} hours on this machine, divided by the number of machines"
    )
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
