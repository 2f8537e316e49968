"""Every quantizer on the same item vectors: what its SIDs look like and how well a small decoder learns them.

    python benchmarks/quantizers.py --quick                                    # a generated shop, under 45 s
    python benchmarks/quantizers.py --data_path DIR --embeddings vectors.npy   # a jsonl data directory
    python benchmarks/quantizers.py --data_path DIR --embeddings vectors.npy --decoder --jobs 2

Each case is one `sid_builder.build` with `repair: last_level_assign`; the figures are the build's own report.
`--decoder` also trains one fixed decoder (benchmarks/sid_decoder.py) on the SIDs of the main cases, three
seeds each (quantizer and training share the seed), and ranks every test case on the full catalogue. Its runs
are a queue: a finished run is one JSON under --results (its ranks inside) and is never run again, so an
interrupted comparison goes on where it stopped. Differences against `rq_kmeans` are means over seeds of
paired cases, with a bootstrap over cases (1,000 resamples, 95 %); the standard deviation over seeds stands
beside each mean.

Limit: an evenly used level of 256 codes has a perplexity of 256; no repair can end collisions with fewer SIDs
than items.
"""

import argparse
import base64
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import yaml

import sid_builder.build
from serve.evaluation.metrics import bootstrap_means, gains, hits, interval
from sid_builder.artifact import code_version, sha256_file, write_json

ROOT = Path(__file__).resolve().parents[1]
SHAPE = {"levels": 3, "codes_per_level": 256}
SEEDS = (0, 1, 2)
DECODER = ROOT / "benchmarks" / "sid_decoder.py"
BASE = "rq_kmeans"
# Name -> quantizer, its options, and whether the decoder is trained on it.
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "rq_kmeans": ("rq_kmeans", SHAPE, True),
    "rq_kmeans, raw": ("rq_kmeans", SHAPE | {"normalize": "none"}, False),
    "rq_kmeans, input normalised": ("rq_kmeans", SHAPE | {"normalize": "input"}, False),
    "rq_kmeans, balanced": ("rq_kmeans", SHAPE | {"balanced": True}, False),
    "rvq": ("rvq", SHAPE | {"steps": 1000}, True),
    "rqvae": ("rqvae", SHAPE, True),
    "rq_kmeans_plus": ("rq_kmeans_plus", SHAPE | {"steps": 1000}, True),
    "hierarchical_kmeans": ("hierarchical_kmeans", {"depth": 3, "branching": 64}, True),
    "opq": ("opq", {"levels": 4, "codes_per_level": 256}, False),
    "rq_opq": ("rq_opq", {"levels": 2, "codes_per_level": 256, "tail_digits": 2}, False),
    "random": ("random", SHAPE, True),
}
# What --quick changes, so that every quantizer trains for a second or two.
QUICK: dict[str, dict[str, Any]] = {
    "rvq": {"steps": 100},
    "rqvae": {"steps": 100},
    "rq_kmeans_plus": {"steps": 100},
    "hierarchical_kmeans": {"branching": 16},
    "rq_opq": {"tail_codes": 32},
}


def build_config(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The YAML of one case."""
    quantizer, options, _ = CASES[name]
    config: dict[str, Any] = {
        "quantizer": quantizer,
        "quantizer_args": options,
        "repair": "last_level_assign",
    }
    if arguments.quick:
        shape = {key: {"levels": 3, "codes_per_level": 32}[key] for key in options if key in SHAPE}
        config |= {"source": "toy", "embedder": "tfidf_svd", "embedder_args": {"dim": 32}}
        config["quantizer_args"] = options | shape | QUICK.get(name, {})
    else:
        config |= {"source": "jsonl", "data_path": arguments.data_path, "embedder": "precomputed"}
        config["embedder_args"] = {"file": arguments.embeddings}
    return config


def slug(name: str, seed: int) -> str:
    return f"{name.replace(', ', '-').replace(' ', '_')}_seed{seed}"


def run(command: list[str], log: Path) -> str:
    """What a command prints on standard output; the rest is in `log`, whose end an error shows."""
    with open(log, "a", encoding="utf-8") as errors:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[1:3]} failed:\n{log.read_text(encoding='utf-8')[-2000:]}")
    return done.stdout


def build(name: str, seed: int, directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Build one case; its figures."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "sids.yaml"
    config.write_text(yaml.safe_dump(build_config(name, arguments)), encoding="utf-8")
    started = time.perf_counter()
    sids = directory / "sids"
    flags = ["--config", str(config), "--output_dir", str(sids), "--seed", str(seed), "--overwrite", "true"]
    if arguments.decoder:  # several at a time
        run([sys.executable, "-m", "sid_builder.build", *flags], directory / "log.txt")
    else:
        with contextlib.redirect_stdout(sys.stderr):
            sid_builder.build.main(flags)
    seconds = time.perf_counter() - started
    report = json.loads((sids / "report.json").read_text(encoding="utf-8"))
    summary, first = report["summary"], report["levels"][0]
    return {
        "name": name,
        "seed": seed,
        "quantizer": CASES[name][0],
        "quantizer_args": build_config(name, arguments)["quantizer_args"],
        "level_sizes": summary["level_sizes"],
        "level_1_used": first["used"],
        "level_1_perplexity": first["perplexity"],
        "level_1_gini": first["gini"],
        "used": [level["used"] for level in report["levels"]],
        "collisions_before": report["repair"]["collision_rate_before"],
        "collisions_after": summary["collision_rate"],
        "error": report["reconstruction"]["error"] if report.get("reconstruction") else None,
        "co_click_lift": summary["co_click_lift"],
        "build_seconds": round(seconds, 1),
    }


def learn(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run of the queue: build, train the decoder, rank the test cases; skipped when its JSON exists."""
    directory = Path(arguments.work_dir) / slug(name, seed)
    finished = Path(arguments.results) / f"{slug(name, seed)}.json"
    if finished.is_file():
        return json.loads(finished.read_text(encoding="utf-8"))
    figures = build(name, seed, directory, arguments)
    decoder = [sys.executable, str(DECODER), "--split", "test", "--seed", str(seed)]
    decoder += ["--sid_dir", str(directory / "sids"), "--ranks", str(directory / "ranks.npy")]
    learnt = json.loads(run(decoder, directory / "log.txt").splitlines()[-1])
    figures |= {
        "test": learnt["metrics"],
        "coverage@10": learnt["coverage@10"],
        "ranks": pack(np.load(directory / "ranks.npy")),
        "decoder": learnt["decoder"] | {"parameters": learnt["parameters"]},
        "decoder_seconds": {"train": learnt["train_seconds"], "rank": learnt["rank_seconds"]},
        "inputs": {"sids": sha256_file(directory / "sids" / "manifest.json"), **data_hashes(arguments)},
        "code": code_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {arguments.jobs} jobs of one thread",
    }
    finished.parent.mkdir(parents=True, exist_ok=True)
    write_json(finished, figures)
    print(
        f"{name}, seed {seed}: HR@10 {figures['test']['hr@10']:.4f}, NDCG@10 {figures['test']['ndcg@10']:.4f}"
    )
    return figures


def pack(rank_C: np.ndarray) -> str:
    """Ranks of at most 255 as text: bytes, deflated, base64."""
    return base64.b64encode(zlib.compress(rank_C.astype(np.uint8).tobytes(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).astype(np.int32)


def data_hashes(arguments: argparse.Namespace) -> dict[str, str]:
    """sha256 of what all cases are built from."""
    files = [*sorted(Path(arguments.data_path).glob("*.jsonl")), Path(arguments.embeddings)]
    return {path.name: sha256_file(path) for path in files}


def compare(runs: list[dict[str, Any]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, and the paired difference against the base."""
    measures = {"hr@10": lambda ranks: hits(ranks, 10), "ndcg@10": lambda ranks: gains(ranks, 10)}
    by_name: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_name.setdefault(run["name"], []).append(run)

    def per_case(name: str, measure: str) -> np.ndarray:
        return np.mean([measures[measure](unpack(run["ranks"])) for run in by_name[name]], axis=0)

    table = []
    for name, of_name in by_name.items():
        row: dict[str, Any] = {"name": name, "seeds": [run["seed"] for run in of_name]}
        for measure in measures:
            values = [run["test"][measure] for run in of_name]
            row[measure] = {
                "mean": float(np.mean(values)),
                "sd": float(np.std(values, ddof=min(1, len(values) - 1))),
            }
            paired = [run["seed"] for run in by_name.get(BASE, [])] == row["seeds"]
            if name != BASE and paired:
                change_C = per_case(name, measure) - per_case(BASE, measure)
                low, high = interval(bootstrap_means(change_C[:, None], 0, 1000)[:, 0])
                row[measure] |= {"difference": float(change_C.mean()), "low": low, "high": high}
        table.append(row)
    return sorted(table, key=lambda row: -row["ndcg@10"]["mean"])


def print_builds(rows: list[dict[str, Any]]) -> None:
    head = (
        "quantizer",
        "shape",
        "level-1 used",
        "perplexity",
        "Gini",
        "collisions",
        "repaired",
        "error",
        "lift",
        "s",
    )
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        shape = " x ".join(str(size) for size in row["level_sizes"])
        cells = [row["name"], shape, f"{row['level_1_used']}", f"{row['level_1_perplexity']:.0f}"]
        cells += [
            f"{row['level_1_gini']:.2f}",
            f"{row['collisions_before']:.2%}",
            f"{row['collisions_after']:.2%}",
        ]
        cells += [f"{row['error']:.3f}" if row["error"] is not None else "-"]
        cells += [
            f"{row['co_click_lift']:.1f}" if row["co_click_lift"] else "-",
            f"{row['build_seconds']:.0f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def print_decoders(rows: list[dict[str, Any]]) -> None:
    print(
        "\n| quantizer | seeds | HR@10 | NDCG@10 | NDCG@10 against "
        + BASE
        + " (95 %) |\n|---|---|---|---|---|"
    )
    for row in rows:
        cells = [row["name"], str(len(row["seeds"]))]
        cells += [f"{row[m]['mean']:.4f} +- {row[m]['sd']:.4f}" for m in ("hr@10", "ndcg@10")]
        gap = row["ndcg@10"]
        cells.append(
            f"{gap['difference']:+.4f} ({gap['low']:+.4f} .. {gap['high']:+.4f})" if "low" in gap else ""
        )
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="builds alone, on the generated shop: under 45 s"
    )
    parser.add_argument("--data_path", help="directory with items.jsonl and sequences.jsonl")
    parser.add_argument("--embeddings", help="float32 [items, d] as .npy, the same for every case")
    parser.add_argument("--decoder", action="store_true", help="train and rank the fixed decoder as well")
    parser.add_argument("--only", nargs="+", help=f"some of {list(CASES)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="seeds of the decoder's runs")
    parser.add_argument("--jobs", type=int, default=1, help="decoder runs at a time, one thread each")
    parser.add_argument("--work_dir", default="out/quantizers", help="builds and ranks")
    parser.add_argument(
        "--results", default=str(ROOT / "benchmarks/results/quantizers"), help="finished runs, as JSON"
    )
    arguments = parser.parse_args()
    if not arguments.quick and not (arguments.data_path and arguments.embeddings):
        parser.error("give --data_path and --embeddings, or --quick")
    if arguments.data_path:
        arguments.data_path = str(Path(arguments.data_path).resolve())
        arguments.embeddings = str(Path(arguments.embeddings).resolve())
    unknown = sorted(set(arguments.only or ()) - set(CASES))
    if unknown:
        parser.error(f"--only {unknown[0]!r} is none of {list(CASES)}")
    names = [name for name in CASES if not arguments.only or name in arguments.only]
    # One thread for each job: two jobs that share two cores lose more to each other's threads than they gain.
    os.environ |= {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // arguments.jobs)),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    result: dict[str, Any] = {"benchmark": "quantizers", "quick": arguments.quick, "code": code_version()}
    if not arguments.decoder:
        rows = [
            build(name, 0, Path(arguments.work_dir) / "builds" / name.replace(" ", "_"), arguments)
            for name in names
        ]
        print_builds(rows)
        result["builds"] = rows
    else:
        runs = [(name, seed) for seed in arguments.seeds for name in names if CASES[name][2]]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            finished = list(pool.map(lambda run: learn(*run, arguments), runs))
        print_builds([run for run in finished if run["seed"] == arguments.seeds[0]])
        result["decoders"] = compare(finished, arguments)
        print_decoders(result["decoders"])
        result["runs"] = [{key: value for key, value in run.items() if key != "ranks"} for run in finished]
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
