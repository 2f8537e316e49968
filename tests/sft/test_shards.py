"""Rows on disk: the same whoever writes them and however often they are interrupted, and never in memory."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from prompts.branches import IGNORE
from prompts.template import PromptTemplate
from sft import TASKS, shards, train
from sft.examples import TaskContext
from sft.run import ROWS_FILE
from sft.shards import describe, task_counts, training_rows
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.processes import Processes
from tests.sft.builders import make_interactions
from tests.sft.shop import make_shop

WEIGHTS = {"seqrec": 1.0, "title2sid": 1.5}


class OneOfMany(Processes):
    """A process whose siblings run before and after it, not beside it."""

    def wait(self):
        pass


@pytest.fixture(scope="module")
def context(recommender):
    interactions = make_interactions(recommender.index.catalog.num_items)
    return TaskContext(recommender.index, interactions, recommender.template)


def digests(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.glob("*.arrow")}


def test_weights(context, tmp_path):
    weights = {"title2sid": 2.5, "sid2title": 1.0, "seqrec": 0.0}
    rows = training_rows(context, weights, 0, tmp_path / "mixed", {})
    counts, num_items = task_counts(rows), context.index.catalog.num_items
    assert counts["sid2title"]["rows"] == num_items and "seqrec" not in counts
    assert 2.3 * num_items < counts["title2sid"]["rows"] < 2.7 * num_items
    assert sum(count["tokens"] for count in counts.values()) == sum(rows["length"])
    assert describe(rows).startswith(f"{len(rows):,} rows, {sum(rows['length']):,} tokens a pass, longest ")
    alone = training_rows(context, {"sid2title": 1.0}, 0, tmp_path / "alone", {})
    same = [row for row in rows if row["task"] == "sid2title"]
    assert same == list(alone), "a task's rows do not depend on the other tasks"
    passes = [row["input_ids"] for row in rows if row["task"] == "title2sid"]
    assert passes[:num_items] != passes[num_items : 2 * num_items], "every pass draws its wordings anew"


def test_rows_are_the_examples(context, tmp_path):
    rows = training_rows(context, {"seqrec": 1.0}, 0, tmp_path / "rows", {})
    (shard,) = shards.shards_of(context, {"seqrec": 1.0}, shards.PART_SIZE)
    examples = list(shards.examples_of(context, shard, 0))
    assert list(rows) == [
        {"length": len(example.input_ids)} | dataclasses.asdict(example) for example in examples
    ]


@pytest.mark.parametrize("task", ["seqrec", "title_history2sid", "title2sid", "itemsearch"])
def test_a_partial_pass_renders_only_what_it_keeps(task, tmp_path, monkeypatch):
    shop = make_shop()
    rendered = []

    def counted(method):
        def call(*args, **kwargs):
            rendered.append(method.__name__)
            return method(*args, **kwargs)

        return call

    for name in ("render", "seqrec_pieces"):
        monkeypatch.setattr(shop.template, name, counted(getattr(shop.template, name)))
    whole = training_rows(shop, {task: 1.0}, 0, tmp_path / "whole", {})
    all_calls = len(rendered)
    some = training_rows(shop, {task: 0.3}, 0, tmp_path / "some", {})
    assert 0.1 * len(whole) < len(some) < 0.55 * len(whole)
    assert len(rendered) - all_calls < 0.6 * all_calls
    targets = [tuple(row["target_items"]) for row in whole]
    assert all(tuple(row["target_items"]) in targets for row in some), "a sequence stays whole"


@pytest.mark.parametrize("task", sorted(TASKS))
def test_parts_cover_a_pass_once(task, tmp_path):
    shop = make_shop()
    targets = []
    for part_size in (1000, 7):
        rows = training_rows(shop, {task: 1.0}, 0, tmp_path / str(part_size), {}, part_size=part_size)
        targets.append(sorted(item for row in rows for item in row["target_items"]))
    assert len(targets[0]) == len(targets[1]) > 0
    if task != "itemsearch":  # which asks every preference for a case drawn at random
        assert targets[0] == targets[1]
    assert len(list((tmp_path / "7").glob("*.arrow"))) > 10


def test_rows_do_not_depend_on_who_writes_them(context, tmp_path):
    alone = training_rows(context, WEIGHTS, 0, tmp_path / "alone", {}, part_size=20)
    wanted = digests(tmp_path / "alone")
    assert len(wanted) == 3 * 15
    forked = training_rows(context, WEIGHTS, 0, tmp_path / "forked", {}, workers=2, part_size=20)
    assert digests(tmp_path / "forked") == wanted and list(forked) == list(alone)
    for rank in range(3):
        if rank < 2:  # the last one finds everything
            with pytest.raises(InputError, match="written by another process, is not there; use a directory"):
                training_rows(
                    context, WEIGHTS, 0, tmp_path / "dealt", {}, processes=OneOfMany(rank, 3), part_size=20
                )
            assert len(digests(tmp_path / "dealt")) == 15 * (rank + 1)
    dealt = training_rows(
        context, WEIGHTS, 0, tmp_path / "dealt", {}, processes=OneOfMany(2, 3), part_size=20
    )
    assert digests(tmp_path / "dealt") == wanted and list(dealt) == list(alone)


def test_long_texts_are_cut_and_counted_once(context, tmp_path):
    """Two titles of a catalogue are over budget: the run goes on, and says so, whoever writes the rows."""
    catalog, template = context.index.catalog, context.template
    items = [catalog.row(item) for item in range(catalog.num_items)]
    items[3]["title"], items[8]["title"] = "word " * 400, "other " * 500
    index = dataclasses.replace(context.index, catalog=Catalog.from_rows(items))
    template = PromptTemplate(template.pack, template.tokenizer, index)
    long, budget = (
        dataclasses.replace(context, index=index, template=template),
        template.pack.max_prompt_tokens,
    )
    weights, said = {"title2sid": 1.0, "sid2title": 1.0}, []
    for directory, workers in (("alone", 1), ("forked", 2), ("alone", 1)):  # the last one finds them there
        with pytest.warns(UserWarning, match=f"2 prompt.s. were over {budget} tokens") as caught:
            rows = training_rows(long, weights, 0, tmp_path / directory, {}, workers=workers, part_size=20)
        said += [str(warning.message) for warning in caught]
    assert len(said) == 3 and len(set(said)) == 1
    assert digests(tmp_path / "alone") == digests(tmp_path / "forked")
    cut = [row for row in rows if row["cut_from"]]
    assert [row["target_items"] for row in cut] == [[3], [8]] and {row["task"] for row in cut} == {
        "title2sid"
    }
    assert f"longest took {max(row['cut_from'] for row in cut):,};" in said[0]
    for row in cut:
        prompt = [label for label in row["shift_labels"] if label == IGNORE]
        assert len(prompt) + 1 <= budget < row["cut_from"]
    answer = next(row for row in rows if row["task"] == "sid2title" and row["target_items"] == [3])
    assert template.tokenizer.decode(answer["input_ids"]).count("word") == 400, "answers are whole"


def test_an_error_in_a_worker_is_the_error_of_the_command(context, tmp_path):
    pack = dataclasses.replace(context.template.pack, max_prompt_tokens=4)
    small = dataclasses.replace(
        context, template=type(context.template)(pack, context.template.tokenizer, context.index)
    )
    for workers in (1, 2):
        with pytest.raises(InputError, match="max_prompt_tokens: 4 is too small"):
            training_rows(small, {"seqrec": 1.0}, 0, tmp_path / "rows", {}, workers=workers, part_size=20)


def test_finished_shards_are_kept_and_missing_ones_made_again(context, tmp_path):
    training_rows(context, WEIGHTS, 0, tmp_path, {}, part_size=20)
    wanted = digests(tmp_path)
    gone, kept = tmp_path / "seqrec-0-000003.arrow", tmp_path / "seqrec-0-000004.arrow"
    gone.rename(gone.with_suffix(".partial"))
    written = kept.stat().st_mtime_ns
    training_rows(context, WEIGHTS, 0, tmp_path, {}, part_size=20)
    assert digests(tmp_path) == wanted and kept.stat().st_mtime_ns == written
    training_rows(context, WEIGHTS, 1, tmp_path, {}, part_size=20)
    changed = {name for name, digest in digests(tmp_path).items() if digest != wanted[name]}
    assert {name for name in wanted if name.startswith("title2sid")} <= changed, (
        "another seed, other wordings"
    )


def test_a_resumed_run_must_have_the_rows_it_began_with(context, tmp_path):
    (tmp_path / "log.txt").write_text("one")

    def rows(name, weights=WEIGHTS, seed=0, **changes):
        given = dataclasses.replace(context, **changes)
        inputs = {"log": tmp_path / "log.txt"}
        return training_rows(given, weights, seed, tmp_path / name, inputs, begun=tmp_path / ROWS_FILE)

    first = list(rows("first"))
    (tmp_path / "first" / ROWS_FILE).rename(tmp_path / ROWS_FILE)
    assert list(rows("second")) == first, "the run's own file, without its shards, is enough to go on"
    assert list(rows("second", weights={**WEIGHTS, "sid2title": 0})) == first, "weight 0 is no task"
    pack = dataclasses.replace(context.template.pack, max_history=3)
    other = type(context.template)(pack, context.template.tokenizer, context.index)
    for message, changes in {
        "seed is 1, and the run began with 0": {"seed": 1},
        "task_weights is {'seqrec': 2.0}, and": {"weights": {"seqrec": 2}},
        "positions is 'windows'": {"positions": "windows"},
        "prompt_pack is ": {"template": other},
        "train_positions is ": {"interactions": context.interactions.without_last_train()},
    }.items():
        with pytest.raises(InputError, match=f"^resume_from_checkpoint: {message}.*or start again with"):
            rows("second", **changes)
    (tmp_path / "log.txt").write_text("two")
    with pytest.raises(InputError, match="resume_from_checkpoint: log is '3fc4"):
        rows("second")


def test_a_directory_that_is_not_ours_is_left_alone(context, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="which holds thesis.tex; move it away"):
        training_rows(context, WEIGHTS, 0, tmp_path, {})
    assert (tmp_path / "thesis.tex").exists()


def test_a_task_without_examples_is_an_error(context, tmp_path):
    empty = Interactions.leave_one_out(["u"], [np.array([1])])
    with pytest.raises(InputError, match="task_weights.seqrec: the data holds no example"):
        training_rows(dataclasses.replace(context, interactions=empty), {"seqrec": 1.0}, 0, tmp_path, {})


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts this process's open files")
def test_rows_take_neither_memory_nor_open_files(context, tmp_path):
    training_rows(context, {"seqrec": 1.0}, 0, tmp_path, {}, part_size=2)
    bytes_on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.arrow"))
    allocated, files = pa.total_allocated_bytes(), len(os.listdir("/proc/self/fd"))
    rows = training_rows(context, {"seqrec": 1.0}, 0, tmp_path, {}, part_size=2)
    assert rows[len(rows) - 1]["length"] == len(rows[len(rows) - 1]["input_ids"])
    assert pa.total_allocated_bytes() - allocated < bytes_on_disk / 20
    assert len(os.listdir("/proc/self/fd")) - files < 20 < len(digests(tmp_path))


# A command that kills itself: in the middle of its third shard, or in the fifth step of training.
KILLED = """
import os, signal, sys
from sft import shards, train
from sft.trainer import SidTrainer

def die_at(owner, name, when):
    method = getattr(owner, name)
    def dying(*args, **kwargs):
        if when(*args):
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*args, **kwargs)
    setattr(owner, name, dying)

if sys.argv[1] == "writing":
    die_at(shards, "_record_batch", lambda task, examples: task == "title2sid")
else:
    die_at(SidTrainer, "training_step", lambda trainer, *args: trainer.state.global_step == 4)
train.main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_rows_and_losses(sids, tmp_path):
    scratch = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64}
    flags = (
        f"--sid_dir {sids} --training full --prompt_pack plain --learning_rate 0.003 --seed 3 --use_cpu true "
        "--bf16 false --report_to none --disable_tqdm true --logging_steps 1 --max_steps 6 --save_steps 2 "
        "--save_strategy steps"
    ).split()
    flags += ["--from_scratch", json.dumps(scratch | {"text_vocab_size": 400})]
    cut = ["--output_dir", str(tmp_path / "cut")]

    def killed(when, *more):
        command = [sys.executable, "-c", KILLED, when, *flags, *cut, *more]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert done.returncode == -9, done.stderr

    killed("writing")
    rows_dir = tmp_path / "cut.rows"
    whole = {path.name: path.stat().st_mtime_ns for path in rows_dir.glob("*.arrow")}
    assert sorted(whole) == ["seqrec-0-000000.arrow", "sid2title-0-000000.arrow"]
    assert not (tmp_path / "cut").exists() and len(list(rows_dir.glob("*.partial"))) == 1
    killed("training")
    assert {name: (rows_dir / name).stat().st_mtime_ns for name in whole} == whole, "kept"
    assert (tmp_path / "cut" / "checkpoint-4").is_dir()
    train.main([*flags, *cut, "--resume_from_checkpoint", "true"])
    train.main([*flags, "--output_dir", str(tmp_path / "whole")])

    def losses(run):
        history = json.loads((tmp_path / run / "log_history.json").read_text())
        return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}

    assert losses("cut") == pytest.approx(losses("whole"), abs=1e-6) and len(losses("cut")) == 6
    manifest = json.loads((tmp_path / "cut" / "manifest.json").read_text())
    assert ROWS_FILE in manifest["files"] and not any("arrow" in name for name in manifest["files"])
    assert not rows_dir.exists() and not (tmp_path / "whole.rows").exists()
