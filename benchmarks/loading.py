"""Loading interactions: peak memory and rate of the `amazon` and `table` sources, each in a fresh process.

    python benchmarks/loading.py [--quick] [--interactions 10000000] [--sources amazon csv parquet]

Files are generated into a temporary folder: reviews and metadata as Amazon 2023 publishes them (`.jsonl.gz`),
and the same interactions as CSV and as Parquet. A run is a source's whole `load`: reading, a 2-core of users
and items, the order in time, the leave-one-out split and the catalogue. Users are drawn evenly, items by a
skewed law; a user has 6 interactions in the mean, an item 50.

Floors, in processes of their own: decompressing the reviews file by `gzip` (nothing is kept), and pyarrow's
own reading of the CSV or Parquet file into one table. Files come from the operating system's cache, since
they were just written. `imports` is a process that loads the modules and no data.
"""

import argparse
import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from tqdm import tqdm

from sid_builder.artifact import code_version

LIMIT_MIB = 4096
BATCH = 100_000
SECONDS_2015 = 1420070400
SENTENCE = "this one is a very good and sturdy thing which I use every day since last summer in rain or snow"
FILES = {"amazon": "Toys.jsonl.gz", "csv": "log.csv", "parquet": "log.parquet"}


def generate(source: str, folder: Path, interactions: int, seed: int) -> None:
    """Write the files of a source; all sources get the same interactions."""
    schema = next(_batches(1, seed)).schema
    path = folder / FILES[source]
    if source == "amazon":
        with gzip.open(path, "wb", compresslevel=1) as reviews:
            for batch in _batches(interactions, seed):
                reviews.write(_review_lines(batch))
        with gzip.open(folder / "meta_Toys.jsonl.gz", "wt", compresslevel=1) as items:
            items.writelines(_item_line(item) for item in range(_num_items(interactions)))
        return
    with pa.csv.CSVWriter(path, schema) if source == "csv" else pq.ParquetWriter(path, schema) as writer:
        for batch in _batches(interactions, seed):
            writer.write_table(batch)


def _num_items(interactions: int) -> int:
    return max(interactions // 50, 1)


def _batches(interactions: int, seed: int) -> Iterator[pa.Table]:
    rng = np.random.default_rng(seed)
    users, items = max(interactions // 6, 1), _num_items(interactions)
    for first in range(0, interactions, BATCH):
        size = min(BATCH, interactions - first)
        item = (items * rng.random(size) ** 3).astype(np.int64)
        yield pa.table(
            {
                "user": [f"AE{user:026d}" for user in rng.integers(0, users, size).tolist()],
                "item": [f"B{number:09d}" for number in item.tolist()],
                "timestamp": SECONDS_2015 + rng.integers(0, 250_000_000, size),
                "rating": rng.integers(1, 6, size).astype(np.float64),
            }
        )


def _review_lines(table: pa.Table) -> bytes:
    rng, words = np.random.default_rng(0), SENTENCE.split()
    texts = [" ".join(rng.permutation(words)) for _ in range(97)]
    lines = (
        f'{{"rating": {rating}, "title": "Good", "text": "{texts[n % 97]}", "images": [], "asin": "{item}", '
        f'"parent_asin": "{item}", "user_id": "{user}", "timestamp": {second}123, "helpful_vote": {n % 3}, '
        f'"verified_purchase": true}}\n'
        for n, (user, item, second, rating) in enumerate(
            zip(*(table.column(name).to_pylist() for name in table.schema.names), strict=True)
        )
    )
    return "".join(lines).encode()


def _item_line(item: int) -> str:
    row = {"parent_asin": f"B{item:09d}", "title": f"Thing number {item}", "store": f"Brand {item % 999}"}
    row |= {"main_category": "Toys", "categories": ["Toys", f"Kind {item % 99}"], "price": 9.99}
    return json.dumps(row | {"features": [SENTENCE], "description": [SENTENCE] * 3}) + "\n"


def work(task: str, folder: Path, interactions: int, seed: int) -> dict:
    """What one process does: generate a source's files, load them, a floor, or nothing but imports."""
    from sid_builder.sources import amazon, table

    started, result = time.perf_counter(), {}
    core = {"user_core": 2, "item_core": 2}
    if task == "amazon":
        result = amazon.load(amazon.AmazonArgs(path=str(folder), **core)).notes
    elif task in ("csv", "parquet"):
        result = table.load(table.TableArgs(path=str(folder / FILES[task]), **core)).notes
    elif task.startswith("generate "):
        generate(task.removeprefix("generate "), folder, interactions, seed)
    elif task == "floor amazon":
        with gzip.open(folder / FILES["amazon"]) as stream:
            while stream.read(8 << 20):
                pass
    elif task == "floor csv":
        pa.csv.read_csv(folder / FILES["csv"])
    elif task == "floor parquet":
        pq.read_table(folder / FILES["parquet"])
    seconds = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    times = {"seconds": round(seconds, 2), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2)}
    kept = {key: result[key] for key in ("rows_read", "num_interactions", "num_items") if key in result}
    return times | {"peak_mib": round(usage.ru_maxrss / 1024)} | kept


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="300,000 interactions: under 45 s")
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--sources", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=2, metavar=("TASK", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        task, folder = arguments.work
        print(json.dumps(work(task, Path(folder), arguments.interactions, arguments.seed)))
        return
    if arguments.quick:
        arguments.interactions = min(arguments.interactions, 300_000)
    with tempfile.TemporaryDirectory() as name:
        # Generating happens in a process as well: the kernel hands a parent's peak on to its children.
        tasks = ["imports", *arguments.sources, *(f"floor {source}" for source in arguments.sources)]
        tasks = [*(f"generate {source}" for source in arguments.sources), *tasks]
        runs = {}
        for task in tqdm(tasks, unit="process"):
            runs[task] = _in_a_process(task, name, arguments)
        sizes = {source: (Path(name) / FILES[source]).stat().st_size for source in arguments.sources}
    result = {
        "benchmark": "loading",
        "runs": runs,
        "interactions_per_second": {
            source: round(arguments.interactions / runs[source]["seconds"]) for source in arguments.sources
        },
        "cpu_times_the_floor": {
            source: round(_cpu(runs, source) / max(_cpu(runs, f"floor {source}"), 0.01), 2)
            for source in arguments.sources
        },
        "file_mib": {source: round(size / 2**20, 1) for source, size in sizes.items()},
        "bars": {"peak_mib": LIMIT_MIB},
        "config": {key: value for key, value in vars(arguments).items() if key != "work"},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "pyarrow": pa.__version__},
        "code": code_version(),
    }
    for source in arguments.sources:
        run, floor = (
            f"{runs[task]['peak_mib']} MiB, {runs[task]['seconds']} s, {runs[task]['cpu_seconds']} s of CPU"
            for task in (source, f"floor {source}")
        )
        print(f"{source}: {run}; floor: {floor}; bar {LIMIT_MIB} MiB")
    print(json.dumps(result, sort_keys=True))


def _cpu(runs: dict, task: str) -> float:
    """CPU seconds of a task without those of starting Python and importing."""
    return runs[task]["cpu_seconds"] - runs["imports"]["cpu_seconds"]


def _in_a_process(task: str, folder: str, arguments: argparse.Namespace) -> dict:
    command = [sys.executable, __file__, "--work", task, folder, "--seed", str(arguments.seed)]
    command += ["--interactions", str(arguments.interactions)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
