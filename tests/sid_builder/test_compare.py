"""Several sets of SIDs side by side, over artefacts of the build command."""

import json
import shutil

import pytest

from sid_builder import build, compare
from sid_builder.artifact import open_artifact
from sid_builder.compare import Row, short_names
from sid_builder.errors import InputError
from tests.sid_builder.test_report_page import Page


def build_toy(directory, **options):
    values = {
        "source": "toy",
        "source_args": {"num_users": 40},
        "embedder": "tfidf_svd",
        "embedder_args": {"dim": 16},
        "quantizer_args": {"levels": 3, "codes_per_level": 16},
        "output_dir": str(directory),
    } | options
    argv = []
    for key, value in values.items():
        argv += [f"--{key}", json.dumps(value) if isinstance(value, dict) else value]
    build.main(argv)
    return str(directory)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return {
        "plain": build_toy(root / "plain" / "sids"),
        "repaired": build_toy(
            root / "repaired" / "sids",
            repair="last_level_assign",
            quantizer_args={"levels": 2, "codes_per_level": 32},
        ),
        "other_users": build_toy(root / "other_users" / "sids", source_args={"num_users": 30}),
        "other_items": build_toy(root / "other_items" / "sids", source_args={"num_users": 40, "seed": 3}),
        "fewer_items": build_toy(
            root / "fewer_items" / "sids", source_args={"num_users": 40, "items_per_category": 20}
        ),
    }


def run(sets, names, tmp_path=None, *flags):
    argv = ["--sid_dirs", *(sets[name] for name in names), *flags]
    return compare.main([*argv, "--output_dir", str(tmp_path / "out")] if tmp_path else argv)


def test_table_json_and_page(sets, tmp_path, capsys):
    comparison = run(sets, ["plain", "repaired"], tmp_path)
    artifact = open_artifact(tmp_path / "out", "sid_comparison")
    artifact.verify_hashes()
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == comparison
    plain, repaired = comparison["sets"]
    assert (plain["name"], repaired["name"]) == ("plain", "repaired") and comparison["notes"] == []
    for one in comparison["sets"]:
        report = json.loads((open_artifact(sets[one["name"]], "sids").path / "report.json").read_text())
        figures = one["figures"]
        assert figures["level 1 perplexity"] == report["levels"][0]["perplexity"]
        assert figures["collision rate"] == report["summary"]["collision_rate"]
        assert figures["error after repair"] == report["reconstruction"]["error_after_repair"]
    assert plain["figures"]["shape"] == "16 x 16 x 16" and repaired["figures"]["level 3 used"] is None

    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("repair"))
    assert line.split() == ["repair", "none", "last_level_assign"]
    rate = next(line for line in printed.splitlines() if line.startswith("collision rate  "))
    assert rate.split()[-1] == "0.00%*"

    page = Page((tmp_path / "out" / "compare.html").read_text(encoding="utf-8"))
    words = page.words()
    assert "2 sets of semantic IDs" in words and "last_level_assign" in words
    assert all("src" not in attrs and "href" not in attrs for _, attrs in page.tags)
    charts = [attrs for tag, attrs in page.tags if tag == "svg"]
    curves = [attrs["class"] for tag, attrs in page.tags if tag == "polyline"]
    assert len(charts) == 3 and curves == ["line c0", "line c1"] * 2 + ["line c0"]


def test_a_set_without_quantizer_has_gaps(sets):
    """Taken-over SIDs have neither errors nor neighbours."""
    one = compare.read_set(sets["plain"], "given")
    for section in ("reconstruction", "neighbours"):
        del one.report[section]
    one.report["summary"]["reconstruction_error"] = None
    rows = compare.comparison_rows([one, compare.read_set(sets["plain"], "plain")], comparable=True)
    by_title = {row.title: row for row in rows}
    assert by_title["error"].texts()[0] == "–" and by_title["error"].texts()[1].endswith("%")
    page = compare.comparison_page(["given", "plain"], [one.report, one.report], rows, [])
    assert "Not measured on any of the sets." in page


def test_other_items_are_refused(sets):
    with pytest.raises(
        InputError,
        match="sid_dirs: plain and fewer_items are over different catalogues: 512 and 320 items, 320 item "
        "ids in common; choose sets over one or pass --different_catalogs true",
    ):
        run(sets, ["plain", "fewer_items"])
    # The same number of items with the same ids, but they are other items.
    with pytest.raises(InputError, match=r"\d+ titles differ, first of item_id '\w+': '.+' and '.+'"):
        run(sets, ["plain", "other_items"])
    comparison = run(sets, ["plain", "other_items", "fewer_items"], None, "--different_catalogs", "true")
    assert len(comparison["notes"]) == 2


def test_other_interactions_are_noted(sets, capsys):
    (note,) = run(sets, ["plain", "other_users"])["notes"]
    assert "plain and other_users have other interactions" in note
    assert f"note: {note}" in capsys.readouterr().out


def test_best_values():
    assert Row("x", [1, 3, None, 3], "", "high").best() == [False, True, False, True]
    assert Row("x", [1, 3, None], "", "low").best() == [True, False, False]
    assert Row("x", [2, 2], "", "low").best() == Row("x", [1, 2]).best() == [False, False]
    assert Row("x", [0.1234, None], ".1%").texts() == ["12.3%", "–"]


def test_seconds_come_from_the_manifest(sets):
    one = compare.read_set(sets["plain"], "plain")
    one.artifact.summary["seconds"] = {"embed": 1.5, "quantize": 2.0}
    assert compare.comparison_rows([one, one], comparable=True)[-1].values == [3.5, 3.5]
    del one.artifact.summary["seconds"]
    assert compare.comparison_rows([one, one], comparable=True)[-1].title != "build seconds"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["out/a/sids", "out/b/sids"], ["a", "b"]),
        (["out/a", "out/b", "/elsewhere/c"], None),
        (["out/a", "out/a/b"], None),
        (["x/a/1", "x/b/1", "x/b/2"], ["a/1", "b/1", "b/2"]),
    ],
)
def test_names_are_what_differs(paths, names):
    found = short_names(paths)
    assert len(set(found)) == len(paths) and all(found)
    assert names is None or found == names


@pytest.mark.parametrize("given", [["a"], ["a", "a"], ["a", "b", "./a"]])
def test_one_set_is_no_comparison(given):
    with pytest.raises(InputError, match="sid_dirs: .*; give two or more different directories"):
        compare.main(["--sid_dirs", *given])


def test_what_is_no_report_is_named(sets, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(sets["plain"], old)
    (old / "report.json").write_text('{"summary": {}}')
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["files"]["report.json"]["bytes"] = (old / "report.json").stat().st_size
    (old / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="sid_dirs: .*old has a report of an older sidereal; build it again"):
        compare.main(["--sid_dirs", sets["plain"], str(old)])
    with pytest.raises(InputError, match="no such directory; expected a 'sids' artefact"):
        compare.main(["--sid_dirs", sets["plain"], str(tmp_path / "absent")])
    with pytest.raises(InputError, match="output_dir: .* is not an artefact of sidereal"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("keep")
        run(sets, ["plain", "repaired"], tmp_path, "--overwrite", "true")
