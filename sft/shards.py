"""Rows to train on, as shards on disk: tasks drawn by weight, tokenised once, read through memory maps.

Weight 1 is one pass over a task's data, 2.5 two passes (wordings drawn anew each time) and a random half of a
third. A shard is an Arrow stream with the rows of one part of one pass over one task, drawn from a random
stream of its own. So rows depend neither on other tasks, nor on who writes them, nor on interruptions:
processes share the shards out among them, and a run started again with the same settings keeps the shards
that are there. Rows lie in the order of tasks, passes and parts; the Trainer's seeded sampler shuffles them.

Memory does not depend on the amount of data: a process that writes holds one batch of rows, one that reads
maps the files. On disk a row takes 8 bytes a token, 12 a branch and about 50 more.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from prompts.budget import warn_of_cuts
from sft import TASKS
from sft.examples import TaskContext, TaskExample
from sft.run import ROWS_FILE
from sid_builder.artifact import code_version, hash_inputs, to_json, write_json
from sid_builder.errors import InputError
from sid_builder.processes import Processes
from sid_builder.registry import resolve

PART_SIZE = 32_768  # sequences, items or intents a part, whichever are most
BATCH_ROWS = 8_192
_SUFFIXES = {".arrow", ".partial"}
_FORMAT = 2  # goes up when the same settings give other rows

_LISTS = ("input_ids", "shift_labels", "target_items", "branch_attach", "branch_length")
_FEATURES = datasets.Features(
    {
        "task": datasets.Value("string"),
        **{name: datasets.List(datasets.Value("int32")) for name in _LISTS},
        "length": datasets.Value("int64"),
        "cut_from": datasets.Value("int32"),
    }
)


@dataclass(frozen=True)
class Shard:
    """Part `part` of `num_parts` of pass `number` over a task; `share` of its examples are kept."""

    task: str
    number: int
    part: int
    num_parts: int
    share: float

    @property
    def file(self) -> str:
        return f"{self.task}-{self.number}-{self.part:06d}.arrow"


def training_rows(
    context: TaskContext,
    task_weights: Mapping[str, float],
    seed: int,
    directory: Path,
    inputs: Mapping[str, str | Path],
    begun: Path | None = None,
    workers: int = 1,
    processes: Processes | None = None,
    part_size: int = PART_SIZE,
) -> datasets.Dataset:
    """Rows of all tasks over memory-mapped shards; all processes call this alike and get the same.

    Args:
        directory: for the shards, on a file system that all processes share. Shards in it that were made
            from the same are kept, others are deleted.
        inputs: files and artefacts that `context` was read from, by name: rows depend on what they hold.
        begun: the `rows.json` of a run that goes on; where it exists, it must agree.
        workers: processes that this process starts to write its share.

    Raises:
        InputError: when `begun` was made from something else, when a task with weight finds no example, or
            for a `directory` with files that are not ours.

    Warns once of all prompts that had a text cut to fit.
    """
    assert context.num_parts == 1
    processes = processes or Processes.current()
    shards = list(shards_of(context, task_weights, part_size))
    if processes.is_main:
        _prepare(directory, _origin(context, task_weights, seed, inputs, part_size), begun)
    processes.wait()
    missing = [
        shard
        for shard in shards[processes.rank :: processes.world_size]
        if not (directory / shard.file).exists()
    ]
    _write_all(_Writer(context, seed, directory), missing, workers, silent=not processes.is_main)
    processes.wait()
    for shard in shards:
        if not (directory / shard.file).exists():
            raise InputError(
                f"output_dir: {directory / shard.file}, written by another process, is not there; use a "
                "directory that all processes share"
            )
    rows = datasets.concatenate_datasets(
        [datasets.Dataset.from_file(str(directory / shard.file)) for shard in shards]
    )
    found = task_counts(rows)
    for task, weight in sorted(task_weights.items()):
        if weight > 0 and task not in found:
            raise InputError(f"task_weights.{task}: the data holds no example for it; set its weight to 0")
    if processes.is_main:
        cut_from = rows.data.column("cut_from")
        warn_of_cuts(
            cut_from.filter(pc.greater(cut_from, 0)).to_pylist(), context.template.pack.max_prompt_tokens
        )
    return rows


def task_counts(rows: datasets.Dataset) -> dict[str, dict[str, int]]:
    """`{task: {"rows": ..., "tokens": ...}}`, from the columns alone."""
    columns = rows.data.table.select(["task", "length"])
    grouped = columns.group_by("task").aggregate([("length", "count"), ("length", "sum")]).sort_by("task")
    return {
        row["task"]: {"rows": row["length_count"], "tokens": row["length_sum"]} for row in grouped.to_pylist()
    }


def describe(rows: datasets.Dataset) -> str:
    """How many rows and tokens a pass has, and of which tasks, in one line."""
    counts = task_counts(rows)
    by_task = "; ".join(f"{task} {count['rows']:,} / {count['tokens']:,}" for task, count in counts.items())
    tokens = sum(count["tokens"] for count in counts.values())
    longest = pc.max(rows.data.column("length")).as_py()
    return f"{len(rows):,} rows, {tokens:,} tokens a pass, longest {longest} ({by_task})"


def shards_of(context: TaskContext, task_weights: Mapping[str, float], part_size: int) -> Iterator[Shard]:
    """All shards of a mixture, in the order of tasks, passes and parts."""
    sizes = [context.interactions.num_sequences, context.index.catalog.num_items, len(context.intents or ())]
    num_parts = -(-max(sizes) // part_size)
    for task, weight in sorted(task_weights.items()):
        resolve(TASKS, task, "task_weights")  # a task that cannot be imported fails before any is written
        for number in range(math.ceil(weight)):
            for part in range(num_parts):
                yield Shard(task, number, part, num_parts, min(weight - number, 1.0))


def _origin(
    context: TaskContext,
    task_weights: Mapping[str, float],
    seed: int,
    inputs: Mapping[str, str | Path],
    part_size: int,
) -> dict[str, Any]:
    """Everything the rows depend on, as JSON; large things by their sha256."""
    template, interactions = context.template, context.interactions
    tokenizer = template.tokenizer
    words = [type(tokenizer).__name__, tokenizer.chat_template, sorted(tokenizer.get_vocab().items())]
    bounds = hashlib.sha256()
    for bound_S in interactions.bounds_of("train"):
        bounds.update(bound_S.tobytes())
    return to_json(
        {
            **{name: entry["sha256"] for name, entry in hash_inputs(dict(inputs)).items()},
            **context.choices(),
            "train_positions": bounds.hexdigest(),  # hold_out_last changes them
            "prompt_pack": _sha256(dataclasses.asdict(template.pack)),
            "tokenizer": _sha256(words),
            "task_weights": {task: float(weight) for task, weight in task_weights.items() if weight > 0},
            "positions": context.positions,
            "seed": seed,
            "part_size": part_size,
            "format": _FORMAT,
            "version": code_version()["version"],
        }
    )


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _prepare(directory: Path, origin: dict[str, Any], begun: Path | None) -> None:
    """Check a resumed run against `origin`, and make `directory` ready, unless it is already."""
    if begun is not None and begun.exists():
        trained_on = json.loads(begun.read_text(encoding="utf-8"))
        for name in sorted(origin.keys() | trained_on.keys()):
            now, then = origin.get(name), trained_on.get(name)
            if now != then:
                raise InputError(
                    f"resume_from_checkpoint: {name} is {now!r}, and the run began with {then!r} ({begun}); "
                    "resume with what it began with, or start again with --overwrite"
                )
    state = directory / ROWS_FILE
    if state.exists() and json.loads(state.read_text(encoding="utf-8")) == origin:
        return
    if directory.exists():
        foreign = [p for p in directory.iterdir() if p.name != ROWS_FILE and p.suffix not in _SUFFIXES]
        if foreign:
            raise InputError(
                f"output_dir: training rows go to {directory}, which holds {foreign[0].name}; "
                "move it away or choose another output_dir"
            )
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    partial = directory / f"{ROWS_FILE}.partial"
    write_json(partial, origin)
    partial.replace(state)


@dataclass(frozen=True)
class _Writer:
    """Writes a shard; a shard that has its name is whole."""

    context: TaskContext
    seed: int
    directory: Path

    def __call__(self, shard: Shard) -> None:
        path = self.directory / shard.file
        partial = path.with_suffix(".partial")
        with open(partial, "wb") as stream:
            with pa.ipc.new_stream(stream, _FEATURES.arrow_schema) as writer:
                examples = iter(examples_of(self.context, shard, self.seed))
                while batch := _record_batch(shard.task, islice(examples, BATCH_ROWS)):
                    writer.write_batch(batch)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)


def examples_of(context: TaskContext, shard: Shard, seed: int) -> Iterable[TaskExample]:
    """What a shard holds, drawn from a random stream of its own."""
    own = [seed, shard.number, shard.part, *shard.task.encode()]
    part = dataclasses.replace(
        context, part=shard.part, num_parts=shard.num_parts, share=shard.share, share_seed=[1, *own]
    )
    return resolve(TASKS, shard.task, "task_weights")(part, np.random.default_rng([0, *own]))


def _record_batch(task: str, examples: Iterable[TaskExample]) -> pa.RecordBatch | None:
    """Examples as a batch of `_FEATURES`, or None when there are none."""
    values = {name: array("i") for name in _LISTS}
    ends = {name: array("i", [0]) for name in _LISTS}
    cut_from = array("i")
    for example in examples:
        assert len(example.input_ids) == len(example.shift_labels), task
        for name in _LISTS:
            values[name].extend(getattr(example, name))
            ends[name].append(len(values[name]))
        cut_from.append(example.cut_from)
    lists = [
        pa.ListArray.from_arrays(np.frombuffer(ends[name], np.int32), np.frombuffer(values[name], np.int32))
        for name in _LISTS
    ]
    num_rows = len(lists[0])
    lengths = np.diff(np.frombuffer(ends["input_ids"], np.int32)).astype(np.int64)
    columns = [pa.repeat(task, num_rows), *lists, pa.array(lengths), pa.array(cut_from, pa.int32())]
    return pa.RecordBatch.from_arrays(columns, schema=_FEATURES.arrow_schema) if num_rows else None


def _write_all(write: _Writer, shards: list[Shard], workers: int, silent: bool) -> None:
    progress = {
        "desc": "tokenise",
        "unit": "shard",
        "total": len(shards),
        "disable": True if silent else None,
    }
    if workers == 1 or len(shards) < 2:
        for shard in tqdm(shards, **progress):
            write(shard)
        return
    # Forked, so that workers share the catalogue and the interactions: sending them would take their memory
    # once more per worker. Workers use no torch, whose threads do not survive a fork.
    with ProcessPoolExecutor(
        min(workers, len(shards)), get_context("fork"), initializer=_adopt, initargs=(write,)
    ) as pool:
        for _ in tqdm(pool.map(_write_adopted, shards), **progress):
            pass


def _adopt(write: _Writer) -> None:
    """In a worker: keep what it is to write with."""
    global _adopted
    _adopted = write
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or the tokenizer warns of the fork


def _write_adopted(shard: Shard) -> None:
    _adopted(shard)


_adopted: _Writer
