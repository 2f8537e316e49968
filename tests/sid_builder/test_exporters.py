"""Exporters: the source of the same name reads the same back, and what it cannot is said."""

import ast
import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sid_builder import EXPORTERS, SOURCES, build, cli, export
from sid_builder.artifact import open_artifact, writing
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import SPLITS, Interactions
from sid_builder.registry import options_class, resolve
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex
from sid_builder.sources import SourceData, toy

DATA = Path(__file__).parents[3] / "shared" / "data"
# Titles that break naive writers: both quotes, commas, brackets, backslashes, other scripts, an empty one.
ROWS = [
    {"item_id": "red", "title": '6" x 5\' "red", [new]', "description": "[New in box]", "price": 9.5},
    {
        "item_id": "7",
        "title": "C:\\temp \u2014 \u8336\u58fa \U0001f375",
        "description": "['a', 'b']",
        "brand": "B",
    },
    {
        "item_id": "x y",
        "title": "",
        "categories": ["Arts, Crafts & Sewing", "Beading"],
        "description": "plain",
    },
    {
        "item_id": "0",
        "title": "None",
        "categories": ["A,B"],
        "asin": "A1",
        "description": "['It's', 'broken']",
    },
]
CODES = [[3, 0, 1], [3, 0, 2], [5, 1, -1], [5, 2, -1]]
SEQUENCES = {"u1": [0, 1, 2, 3, 1], "u 2": [2, 1, 0], "short": [3, 0], "single": [2]}


def small_index(rows=ROWS, codes=CODES) -> SidIndex:
    catalog = Catalog.from_stream(((f"row {i}", row) for i, row in enumerate(rows)), further=["asin"])
    codes_NL = np.array(codes, dtype=np.int32)
    sizes = tuple(1 << int(code).bit_length() for code in codes_NL.max(axis=0))
    return SidIndex(catalog, SemanticIds(codes_NL, sizes), np.zeros(len(rows), dtype=np.int64))


def small_interactions(sequences=SEQUENCES) -> Interactions:
    return Interactions.leave_one_out(list(sequences), [np.array(items) for items in sequences.values()])


def write_sids(directory: Path, index: SidIndex, interactions: Interactions, **notes) -> Path:
    """What the build command leaves, as far as exporters look at it."""
    with writing(directory, "sids", overwrite=True) as artifact:
        index.save(artifact.path / "sid_index")
        (artifact.path / "interactions").mkdir()
        interactions.save(artifact.path / "interactions")
        artifact.summary.update(source={"name": "small"} | notes)
    return directory


@pytest.fixture
def sids(tmp_path):
    return write_sids(tmp_path / "sids", small_index(), small_interactions())


def run(sids: Path, layout: str, *more: str) -> tuple[export.Exported, Path]:
    out = sids.parent / f"{sids.name}_{layout}"
    given = ["--sid_dir", str(sids), "--format", layout, "--output_dir", str(out), "--overwrite", "true"]
    return export.main([*given, *more]), out


def load(source: str, path: Path, **more) -> SourceData:
    function = resolve(SOURCES, source, "source")
    return function(cli.build_dataclass(options_class(function), {"path": str(path)} | more, "source_args"))


def cases(interactions: Interactions, longest: int | None = None) -> dict[str, list]:
    users = interactions.users.to_pylist()
    return {
        split: [
            (users[histories.sequence_C[case]], histories.history(case, longest).tolist(), target)
            for case, target in enumerate(histories.targets_C.tolist())
        ]
        for split in SPLITS
        for histories in [interactions.histories(split)]
    }


def check_round_trip(index: SidIndex, interactions: Interactions, back: SourceData, longest: int | None):
    assert back.catalog.table.equals(index.catalog.table)
    np.testing.assert_array_equal(back.semantic_ids.codes_NL, index.semantic_ids.codes_NL)
    assert back.semantic_ids.level_sizes == index.semantic_ids.level_sizes
    assert cases(back.interactions) == cases(interactions, longest)


@pytest.mark.parametrize("layout", sorted(EXPORTERS))
def test_round_trip(sids, layout):
    exported, out = run(sids, layout)
    longest = 10 if layout == "minionerec" else None
    back = load(layout, out)
    check_round_trip(small_index(), small_interactions(), back, longest)
    assert back.catalog.row(3)["asin"] == "A1" and back.catalog.row(0)["price"] == 9.5
    assert open_artifact(out, "export").summary == dataclasses.asdict(exported)
    open_artifact(out, "export").verify_hashes()


@pytest.mark.parametrize("layout", sorted(EXPORTERS))
def test_round_trip_of_the_toy_shop(tmp_path, layout):
    data = toy.load(toy.ToyArgs(num_users=150))
    codes_NL = np.random.default_rng(0).integers(0, 16, (data.catalog.num_items, 3)).astype(np.int32)
    codes_NL[0] = 15
    index = SidIndex(data.catalog, SemanticIds(codes_NL, (16, 16, 16)), np.zeros(512, dtype=np.int64))
    _, out = run(write_sids(tmp_path / "sids", index, data.interactions), layout, "--name", "Toys")
    longest = 10 if layout == "minionerec" else None
    check_round_trip(index, data.interactions, load(layout, out, category="Toys"), longest)
    if layout == "lcrec":
        counts = load(layout, out).interactions.train_counts(512)
        np.testing.assert_array_equal(counts, data.interactions.train_counts(512))


def test_minionerec_files_are_what_its_code_evaluates(sids):
    _, out = run(sids, "minionerec", "--max_history", "2")
    titles = [row["title"] for row in ROWS]
    with open(out / "train" / "small.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == [
        "user_id",
        "history_item_title",
        "item_title",
        "history_item_id",
        "item_id",
        "history_item_sid",
        "item_sid",
    ]
    assert rows[1]["history_item_title"] == repr(titles[:2]) and rows[1]["item_title"] == titles[2]
    assert ast.literal_eval(rows[1]["history_item_title"]) == titles[:2]
    assert rows[1]["history_item_id"] == "[0, 1]" and rows[1]["item_id"] == "2"
    assert rows[1]["history_item_sid"] == "['<a_3><b_0><c_1>', '<a_3><b_0><c_2>']"
    assert rows[1]["item_sid"] == "<a_5><b_1>"
    info = (out / "info" / "small.txt").read_text(encoding="utf-8").split("\n")
    assert info[1] == f"<a_3><b_0><c_2>\t{titles[1]}\t1"
    back = load("minionerec", out)
    assert cases(back.interactions) == cases(small_interactions(), 2)
    # A description in brackets is a list to MiniOneRec's code: it must evaluate to the text.
    items = json.loads((out / "index" / "small.item.json").read_text())
    assert [ast.literal_eval(items[key]["description"]) for key in "013"] == [
        [row["description"]] for row in (ROWS[0], ROWS[1], ROWS[3])
    ]
    assert items["2"]["description"] == "plain"


def test_titles_with_line_breaks_become_one_line_everywhere(tmp_path):
    index = small_index()
    column = index.catalog.table.schema.get_field_index("title")
    titles = ["two\nlines\tand\r\na tab", *index.catalog.titles[1:]]
    table = index.catalog.table.set_column(column, "title", pa.array(titles))
    broken = dataclasses.replace(index, catalog=Catalog(table))
    exported, out = run(write_sids(tmp_path / "sids", broken, small_interactions()), "minionerec")
    assert load("minionerec", out).catalog.titles[0] == "two lines and a tab"
    with open(out / "valid" / "small.csv", encoding="utf-8", newline="") as handle:
        assert (
            ast.literal_eval(next(csv.DictReader(handle))["history_item_title"])[0] == "two lines and a tab"
        )
    assert any(remark.startswith("1 texts had line breaks") for remark in exported.remarks)


@pytest.mark.parametrize("layout", sorted(EXPORTERS))
def test_build_export_load_and_build_again(tmp_path, layout):
    """What the commands leave between them, twice over: the second export is the first, byte for byte."""
    _, first = run(write_sids(tmp_path / "sids", small_index(), small_interactions()), layout)
    config = ["--source", layout, "--quantizer", "given", "--output_dir", str(tmp_path / "again")]
    build.main([*config, "--data_path", str(first)])
    _, second = run(tmp_path / "again", layout)
    files = {path.relative_to(first) for path in first.rglob("*.*")} - {Path("manifest.json")}
    assert files == {path.relative_to(second) for path in second.rglob("*.*")} - {Path("manifest.json")}
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


@pytest.mark.parametrize("layout", sorted(EXPORTERS))
def test_keys_that_are_numbers_stay(tmp_path, layout):
    rows = [row | {"item_id": key} for row, key in zip(ROWS, "2031", strict=True)]
    sequences = {"1": [0, 1, 2], "0": [2, 1, 0]}
    index, interactions = small_index(rows), small_interactions(sequences)
    exported, out = run(write_sids(tmp_path / "sids", index, interactions), layout)
    check_round_trip(index, interactions, load(layout, out), None)
    assert not any("keys are numbered" in remark for remark in exported.remarks)
    if layout == "lcrec":
        assert json.loads((out / "small.inter.json").read_text()) == {"1": [2, 0, 3], "0": [3, 0, 2]}
    else:
        assert not (out / "index" / "small.item2id").exists()


def test_minionerec_says_what_it_leaves_out(tmp_path):
    index = small_index()
    ids = SemanticIds(index.semantic_ids.codes_NL, (8, 4, 256), "[{letter}{code}]")
    table = index.catalog.table.append_column("colours", pa.array([["red"], [], [], []]))
    table = table.append_column("stock", pa.array([1, 2, 3, 4]))
    index = dataclasses.replace(index, semantic_ids=ids, catalog=Catalog(table))
    interactions = small_interactions({"u": [0, 1, 2, -1], "v": [0, 1, -1], "single": [1]})
    interactions = dataclasses.replace(
        interactions, timestamps_I=np.arange(8), features_I={"rating": np.ones(8, np.float32)}
    )
    sids = write_sids(tmp_path / "sids", index, interactions, user_texts={"users_with_preferences": 1})
    exported, out = run(sids, "minionerec", "--max_history", "1")
    assert exported.figures == {"items": 4, "train_rows": 1, "valid_rows": 2, "test_rows": 0}
    said = " | ".join(exported.remarks)
    for remark in (
        "2 cases are left out: their target is not in the catalogue",
        "1 histories are cut to their newest 1 items",
        "1 sequences ask for nothing",
        "item keys are numbered 0..3; index/small.item2id has them",
        "timestamps are not in the layout",
        "features of interactions are not in the layout: ['rating']",
        "texts about users are not in a SID directory",
        "catalogue columns of lists are not in the layout: ['colours']",
        "catalogue columns that come back as text: ['stock']",
        "read it with codes_per_level: [8, 4, 256]",
        "tokens are spelled <{letter}_{code}>, not [{letter}{code}]",
    ):
        assert remark in said
    back = load("minionerec", out, codes_per_level=[8, 4, 256])
    assert back.semantic_ids.level_sizes == (8, 4, 256) and back.semantic_ids.spell(2) == "<a_5><b_1>"
    assert back.catalog.row(3)["stock"] == "4"


def test_lcrec_says_what_its_own_code_makes_of_short_and_repeated(sids):
    exported, out = run(sids, "lcrec")
    said = " | ".join(exported.remarks)
    assert "2 sequences are shorter than 3" in said and "some users have an item twice" in said
    assert exported.figures == {"items": 4, "users": 4, "interactions": 11}
    assert (out / "small.user2id").read_text() == "u1\t0\nu 2\t1\nshort\t2\nsingle\t3\n"


def test_lcrec_refuses_what_it_cannot_say(tmp_path):
    whole = small_interactions()
    spread = dataclasses.replace(whole, valid_lo_S=whole.valid_lo_S - (np.arange(4) == 0))
    twice = dataclasses.replace(whole, users=pa.array(["a", "b", "a", "c"]))
    for interactions, message in (
        (spread, "format: 'lcrec' can only say leave-one-out"),
        (twice, "one sequence a user, and user 'a' has more; use --format minionerec"),
        (small_interactions({"u": [0, 1, -1]}), "cannot say that a target is not in the catalogue"),
        (small_interactions({"a\tb": [0, 1, 2]}), r"user: key 'a\\tb' has a tab or line break"),
    ):
        path = write_sids(tmp_path / "sids", small_index(), interactions)
        with pytest.raises(InputError, match=message):
            run(path, "lcrec")
        assert not (tmp_path / "sids_lcrec").exists()


@pytest.mark.parametrize(
    ("layout", "more", "message"),
    [
        ("csv", (), r"format: 'csv' is not known; use one of \['lcrec', 'minionerec'\]"),
        ("lcrec", ("--max_history", "5"), "max_history: 5 has no effect on format 'lcrec'"),
        ("minionerec", ("--max_history", "0"), "max_history: 0; give at least 1"),
        ("minionerec", ("--name", "a/b"), "name: 'a/b'; file names begin with it"),
    ],
)
def test_bad_arguments(sids, layout, more, message):
    with pytest.raises(InputError, match=message):
        run(sids, layout, *more)
    assert {path.name for path in sids.parent.iterdir()} == {"sids"}


def test_a_crash_leaves_nothing_that_looks_complete(sids, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sid_builder.exporters.minionerec._write_cases", crash)
    with pytest.raises(KeyboardInterrupt):
        run(sids, "minionerec")
    assert {path.name for path in sids.parent.iterdir()} == {"sids"}


def test_another_directory_is_not_overwritten(sids):
    (sids.parent / "sids_lcrec").mkdir()
    (sids.parent / "sids_lcrec" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not an artefact of sidereal"):
        run(sids, "lcrec")


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
@pytest.mark.parametrize(
    ("source", "folder", "layout"),
    [
        ("minionerec", "minionerec_industrial", "minionerec"),
        ("lcrec", "lcrec_instruments", "lcrec"),
    ],
)
def test_round_trip_of_published_data(tmp_path, source, folder, layout):
    data = load(source, DATA / folder)
    counts_N = data.interactions.train_counts(data.catalog.num_items)
    index = SidIndex(data.catalog, data.semantic_ids, counts_N)
    _, out = run(write_sids(tmp_path / "sids", index, data.interactions), layout)
    check_round_trip(index, data.interactions, load(layout, out), 10 if layout == "minionerec" else None)
