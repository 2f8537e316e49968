"""The build command in-process: what it writes, and the bad input it refuses, leaving nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sid_builder import build
from sid_builder.artifact import open_artifact
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.quantizers.neural import checkpoint
from sid_builder.quantizers.rq_kmeans import RQKMeans
from sid_builder.sid_index import SidIndex

ROOT = Path(__file__).parents[2]
TOY = """
source: toy
source_args: {num_users: 60}
embedder: tfidf_svd
embedder_args: {dim: 16}
quantizer_args: {levels: 3, codes_per_level: 32}
repair: last_level_assign
"""
JSONL = """
source: jsonl
text_template: "{title}"
embedder: tfidf_svd
embedder_args: {dim: 4, min_items: 1}
quantizer_args: {levels: 2, codes_per_level: 4}
repair: last_level_assign
"""
WORDS = (
    "red shoes",
    "blue shoes",
    "red tent",
    "green tent",
    "wool socks",
    "thin wool socks",
    "stove",
    "blue lamp",
)


@pytest.fixture
def config(tmp_path):
    def write(text, name="config.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return ["--config", str(tmp_path / name), "--output_dir", str(tmp_path / "out" / "sids")]

    return write


@pytest.fixture
def data_path(tmp_path):
    directory = tmp_path / "data"
    directory.mkdir()
    items = [{"item_id": i, "title": title} for i, title in enumerate(WORDS)]
    sequences = [{"user": str(u), "items": [(u + step) % len(WORDS) for step in range(5)]} for u in range(6)]
    for name, rows in (("items", items), ("sequences", sequences)):
        (directory / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    return directory


def test_the_artefact_is_whole(config, tmp_path, capsys):
    index = build.main([*config(TOY), "--seed", "3"])
    out = tmp_path / "out" / "sids"
    artifact = open_artifact(out, "sids")
    artifact.verify_hashes()
    assert artifact.manifest["seeds"] == {"seed": 3} and artifact.config["source_args"] == {"num_users": 60}
    assert artifact.summary["collision_rate"] == 0.0 and artifact.summary["source"]["num_sequences"] == 60
    loaded = SidIndex.load(out / "sid_index")
    np.testing.assert_array_equal(loaded.semantic_ids.codes_NL, index.semantic_ids.codes_NL)
    interactions = Interactions.load(out / "interactions")
    np.testing.assert_array_equal(interactions.train_counts(512), loaded.train_counts_N)
    embeddings_ND = np.load(out / "embeddings.npy")
    assert embeddings_ND.dtype == np.float32 and embeddings_ND.shape == (512, 16)
    codes_NL = RQKMeans.load(out / "quantizer").encode(embeddings_ND)
    np.testing.assert_array_equal(codes_NL[:, :2], loaded.semantic_ids.codes_NL[:, :2])
    report = json.loads((out / "report.json").read_text())
    assert report["repair"]["collision_rate_before"] > 0 == report["collisions"]["collision_rate"]
    assert str(out) in capsys.readouterr().out


def test_the_same_seed_gives_the_same_files(config, tmp_path):
    build.main(config(TOY))
    first = open_artifact(tmp_path / "out" / "sids", "sids").manifest["files"]
    build.main([*config(TOY), "--overwrite", "true"])
    again = open_artifact(tmp_path / "out" / "sids", "sids").manifest["files"]
    assert {n: f["sha256"] for n, f in first.items() if "manifest" not in n} == {
        n: f["sha256"] for n, f in again.items() if "manifest" not in n
    }


def test_jsonl_through_the_command(config, data_path, tmp_path):
    index = build.main(
        [*config(JSONL), "--data_path", str(data_path), "--token_pattern", "[{letter}:{code}]"]
    )
    assert index.semantic_ids.collision_rate == 0 and index.semantic_ids.spell(0).startswith("[a:")
    inputs = open_artifact(tmp_path / "out" / "sids", "sids").manifest["inputs"]
    assert inputs["items"]["file"] == "items.jsonl" and len(inputs["items"]["sha256"]) == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "shop"}, r"source: 'shop' is not known; use one of \['amazon', .*'toy'\]"),
        ({"sorce": "toy"}, r"config: sorce: unknown key; did you mean 'source'\?"),
        ({"source_args": {"num_user": 3}}, r"source_args\.num_user: unknown key; did you mean 'num_users'\?"),
        ({"embedder_args": {"dim": "big"}}, r"embedder_args\.dim: 'big' is not of type int"),
        ({"quantizer_args": {"levls": 2}}, r"quantizer_args\.levls: unknown key; did you mean 'levels'\?"),
        (
            {"quantizer_args": {"codes_per_level": 600}},
            "600 codes for 512 items with 512 distinct embeddings",
        ),
        (
            {"embedder": None, "embedder_args": {}},
            "embedder: is not set, but quantizer 'rq_kmeans' needs one",
        ),
        ({"embedder": "my.absent:Thing"}, r"embedder: 'my\.absent:Thing' needs module"),
        ({"repair": "pray"}, r"repair: 'pray' is not known; use one of \['append_token', 'knn_capacity'"),
        ({"text_template": "{name}"}, "text_template: 'name' is no catalogue column"),
        ({"token_pattern": "<{code}>"}, "token_pattern: '<{code}>' needs one {letter} and one {code}"),
        (
            {"quantizer": "given"},
            r"quantizer_args: \{'codes_per_level': 32, .* have no effect on quantizer 'given'",
        ),
        (
            {"quantizer": "given", "quantizer_args": {}, "repair": "none"},
            "source 'toy' brings no SIDs to take over",
        ),
        (
            {"thresholds": {"max_collision_rate": 2.0}},
            r"thresholds\.max_collision_rate: 2\.0 is outside 0\.\.1",
        ),
        ({"thresholds": {"max_colisions": 0}}, r"thresholds\.max_colisions: unknown key; did you mean"),
        ({"repair_args": {"spill": 1}}, r"repair_args\.spill: "),
        ({"report": {"map": "umap"}}, r"report\.map: 'umap' is not one of"),
        ({"data_path": "somewhere"}, "data_path: somewhere has no effect on source 'toy'; drop it"),
        ({"source": "jsonl", "source_args": {}}, "data_path: is not set, but source 'jsonl' reads files"),
    ],
)
def test_bad_arguments_leave_nothing_behind(config, tmp_path, change, message):
    import yaml

    argv = config(yaml.safe_dump(yaml.safe_load(TOY) | change))
    with pytest.raises(InputError, match=message) as caught:
        build.main(argv)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missed_threshold_leaves_the_report_alone(config, tmp_path):
    out = tmp_path / "out" / "sids"
    limits = '{"max_collision_rate": 0.0, "min_level_1_perplexity": 0.1}'
    with pytest.raises(
        InputError,
        match=r"thresholds\.max_collision_rate: 0\.\d+ is above 0; .*repair: last_level_assign \(see .*"
        r"sids\.rejected/report\.html\)",
    ):
        build.main([*config(TOY), "--repair", "none", "--thresholds", limits])
    rejected = out.with_name("sids.rejected")
    assert not out.exists() and {path.name for path in rejected.iterdir()} == {"report.json", "report.html"}
    checks = json.loads((rejected / "report.json").read_text())["thresholds"]
    assert [check["passed"] for check in checks] == [False, True]
    build.main([*config(TOY), "--thresholds", limits])
    assert out.exists() and not rejected.exists()


def test_an_interrupted_quantizer_goes_on_where_it_was(config, tmp_path, monkeypatch):
    """The first run stops after a checkpoint; the second one ends with the codes of an undisturbed run."""
    text = TOY.replace(
        "quantizer_args: {levels: 3, codes_per_level: 32}",
        "quantizer: rqvae\nquantizer_args: {codes_per_level: 16, steps: 60}",
    )
    whole = build.main([*config(text), "--output_dir", str(tmp_path / "whole" / "sids")])
    keep, restore, resumed_at = checkpoint.keep, checkpoint.restore, []

    def keep_and_stop(*args):
        keep(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "keep", keep_and_stop)
    with pytest.raises(KeyboardInterrupt):
        build.main(config(text))
    assert not (tmp_path / "out" / "sids").exists()
    monkeypatch.setattr(checkpoint, "keep", keep)
    monkeypatch.setattr(
        checkpoint, "restore", lambda *args: resumed_at.append(restore(*args)) or resumed_at[-1]
    )
    again = build.main(config(text))
    assert len(resumed_at) == 1 and 0 < resumed_at[0] < 60
    np.testing.assert_array_equal(again.semantic_ids.codes_NL, whole.semantic_ids.codes_NL)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"sids"}


def test_codebook_sizes_can_be_left_to_the_build(config, tmp_path):
    index = build.main([*config(TOY), "--quantizer_args", '{"levels": "auto", "codes_per_level": "auto"}'])
    report = json.loads((tmp_path / "out" / "sids" / "report.json").read_text())
    assert index.semantic_ids.level_sizes == tuple(report["shape"]["proposed"]["level_sizes"]) == (32, 32, 32)
    assert (
        report["shape"]["used"] == report["shape"]["proposed"] and report["shape"]["items_fitted_on"] == 512
    )
    seconds = open_artifact(tmp_path / "out" / "sids", "sids").summary["seconds"]
    assert set(seconds) == {"read source", "embed", "quantize", "repair", "report"}


@pytest.mark.slow
def test_two_processes_build_what_one_builds(config, tmp_path):
    """By torchrun: `accelerate launch --cpu --num_processes 2` starts one process (accelerate 1.15)."""
    one = build.main(config(TOY))
    argv = ["--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / "two" / "sids")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "sid_builder.build", *argv], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    artifact = open_artifact(tmp_path / "two" / "sids", "sids")
    artifact.verify_hashes()
    two = SidIndex.load(artifact.path / "sid_index")
    np.testing.assert_array_equal(two.semantic_ids.codes_NL, one.semantic_ids.codes_NL)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"sids"}


def _append(path, line):
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(line + "\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda data: (data / "items.jsonl").write_text(""),
            "catalogue: it has no items; check the items file",
        ),
        (
            lambda data: _append(data / "items.jsonl", '{"item_id": 3}'),
            r"items\.jsonl:9: item_id '3' is a duplicate",
        ),
        (
            lambda data: _append(data / "sequences.jsonl", '{"user": "u", "items": [3, 99]}'),
            r"sequences\.jsonl:7: item 99 is not in the items file; add the item or remove it here",
        ),
        (
            lambda data: (data / "sequences.jsonl").unlink(),
            r"cannot read .*sequences\.jsonl .*; check the path",
        ),
    ],
)
def test_bad_data_leaves_nothing_behind(config, data_path, tmp_path, spoil, message):
    spoil(data_path)
    with pytest.raises(InputError, match=message):
        build.main([*config(JSONL), "--data_path", str(data_path)])
    assert not (tmp_path / "out").exists()


def test_an_unreadable_path_is_named(config, tmp_path):
    with pytest.raises(
        InputError, match="data_path: .*absent does not exist; give the directory of the data"
    ):
        build.main([*config(JSONL), "--data_path", str(tmp_path / "absent")])


def test_nan_embeddings_leave_nothing_behind(config, data_path, tmp_path):
    vectors_ND = np.random.default_rng(0).normal(size=(len(WORDS), 4))
    vectors_ND[2, 1] = np.nan
    np.save(tmp_path / "vectors.npy", vectors_ND)
    text = JSONL.replace("tfidf_svd", "precomputed").replace(
        "{dim: 4, min_items: 1}", f"{{file: {tmp_path}/vectors.npy}}"
    )
    with pytest.raises(
        InputError, match="embedder: 'precomputed' gave NaN or infinite values for 1 of 8 items, first for"
    ):
        build.main([*config(text), "--data_path", str(data_path)])
    assert not (tmp_path / "out").exists()


def test_output_is_not_replaced_unasked(config, tmp_path):
    build.main(config(TOY))
    with pytest.raises(
        InputError, match="output_dir: .* exists already; choose another directory or pass --overwrite"
    ):
        build.main(config(TOY))


def test_a_truncated_artefact_is_named(config, tmp_path):
    build.main(config(TOY))
    codes = tmp_path / "out" / "sids" / "sid_index" / "codes.npy"
    codes.write_bytes(codes.read_bytes()[:100])
    with pytest.raises(
        InputError,
        match=r"codes\.npy: has 100 bytes, manifest\.json says \d+ bytes; build this artefact again",
    ):
        open_artifact(tmp_path / "out" / "sids", "sids")
