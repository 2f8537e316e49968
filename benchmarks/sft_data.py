"""Training rows for SFT at scale: rate, size on disk and memory of shards, against rows in Python lists.

    python benchmarks/sft_data.py [--quick] [--interactions 20000000] [--items 200000] [--workers 1]

Generated sequences of 3 to 17 items (10 in the mean, drawn by a skewed law) under 3 x 1024 codes, items with
a title of six words, the plain pack, a byte-pair tokenizer of 4,096 tokens trained on the titles. Three
mixtures are written as `sft.train` writes them (`sft.shards.training_rows`), one after the other in one
process: `seqrec` over all sequences, `title2sid` over all items, and a share of `title_history2sid`, whose
prompts are text. A process of its own then opens the seqrec shards and reads rows in random order.

The peer collects the rows of a slice in Python lists and makes a `datasets.Dataset` of them, which is what
mixing data in memory takes; both call the same tasks. Memory is the peak of RssAnon, pages of the process
itself, above what it had once catalogue and interactions were there: pages of mapped files can be dropped at
any time.

Limits: a token takes 8 bytes on disk (its id and its label, int32). A writer needs a batch of rows of that
size, twice, since buffers double as they grow; what it has beyond are tables that grow with the catalogue
alone (titles as Python texts, SIDs looked up last). A reader needs no memory for rows; what it holds per row
is torch's shuffled order, a Python list of all row numbers.
"""

import argparse
import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import numpy as np
import pyarrow as pa
import torch

from prompts.pack import PromptPack
from prompts.template import PromptTemplate
from sft import TASKS
from sft.examples import TaskContext
from sft.models.scratch import train_tokenizer
from sft.shards import BATCH_ROWS, task_counts, training_rows
from sft.vocabulary import extend_tokenizer
from sid_builder.artifact import code_version
from sid_builder.catalog import Catalog
from sid_builder.interactions import Interactions
from sid_builder.registry import resolve
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex

LEVELS, CODES, SHORTEST, LONGEST = 3, 1024, 3, 17
TITLES_FOR_TOKENIZER = 20_000
READ_ROWS, READ_BATCH = 20_000, 8
TARGET = 200_000_000  # interactions
BYTES_A_TOKEN = 8
TEXT = (
    "red blue green white warm light steel wooden trail garden kitchen running folding classic mini large "
    "pro shoe jacket pan tent rope lamp table chair bottle glove blanket basket mirror kettle drill"
)


class PeakMemory:
    """Highest RssAnon of this process since it was made, in MiB above its value then."""

    def __init__(self) -> None:
        self.start = self._peak = self._now()
        threading.Thread(target=self._watch, daemon=True).start()

    def mib(self) -> float:
        return round(max(self._peak, self._now()) - self.start, 1)

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, self._now())
            time.sleep(0.02)

    @staticmethod
    def _now() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def make_context(arguments: argparse.Namespace) -> TaskContext:
    """Catalogue, SIDs and interactions by seed; the same in every process."""
    rng, vocabulary = np.random.default_rng(arguments.seed), TEXT.split()
    picked = rng.integers(0, len(vocabulary), (arguments.items, 6))
    rows = [
        {"item_id": str(item), "title": " ".join(vocabulary[word] for word in words)}
        for item, words in enumerate(picked.tolist())
    ]
    codes_NL = rng.integers(0, CODES, (arguments.items, LEVELS)).astype(np.int32)
    index = SidIndex(
        Catalog.from_rows(rows), SemanticIds(codes_NL, (CODES,) * LEVELS), np.ones(arguments.items, np.int64)
    )
    sequences = max(arguments.interactions // ((SHORTEST + LONGEST) // 2), 1)
    indptr = np.concatenate([[0], np.cumsum(rng.integers(SHORTEST, LONGEST + 1, sequences))])
    items = (arguments.items * rng.random(int(indptr[-1]), dtype=np.float32) ** 3).astype(np.int32)
    interactions = Interactions.from_csr(pa.array(np.arange(sequences)).cast(pa.string()), indptr, items)
    tokenizer = train_tokenizer(index.catalog.titles[:TITLES_FOR_TOKENIZER], 4096)
    extend_tokenizer(tokenizer, index.semantic_ids)
    return TaskContext(index, interactions, PromptTemplate(PromptPack.load("plain"), tokenizer, index))


def mixtures(arguments: argparse.Namespace) -> dict[str, float]:
    """Weight of each task; of the text histories as many rows as there are titles."""
    return {"seqrec": 1.0, "title2sid": 1.0, "title_history2sid": arguments.items / arguments.interactions}


def cpu_seconds() -> float:
    """Of this process and of children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Clock:
    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()

    def rates(self, rows: int, tokens: int) -> dict[str, Any]:
        seconds, cpu = time.perf_counter() - self._wall, cpu_seconds() - self._cpu
        return {
            "rows": rows,
            "tokens": tokens,
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu, 2),
            "rows_per_cpu_second": round(rows / cpu),
            "tokens_per_cpu_second": round(tokens / cpu),
        }


def write(arguments: argparse.Namespace) -> dict:
    context, tasks = make_context(arguments), {}
    memory = PeakMemory()
    for task, weight in mixtures(arguments).items():
        directory, clock = Path(arguments.directory) / task, Clock()
        rows = training_rows(
            context, {task: weight}, arguments.seed, directory, {}, workers=arguments.workers
        )
        counts = task_counts(rows)[task]
        size = sum(path.stat().st_size for path in directory.glob("*.arrow"))
        tasks[task] = {
            **clock.rates(counts["rows"], counts["tokens"]),
            "mib": round(size / 2**20, 1),
            "bytes_a_token": round(size / counts["tokens"], 2),
        }
    return {"tasks": tasks, "peak_mib": memory.mib(), "inputs_mib": round(memory.start)}


def read(arguments: argparse.Namespace) -> dict:
    context = make_context(arguments)
    memory, clock = PeakMemory(), Clock()
    rows = training_rows(context, {"seqrec": 1.0}, arguments.seed, Path(arguments.directory) / "seqrec", {})
    opened = clock.rates(len(rows), 0)["seconds"]
    order = np.random.default_rng(arguments.seed).permutation(len(rows))[:READ_ROWS].tolist()
    clock, tokens = Clock(), 0
    for first in range(0, len(order), READ_BATCH):
        tokens += sum(rows[order[first : first + READ_BATCH]]["length"])
    result = {"open_seconds": opened, **clock.rates(len(order), tokens), "peak_mib": memory.mib()}
    sampler = iter(torch.utils.data.RandomSampler(range(len(rows))))
    next(sampler)
    order_mib = memory.mib() - result["peak_mib"]
    return result | {
        "order_mib": round(order_mib, 1),
        "order_bytes_a_row": round(order_mib * 2**20 / len(rows)),
    }


def peer(arguments: argparse.Namespace) -> dict:
    context = make_context(arguments)
    parts = max(arguments.interactions // arguments.peer_interactions, 1)
    examples = resolve(TASKS, "seqrec", "task")
    memory, clock = PeakMemory(), Clock()
    part = dataclasses.replace(context, num_parts=parts)
    table = datasets.Dataset.from_list(
        [vars(example) for example in examples(part, np.random.default_rng(arguments.seed))]
    )
    tokens = sum(len(ids) for ids in table["input_ids"])
    result = clock.rates(len(table), tokens)
    return result | {"peak_mib": memory.mib(), "bytes_a_token": round(memory.mib() * 2**20 / tokens, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="200,000 interactions, 5,000 items: under 45 s")
    parser.add_argument("--interactions", type=int, default=20_000_000)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--peer_interactions", type=int, default=1_000_000, help="the slice the peer takes")
    parser.add_argument("--workers", type=int, default=1, help="processes that write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", help="for the shards (about 80 bytes an interaction); a temporary one")
    parser.add_argument("--work", choices=["write", "read", "peer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        arguments.interactions, arguments.items, arguments.peer_interactions = 200_000, 5_000, 100_000
    if arguments.work:
        print(json.dumps({"write": write, "read": read, "peer": peer}[arguments.work](arguments)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        runs = {}
        for work in ("write", "read", "peer"):
            command = [sys.executable, __file__, *sys.argv[1:], "--work", work, "--directory", directory]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs[work] = json.loads(done.stdout.splitlines()[-1])
    report(arguments, runs)


def report(arguments: argparse.Namespace, runs: dict[str, Any]) -> None:
    written, reading, lists = runs["write"], runs["read"], runs["peer"]
    seqrec = written["tasks"]["seqrec"]
    times = TARGET / arguments.interactions
    batch_mib = (
        2
        * BATCH_ROWS
        * max(task["tokens"] / task["rows"] for task in written["tasks"].values())
        * BYTES_A_TOKEN
        / 2**20
    )
    result = {
        "benchmark": "sft_data",
        **runs,
        "limits": {"bytes_a_token": BYTES_A_TOKEN, "writer_mib": round(batch_mib, 1)},
        "rate_over_lists": round(seqrec["rows_per_cpu_second"] / lists["rows_per_cpu_second"], 2),
        "memory_of_lists_over_shards": round(
            lists["bytes_a_token"] * seqrec["tokens"] / 2**20 / written["peak_mib"], 1
        ),
        "for_200_million_interactions": {
            "core_hours": round(seqrec["cpu_seconds"] * times / 3600, 2),
            "gib_on_disk": round(seqrec["mib"] * times / 1024, 1),
            "gib_of_lists": round(lists["bytes_a_token"] * seqrec["tokens"] * times / 2**30, 1),
            "gib_of_order": round(reading["order_bytes_a_row"] * seqrec["rows"] * times / 2**30, 2),
        },
        "config": {key: value for key, value in vars(arguments).items() if key not in ("work", "directory")},
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "datasets": datasets.__version__,
            "pyarrow": pa.__version__,
        },
        "code": code_version(),
    }
    print(f"{'':18} {'rows':>11} {'tokens':>13} {'CPU s':>8} {'rows/s':>8} {'tokens/s':>10} {'B/token':>8}")
    for name, got in {**written["tasks"], "seqrec in lists": lists}.items():
        print(
            f"{name:18} {got['rows']:11,} {got['tokens']:13,} {got['cpu_seconds']:8} "
            f"{got['rows_per_cpu_second']:8,} {got['tokens_per_cpu_second']:10,} {got['bytes_a_token']:8}"
        )
    print(
        f"writing: {written['peak_mib']} MiB beside its inputs for {seqrec['mib']} MiB of rows (limit: a "
        f"batch twice, {batch_mib:.1f} MiB); lists take {lists['bytes_a_token']} bytes a token"
    )
    print(
        f"reading: opened in {reading['open_seconds']} s, {reading['rows_per_cpu_second']:,} random rows/s, "
        f"{reading['peak_mib']} MiB; torch's order of the rows {reading['order_bytes_a_row']} bytes a row"
    )
    far = result["for_200_million_interactions"]
    print(
        f"200 million interactions by proportion: {far['core_hours']} core hours for seqrec, "
        f"{far['gib_on_disk']} GiB on disk, {far['gib_of_order']} GiB a reader for the order; in lists "
        f"{far['gib_of_lists']} GiB of memory"
    )
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
