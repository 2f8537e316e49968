"""sft.refresh through its command line: what it learns from, what it says, and what it leaves behind."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from serve.decoding.recommender import Recommender
from sft import merge, refresh, train
from sft.examples import TaskContext
from sft.refresh_report import METRICS, compare
from sft.refresh_rows import RefreshContext
from sid_builder.artifact import open_artifact
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.new_interactions import join_interactions
from sid_builder.sid_index import SidIndex
from tests.builders import make_index
from tests.sft.builders import write_sids
from tests.sft.command_line import COMMON
from tests.sft.grown_shop import make_grown_shop, write_lines

FLAGS = [*COMMON, "--per_device_train_batch_size", "32"]
WIDER = (
    '{"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 128, "text_vocab_size": 500}'
)


def make_model(shop, root, *flags):
    """A model of the old shop, in root/model."""
    start = ["--from_scratch", WIDER, "--training", "full", "--prompt_pack", "plain", "--save_strategy", "no"]
    words = ["--sid_dir", shop.sids, "--output_dir", root / "sft", *FLAGS, *start, *flags]
    train.main([str(word) for word in words])
    merge.main(["--adapter", str(root / "sft"), "--output_dir", str(root / "model")])
    return root / "model"


def run_refresh(shop, model, output_dir, *flags, sids=None, later=None):
    words = ["--model", model, "--sid_dir", sids or shop.grown_sids, "--output_dir", output_dir]
    words += ["--interactions", later or shop.later, *FLAGS, *flags]
    refresh.main([str(word) for word in words])


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_grown_shop(tmp_path_factory.mktemp("shop"), num_users=60, items_per_category=14)


@pytest.fixture(scope="module")
def model(shop, tmp_path_factory):
    return make_model(shop, tmp_path_factory.mktemp("model"), "--max_steps", 2)


@pytest.fixture(scope="module")
def joined(shop, model):
    catalog = SidIndex.load(shop.grown_sids / "sid_index").catalog
    return join_interactions(Interactions.load(model / "interactions"), shop.later, catalog)


def test_a_refresh_learns_what_is_new_and_a_share_of_what_is_old(joined, recommender):
    """Every new train position once, none of valid, of test, or of the old valid cases that are held out."""
    num_old_items = 201
    learnt_S = np.maximum(joined.num_old_S - 2, 0)
    held_out_S = np.arange(len(learnt_S)) % 3 == 0
    # Only items and positions matter here: any template will do.
    index = make_index(np.stack(np.unravel_index(np.arange(224), (16, 16)), axis=1), (16, 16))
    plain = TaskContext(index, joined.whole, recommender.template)

    def cases(replay, seed=0):
        context = RefreshContext(
            index,
            joined.whole,
            recommender.template,
            share_seed=[seed],
            learnt_S=learnt_S,
            held_out_S=held_out_S,
            num_old_items=num_old_items,
            replay=replay,
        )
        found = context.train_cases(whole_sequences=True)
        return set(zip(found.sequence_C.tolist(), found.position_C.tolist(), strict=True)), context.items()

    whole = plain.train_cases()
    every = set(zip(whole.sequence_C.tolist(), whole.position_C.tolist(), strict=True))
    held_out = {(s, int(learnt_S[s])) for s in np.flatnonzero(held_out_S)}
    new = {(s, p) for s, p in every if p >= learnt_S[s]}
    assert cases(0.0)[0] == new - held_out and held_out & new
    assert cases(1.0)[0] == every - held_out
    assert cases(0.0)[1].tolist() == list(range(num_old_items, 224))
    some, items = cases(0.5)
    assert new - held_out < some < every - held_out
    replayed = {s for s, p in some if p < learnt_S[s]}
    assert {(s, p) for s, p in every if s in replayed} - held_out <= some, "whole sequences are replayed"
    assert 0.3 < len(items) / 224 < 0.75 and set(range(num_old_items, 224)) <= set(items.tolist())
    assert cases(0.5)[0] == some != cases(0.5, seed=1)[0]


def test_report_says_what_it_found():
    rng = np.random.default_rng(0)
    better, worse, none = np.ones(60, int), rng.integers(20, 40, 60), np.empty(0, int)
    before = {"kept": better, "new": worse, "new_items": worse[:9], "titles": none}
    after = {"kept": worse, "new": better, "new_items": better[:9], "titles": none}
    report = compare(before, after)
    assert report["verdict"] == "helped" and report["titles"] == {"cases": 0}
    assert report["statement"].startswith("helped: NDCG@10 0.0000 -> 1.0000 (+1.0000")
    assert "new items found: R@10 0.0000 -> 1.0000" in report["statement"]
    assert "it cost NDCG@10 1.0000 -> 0.0000" in report["statement"]
    assert compare(after, before)["verdict"] == "hurt"
    same = compare(after, after)
    assert same["verdict"] == "no clear change" and "no clear cost" in same["statement"]
    assert "not measured" in compare(dict.fromkeys(METRICS, none), dict.fromkeys(METRICS, none))["statement"]


@pytest.mark.parametrize("training", ["lora", "full"])
def test_resume_continues_exactly_and_merges(shop, model, tmp_path, training, capsys):
    flags = ["--training", training, "--max_steps", 4, "--save_strategy", "steps", "--save_steps", 2]
    flags += ["--save_total_limit", 9, "--valid_cases", 20, "--report_cases", 20]
    run_refresh(shop, model, tmp_path / "whole", *flags)
    assert "| old valid cases | 20 | NDCG@10 |" in capsys.readouterr().out
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    shutil.copy(tmp_path / "whole" / "rows.json", tmp_path / "cut")
    if training == "lora":
        shutil.copytree(tmp_path / "whole" / "base", tmp_path / "cut" / "base")
    with pytest.raises(
        InputError, match="resume_from_checkpoint: replay is 0.25, and the run began with 0.5"
    ):
        run_refresh(
            shop, model, tmp_path / "cut", *flags, "--resume_from_checkpoint", "true", "--replay", 0.25
        )
    run_refresh(shop, model, tmp_path / "cut", *flags, "--resume_from_checkpoint", "true")
    whole, cut = (json.loads((tmp_path / run / "log_history.json").read_text()) for run in ("whole", "cut"))
    for name in ("loss", "eval_ndcg@10"):
        figures = [{row["step"]: row[name] for row in run if name in row} for run in (whole, cut)]
        assert figures[0] == figures[1] and len(figures[0]) >= 2
    reports = [json.loads((tmp_path / run / "refresh.json").read_text()) for run in ("whole", "cut")]
    assert reports[0] == reports[1]
    assert (tmp_path / "whole" / "refresh.png").stat().st_size > 5_000
    open_artifact(tmp_path / "whole", "sft").verify_hashes()

    merge.main(["--adapter", str(tmp_path / "cut"), "--output_dir", str(tmp_path / "model")])
    made, index = Recommender.load(tmp_path / "model"), SidIndex.load(shop.grown_sids / "sid_index")
    assert made.index.catalog.item_ids == index.catalog.item_ids
    assert np.array_equal(made.index.semantic_ids.codes_NL, index.semantic_ids.codes_NL)
    assert set(shop.new_ids) <= set(made.index.catalog.item_ids)
    assert np.array_equal(made.index.train_counts_N, made.interactions.train_counts(index.catalog.num_items))
    assert made.interactions.num_interactions == reports[0]["new_interactions"] + int(
        Interactions.load(model / "interactions").num_interactions
    )


def test_a_plan_is_what_then_happens(shop, model, tmp_path, capsys, monkeypatch):
    flags = ["--num_train_epochs", 2, "--valid_cases", 0, "--report_cases", 20, "--training", "full"]
    run_refresh(shop, model, tmp_path / "out", *flags, "--plan", "true")
    text = capsys.readouterr().out
    figures = json.loads(text.strip().splitlines()[-1])
    assert text.startswith("Plan of sft.refresh") and not (tmp_path / "out").exists()
    run_refresh(shop, model, tmp_path / "out", *flags[:-3], 0, *flags[-2:], "--plan", "true")
    unasked = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert unasked["flops"] < figures["flops"], "what is asked before and after costs something"
    run_refresh(shop, model, tmp_path / "out", *flags)
    summary = json.loads((tmp_path / "out" / "manifest.json").read_text())["summary"]
    assert (figures["steps"], figures["rows"]) == (summary["steps"], summary["rows"])
    launch = tmp_path / "launch.yaml"
    launch.write_text("distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {fsdp_version: 2}\n")
    monkeypatch.setenv("ACCELERATE_CONFIG_FILE", str(launch))
    with pytest.raises(InputError, match="report_cases: 20 cannot be ranked under fsdp2"):
        run_refresh(shop, model, tmp_path / "other", *flags, "--plan", "true")


def test_the_first_figures_are_those_of_the_model(shop, model, tmp_path):
    """Nothing but the learning rate stands between the merged weights and the refreshed ones."""
    run_refresh(shop, model, tmp_path / "run", "--max_steps", 1, "--learning_rate", 0, "--training", "full")
    report = json.loads((tmp_path / "run" / "refresh.json").read_text())
    for name, metrics in METRICS.items():
        assert report[name]["cases"] > 5
        for metric in metrics:
            assert report[name][metric]["before"] == report[name][metric]["after"]
    assert report["verdict"] == "no clear change"
    merge.main(["--adapter", str(tmp_path / "run"), "--output_dir", str(tmp_path / "model")])
    before, after = (Recommender.load(path).model.state_dict() for path in (model, tmp_path / "model"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def other_index(shop, root, change):
    """The grown SIDs with something changed in the old rows."""
    index = SidIndex.load(shop.grown_sids / "sid_index")
    interactions = Interactions.load(shop.grown_sids / "interactions")
    return write_sids(root / "other", change(index), interactions)


def swap_codes(index):
    codes_NL = np.array(index.semantic_ids.codes_NL)
    codes_NL[[3, 4]] = codes_NL[[4, 3]]
    return dataclasses.replace(
        index, semantic_ids=dataclasses.replace(index.semantic_ids, codes_NL=codes_NL), stored_trie=None
    )


def swap_items(index):
    order = np.arange(index.catalog.num_items)
    order[[3, 4]] = order[[4, 3]]
    catalog = dataclasses.replace(index.catalog, table=index.catalog.table.take(order))
    return dataclasses.replace(index, catalog=catalog)


def more_codes(index):
    ids = dataclasses.replace(index.semantic_ids, level_sizes=(12, 12, 13))
    return dataclasses.replace(index, semantic_ids=ids)


def other_spelling(index):
    ids = dataclasses.replace(index.semantic_ids, pattern="[{letter}{code}]")
    return dataclasses.replace(index, semantic_ids=ids)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (swap_codes, r"item 'P\d+' is <.*> in it, <.*> in the model's"),
        (swap_items, r"row 3 is item 'P\d+' in it, 'P\d+' in the model's"),
        (other_spelling, r"its tokens are spelled '\[\{letter\}\{code\}\]', the model's"),
        (more_codes, r"its levels are \[12, 12, 13\], the model's \[12, 12, 12\]"),
    ],
)
def test_a_checkpoint_from_another_index(shop, model, tmp_path, change, fault):
    sids = other_index(shop, tmp_path, change)
    with pytest.raises(InputError, match=f"sid_dir: .*{fault}.* checkpoint from another index") as caught:
        run_refresh(shop, model, tmp_path / "out", sids=sids)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_index_that_lost_items(shop, model, tmp_path):
    refreshed = tmp_path / "refreshed"
    run_refresh(
        shop,
        model,
        refreshed,
        "--max_steps",
        1,
        "--valid_cases",
        0,
        "--report_cases",
        0,
        "--training",
        "full",
    )
    assert not (refreshed / "refresh.json").exists()
    merge.main(["--adapter", str(refreshed), "--output_dir", str(tmp_path / "model")])
    with pytest.raises(InputError, match="it has 201 items, the model's has 224"):
        run_refresh(shop, tmp_path / "model", tmp_path / "out", sids=shop.sids)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"user": "u1", "items": ["nope"]}], "new.jsonl:1: item 'nope' is not in the items file"),
        ([{"user": "u1", "items": []}], r"new.jsonl:1: items is \[\]"),
        ([{"items": ["P0000"]}], "new.jsonl:1: user is None"),
        ([], "interactions: there are none"),
        ([{"user": "u1", "items": ["P0000"], "timestamps": [1]}], "new.jsonl has timestamps, unlike"),
    ],
)
def test_bad_interactions(shop, model, tmp_path, lines, message):
    later = write_lines(tmp_path / "new.jsonl", lines)
    with pytest.raises(InputError, match=message) as caught:
        run_refresh(shop, model, tmp_path / "out", later=later)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--replay", "1.5"], "replay: 1.5; give a share between 0 and 1"),
        (["--report_cases", "-1"], "report_cases: -1"),
        (["--task_weights", '{"seqrek": 1}'], "task_weights: 'seqrek' is not known"),
        (["--push_to_hub", "true"], "push_to_hub: a run directory holds people's interactions"),
    ],
)
def test_bad_flags(shop, model, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run_refresh(shop, model, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_refreshed_model_finds_the_new_items_and_keeps_the_old(tmp_path):
    """On the toy shop, at a size where it learns: new items are found, new interactions are ranked better,
    and of the old ones next to nothing is lost.
    """
    shop = make_grown_shop(tmp_path, num_users=700, items_per_category=14)
    weights = ["--task_weights", '{"seqrec": 1.0, "title2sid": 1.0, "sid2title": 0.5}']
    rate = ["--learning_rate", 0.004, "--lr_scheduler_type", "cosine", "--warmup_steps", 10]
    model = make_model(shop, tmp_path, *weights, *rate, "--num_train_epochs", 36)
    flags = ["--training", "full", "--learning_rate", 0.003, "--num_train_epochs", 5, "--report_cases", 200]
    weights = ["--task_weights", '{"seqrec": 1.0, "title2sid": 6.0, "sid2title": 0.5}']
    run_refresh(shop, model, tmp_path / "refresh", *flags, *weights, "--valid_cases", 100)
    report = json.loads((tmp_path / "refresh" / "refresh.json").read_text())
    assert report["new_items"]["cases"] > 50 and report["titles"]["cases"] == len(shop.new_ids)
    assert report["new_items"]["r@50"]["before"] < 0.1
    assert report["new_items"]["r@50"]["difference"] > 0.3
    assert report["new_items"]["r@10"]["difference"] > 0.04
    assert report["titles"]["r@10"]["before"] < 0.2 and report["titles"]["r@10"]["after"] > 0.7
    assert report["new"]["ndcg@10"]["interval_95"][0] > 0 and report["verdict"] == "helped"
    assert report["kept"]["ndcg@10"]["before"] > 0.08, "else there was nothing to forget"
    assert report["kept"]["ndcg@10"]["difference"] > -0.03
