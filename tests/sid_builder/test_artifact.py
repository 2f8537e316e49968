"""Artefacts: complete or absent, and what is wrong with one is named when it is opened."""

import json

import numpy as np
import pytest

from sid_builder.artifact import MANIFEST, open_artifact, writing
from sid_builder.errors import InputError


def write(path, **options):
    with writing(path, "thing", config={"size": 3}, seeds={"seed": 1}, **options) as artifact:
        np.save(artifact.path / "data.npy", np.arange(10))
        (artifact.path / "deep").mkdir()
        (artifact.path / "deep" / "text.txt").write_text("text")
        artifact.summary["rows"] = 10
    return path


def test_what_was_written_is_described(tmp_path):
    source = tmp_path / "input.txt"
    source.write_text("input")
    artifact = open_artifact(write(tmp_path / "out", inputs={"input": source}), "thing")
    assert artifact.summary == {"rows": 10} and artifact.config == {"size": 3}
    assert set(artifact.manifest["files"]) == {"data.npy", "deep/text.txt"}
    assert artifact.manifest["inputs"]["input"]["file"] == "input.txt"
    assert artifact.manifest["seeds"] == {"seed": 1} and artifact.manifest["code"]["version"]
    artifact.verify_hashes()


def test_an_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), writing(tmp_path / "out", "thing") as artifact:
        (artifact.path / "half").write_text("half")
        raise RuntimeError("power cut")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_keeps_the_old_one(tmp_path):
    write(tmp_path / "out")
    with pytest.raises(RuntimeError), writing(tmp_path / "out", "thing", overwrite=True):
        raise RuntimeError("power cut")
    open_artifact(tmp_path / "out", "thing").verify_hashes()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_existing_output_is_never_replaced_unasked(tmp_path):
    write(tmp_path / "out")
    with pytest.raises(InputError, match="output_dir: .*out exists already; .*--overwrite"):
        write(tmp_path / "out")
    write(tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is not an artefact of sidereal"):
        write(foreign, overwrite=True)


def _truncate(path):
    (path / "data.npy").write_bytes((path / "data.npy").read_bytes()[:-4])


def _edit(**changes):
    def edit(path):
        manifest = json.loads((path / MANIFEST).read_text()) | changes
        (path / MANIFEST).write_text(json.dumps(manifest))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"data\.npy: has \d+ bytes, manifest\.json says \d+ bytes; build this artefact again"),
        (lambda path: (path / "deep/text.txt").unlink(), r"text\.txt: is missing"),
        (lambda path: (path / MANIFEST).unlink(), r"has no manifest\.json, so it is incomplete"),
        (lambda path: (path / MANIFEST).write_text('{"kind"'), r"manifest\.json: cannot be read"),
        (_edit(kind="other"), "is a 'other' artefact, but a 'thing' one is needed here"),
        (_edit(format=9), "format 9 is newer than 1; upgrade sidereal"),
    ],
)
def test_damage_is_named_on_opening(tmp_path, damage, message):
    damage(write(tmp_path / "out"))
    with pytest.raises(InputError, match=message):
        open_artifact(tmp_path / "out", "thing")


def test_changed_content_of_equal_size_is_found_by_hash(tmp_path):
    (write(tmp_path / "out") / "deep" / "text.txt").write_text("TEXT")
    with pytest.raises(InputError, match=r"text\.txt: content differs"):
        open_artifact(tmp_path / "out", "thing").verify_hashes()


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="absent: no such directory; expected a 'thing' artefact"):
        open_artifact(tmp_path / "absent", "thing")
