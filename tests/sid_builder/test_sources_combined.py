"""Several data sets under one codebook: what is joined, what is left out, and one build over two of them."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import yaml

from sid_builder import build, cli
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex
from sid_builder.sources import SourceData
from sid_builder.sources.combined import CombinedArgs, load

BOOKS = [
    {"item_id": "b1", "title": "Red book", "pages": 120},
    {"item_id": "b2", "title": "Blue book", "price": 3},
    {"item_id": "b3", "title": "Green atlas", "categories": ["Maps"]},
]
TOYS = [{"item_id": "t1", "title": "Red car"}, {"item_id": "t2", "title": "Blue boat", "age": "3+"}]
BOOK_USERS = [{"user": "ann", "items": ["b1", "b2", "b3", "b1"], "timestamps": [1, 2, 3, 4]}]
TOY_USERS = [
    {"user": "bob", "items": ["t2", "t1", "t2"], "timestamps": [5, 5, 6]},
    {"user": "cid", "items": ["t1", "t2"], "timestamps": [1, 9]},
]


@dataclass(frozen=True)
class NoOptions:
    """Options of the source below."""


def load_with_unknown_target(args: NoOptions) -> SourceData:
    interactions = Interactions.leave_one_out(["u"], [np.array([0, 1, -1])])
    return SourceData(Catalog.from_rows(TOYS), interactions)


def write(directory, items, sequences):
    directory.mkdir()
    for name, rows in (("items", items), ("sequences", sequences)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": "jsonl", "path": str(directory)}


def read(**parts):
    return load(cli.build_dataclass(CombinedArgs, {"parts": parts}, "source_args"))


@pytest.fixture
def parts(tmp_path):
    return {
        "books": write(tmp_path / "books", BOOKS, BOOK_USERS),
        "toys": write(tmp_path / "toys", TOYS, TOY_USERS)
        | {"args": {"split": "global_temporal", "split_shares": [1, 1, 1]}},
    }


def test_parts_are_joined_with_their_own_splits(parts):
    data = read(**parts)
    assert data.catalog.item_ids == ["b1", "b2", "b3", "t1", "t2"]
    rows = data.catalog.table.to_pylist()
    assert [row["domain"] for row in rows] == ["books"] * 3 + ["toys"] * 2
    assert [row["pages"] for row in rows] == ["120", None, None, None, None]
    assert [row["age"] for row in rows] == [None, None, None, None, "3+"]
    assert rows[1]["price"] == 3 and rows[2]["categories"] == ["Maps"]
    interactions = data.interactions
    assert interactions.users.to_pylist() == ["ann", "bob", "cid"]
    assert interactions.items_I.tolist() == [0, 1, 2, 0, 4, 3, 4, 3, 4]
    assert interactions.timestamps_I.tolist() == [1, 2, 3, 4, 5, 5, 6, 1, 9]
    asked = {
        split: list(zip(cases.sequence_C.tolist(), cases.position_C.tolist(), strict=True))
        for split in ("train", "valid", "test")
        for cases in [interactions.histories(split)]
    }
    # books: leave-one-out; toys: three windows by time of target (5, 6, 9), one for each split
    assert asked == {"train": [(0, 1), (1, 1)], "valid": [(0, 2), (1, 2)], "test": [(0, 3), (2, 1)]}
    notes = data.notes
    assert notes["num_items"] == 5 and not notes["item_ids_prefixed"] and not notes["users_prefixed"]
    assert notes["domains"]["toys"]["split"] == "global-temporal 1:1:1" and notes["left_out"] == {}
    assert set(data.files) == {"books/items", "books/sequences", "toys/items", "toys/sequences"}


def test_keys_that_clash_get_their_domain_in_front(tmp_path):
    numbered = [[{"item_id": i, "title": f"{name} {i}"} for i in range(2)] for name in ("book", "toy")]
    users = [{"user": "u", "items": [0, 1, 0]}]
    data = read(
        books=write(tmp_path / "books", numbered[0], users), toys=write(tmp_path / "toys", numbered[1], users)
    )
    assert data.catalog.item_ids == ["books/0", "books/1", "toys/0", "toys/1"]
    assert data.interactions.users.to_pylist() == ["books/u", "toys/u"]
    assert data.notes["item_ids_prefixed"] and data.notes["users_prefixed"]
    assert data.interactions.items_I.tolist() == [0, 1, 0, 2, 3, 2]


def test_what_only_some_parts_have_is_left_out_and_noted(tmp_path):
    rated = [BOOK_USERS[0] | {"ratings": [1, 2, 3, 4], "prices": [1, 1, 1, 1]}]
    plain = [{"user": "bob", "items": ["t1", "t2"], "ratings": [5, 4]}]
    data = read(books=write(tmp_path / "books", BOOKS, rated), toys=write(tmp_path / "toys", TOYS, plain))
    assert data.interactions.timestamps_I is None and data.semantic_ids is None
    assert list(data.interactions.features_I) == ["rating"]
    np.testing.assert_array_equal(data.interactions.features_I["rating"], np.float32([1, 2, 3, 4, 5, 4]))
    assert data.notes["left_out"] == {"feature price": ["books"], "timestamps": ["books"]}


def test_sids_of_parts_are_left_out_and_unknown_targets_stay_unknown(tmp_path):
    (tmp_path / "Toys.inter.json").write_text('{"0": [0, 1, 0]}')
    (tmp_path / "Toys.index.json").write_text('{"0": ["<a_1>"], "1": ["<a_2>"]}')
    books = write(tmp_path / "books", BOOKS, BOOK_USERS)
    data = read(books=books, toys={"source": "lcrec", "path": str(tmp_path)})
    assert data.semantic_ids is None and data.notes["left_out"]["semantic_ids"] == ["toys"]
    assert data.interactions.items_I.tolist() == [0, 1, 2, 0, 3, 4, 3]
    unknown = read(books=books, other={"source": f"{__name__}:load_with_unknown_target"})
    assert unknown.interactions.items_I.tolist()[-3:] == [3, 4, -1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"toys": None}, r"source_args\.parts: \['books'\]; give at least two"),
        ({"a/b": {"source": "toy"}}, "domain 'a/b'; give it a name without a slash"),
        ({"more": {"source": "shop"}}, r"source_args\.parts\.more\.source: 'shop' is not known"),
        ({"more": {"source": "jsonl", "path": "nowhere"}}, r"parts\.more\.path: nowhere does not exist"),
        ({"more": {"source": "jsonl"}}, r"source_args\.parts\.more\.args\.path: is missing"),
        ({"more": {"source": "toy", "args": {"sed": 1}}}, r"parts\.more\.args\.sed: unknown key; did you"),
        (
            {"more": {"sourcs": "toy"}},
            r"source_args\.parts\.more\.sourcs: unknown key; did you mean 'source'",
        ),
    ],
)
def test_bad_parts_are_named_before_anything_is_read(parts, change, message):
    changed = {name: part for name, part in (parts | change).items() if part is not None}
    with pytest.raises(InputError, match=message):
        read(**changed)


def test_an_error_inside_a_part_names_it(parts, tmp_path):
    (tmp_path / "toys" / "sequences.jsonl").write_text('{"user": "u", "items": ["t9"]}\n')
    with pytest.raises(InputError, match=r"part 'toys': sequences\.jsonl:1: item 't9' is not in the items"):
        read(**parts)


def test_one_codebook_over_two_shops(tmp_path):
    small = {"num_users": 40, "items_per_category": 4, "max_length": 4, "min_length": 4}
    config = {
        "source": "combined",
        "source_args": {
            "parts": {
                "north": {"source": "toy", "args": small},
                "south": {"source": "toy", "args": small | {"seed": 9}},
            }
        },
        "embedder": "tfidf_svd",
        "embedder_args": {"dim": 16},
        "quantizer_args": {"levels": 3, "codes_per_level": 16},
        "repair": "last_level_assign",
        "thresholds": {"max_collision_rate": 0.0},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "sids"
    index = build.main(["--config", str(tmp_path / "config.yaml"), "--output_dir", str(out)])
    domains = index.catalog.table.column("domain").to_pylist()
    assert domains == ["north"] * 64 + ["south"] * 64 and index.catalog.item_ids[64] == "south/P0000"
    assert index.semantic_ids.num_distinct == 128
    first_codes = [set(index.semantic_ids.codes_NL[rows, 0]) for rows in (slice(64), slice(64, None))]
    assert first_codes[0] & first_codes[1]  # one codebook: both shops use the same first codes
    loaded = SidIndex.load(out / "sid_index")
    assert loaded.catalog.row(64)["domain"] == "south"
    assert Interactions.load(out / "interactions").num_sequences == 80
