"""The RecBole source: typed atomic files, histories with targets; bad lines are named by file and line."""

import json

import numpy as np
import pytest

from sid_builder.errors import InputError
from sid_builder.sources.recbole import RecBoleArgs, load

INTER = """user_id:token\titem_id:token\trating:float\ttimestamp:float\tweight:float\treview:token_seq
u1\ta\t5\t30\t0.5\t"fine quite
u1\tb\t3\t10.0\t1\t
u2\tb\t4\t20\t\tno
u1\tc\t5\t40\t2\tyes
u2\ta\t1\t50\t3\t
u1\ta\t2\t60\t4\tagain
"""
ITEM = """item_id:token\tmovie_title:token_seq\tgenre:token_seq\tprice:float\tyear:token
a\t"Weird Al: The 6" Story\tComedy Music\t9.5\t1999
b\tToy Story\tComedy\t\t1995
c\tHeat\t\t3\t
d\tUnseen\tDrama\t1\t2001
"""
HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
ROWS = {"train": "u1\ta\tb\nu1\ta b\tc\n", "valid": "u1\ta b c\ta\n", "test": "u2\tc\tb\n"}
RENAMED = {"title": "movie_title", "categories": "genre"}


def write(directory, inter=INTER, item=ITEM, name="shop"):
    for suffix, text in (("inter", inter), ("item", item)):
        if text is not None:
            (directory / f"{name}.{suffix}").write_text(text, encoding="utf-8")
    return directory


def write_sequences(directory, rows=ROWS, header=HEADER, item=ITEM):
    for split, text in rows.items():
        (directory / f"shop.{split}.inter").write_text(header + text, encoding="utf-8")
    return write(directory, inter=None, item=item)


def read(directory, **args):
    return load(RecBoleArgs(path=str(directory), **args))


def test_interactions_and_items_are_read(tmp_path):
    data = read(write(tmp_path), item_columns=RENAMED)
    assert data.catalog.item_ids == ["a", "b", "c"]
    assert data.catalog.titles == ['"Weird Al: The 6" Story', "Toy Story", "Heat"]
    rows = data.catalog.table.to_pylist()
    assert [row["categories"] for row in rows] == [["Comedy", "Music"], ["Comedy"], []]
    assert [row["price"] for row in rows] == [9.5, None, 3] and [row["year"] for row in rows][:2] == [
        "1999",
        "1995",
    ]
    interactions = data.interactions
    assert interactions.users.to_pylist() == ["u1", "u2"]
    assert interactions.items_I.tolist() == [1, 0, 2, 0, 1, 0]
    assert interactions.timestamps_I.tolist() == [10, 30, 40, 60, 20, 50]
    assert interactions.features_I["rating"].tolist() == [3, 5, 5, 2, 4, 1]
    np.testing.assert_array_equal(interactions.features_I["weight"], np.float32([1, 0.5, 2, 4, np.nan, 3]))
    assert interactions.histories("test").targets_C.tolist() == [0]
    assert data.notes["columns_not_read"] == ["review:token_seq"] and data.notes["category"] == "shop"
    assert data.notes["items_without_interactions"] == 1 and data.notes["rows_dropped"] == 0


def test_options_of_event_logs_apply(tmp_path):
    write(tmp_path)
    cored = read(tmp_path, item_core=2, repeats="first", split="global_temporal", split_shares=[1, 1, 1])
    assert cored.catalog.item_ids == ["a", "b"] and cored.interactions.num_interactions == 4
    assert cored.notes["split"] == "global-temporal 1:1:1"
    assert read(tmp_path, items_without_interactions="keep").catalog.num_items == 4


def test_fields_may_be_called_otherwise_and_items_may_be_absent(tmp_path):
    inter = "uid:token\tmovie:token\tt:float\nu\tx\t2000\nu\ty\t1000\nu\tz\t3000\n"
    columns = {"user": "uid", "item": "movie", "timestamp": "t"}
    data = read(write(tmp_path, inter=inter, item=None), columns=columns, timestamp_unit="milliseconds")
    assert data.catalog.item_ids == ["x", "y", "z"] and data.notes["items_without_title"] == 3
    assert data.interactions.items_I.tolist() == [1, 0, 2]
    assert data.interactions.timestamps_I.tolist() == [1, 2, 3]


def test_histories_with_targets_are_read(tmp_path):
    data = read(write_sequences(tmp_path), item_columns=RENAMED)
    interactions = data.interactions
    assert data.catalog.item_ids == ["a", "b", "c", "d"]
    assert interactions.histories("train").targets_C.tolist() == [1, 2]
    assert interactions.histories("valid").history(0).tolist() == [0, 1, 2]
    assert interactions.histories("test").targets_C.tolist() == [1]
    assert interactions.train_counts(4).tolist() == [0, 1, 1, 0]
    assert interactions.users.to_pylist() == ["u1", "u1", "u1", "u2"]


def test_histories_of_minionerec_use_its_item_files(tmp_path):
    rows = {"train": "7\t0 1\t2\n", "valid": "7\t1\t0\n", "test": "7\t2\t0\n"}
    write_sequences(tmp_path, rows=rows, item=None)
    (tmp_path / "shop.item.json").write_text(json.dumps({str(i): {"title": f"T{i}"} for i in range(3)}))
    (tmp_path / "shop.item2id").write_text("X0\t0\nX1\t1\nX2\t2\n")
    (tmp_path / "shop.index.json").write_text(json.dumps({str(i): [f"<a_{i}>"] for i in range(3)}))
    data = read(tmp_path)
    assert data.catalog.item_ids == ["X0", "X1", "X2"] and data.catalog.titles[1] == "T1"
    assert data.interactions.histories("train").history(0).tolist() == [0, 1]
    assert data.semantic_ids.codes_NL.tolist() == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("inter", "args", "message"),
    [
        ("", {}, r"shop\.inter:1: header cell '' is not `field:type`"),
        (INTER.replace("rating:float", "rating:int"), {}, r"shop\.inter:1: header cell 'rating:int' is not"),
        (INTER.replace("rating:float", "rating"), {}, r"shop\.inter:1: header cell 'rating' is not"),
        (INTER.replace("weight:float", "rating:float"), {}, r"shop\.inter:1: field 'rating' is there twice"),
        (INTER.replace("item_id", "movie"), {}, r"shop\.inter:1: has no field 'item_id' \(item\), but"),
        (
            INTER.replace("item_id:token", "item_id:float"),
            {},
            r"'item_id' \(item\) is a float; expected token",
        ),
        (
            INTER.replace("timestamp:float", "timestamp:token"),
            {},
            r"\(timestamp\) is a token; expected float",
        ),
        (INTER, {"columns": {"timestamp": "when"}}, r"has no field 'when' \(timestamp\), but"),
        (INTER, {"columns": {"users": "u"}}, r"columns\.users: unknown key; did you mean 'user'"),
        (INTER, {"item_columns": {"titel": "t"}}, r"item_columns\.titel: unknown key; did you mean 'title'"),
        (INTER, {"item_columns": {"title": "name"}}, r"shop\.item:1: has no field 'name' \(title\), but"),
        (INTER, {"sequence_separator": ""}, "sequence_separator: is empty"),
        (
            INTER.replace("u2\tb\t4", "u2\tb\tfour"),
            {},
            r"shop\.inter:4: .*\(rating\) is 'four'; expected a number",
        ),
        (INTER.replace("u2\tb\t4", "u2\t\t4"), {}, r"shop\.inter:4: .*\(item\) is None; give every row one"),
        (INTER.replace("u2\tb\t4\t20\t\tno", "u2\tb\t4"), {}, r"shop\.inter:4: has 3 cells, the header 6"),
        (
            INTER + "u3\tq\t1\t1\t1\t\n",
            {"items_without_metadata": "error"},
            "item 'q' is not in the items file",
        ),
        (INTER, {"since": "2020-01-01"}, "interactions: none are left"),
        (INTER, {"form": "sequences"}, r"cannot read .*shop\.train\.inter"),
    ],
)
def test_malformed_interactions_are_named(tmp_path, inter, args, message):
    write(tmp_path, inter=inter)
    with pytest.raises(InputError, match=message):
        read(tmp_path, **args)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (ITEM.replace("price:float", "price:number"), r"shop\.item:1: header cell 'price:number' is not"),
        (ITEM.replace("item_id:token", "id:token"), r"shop\.item:1: has no field 'item_id'"),
        (ITEM.replace("b\tToy Story", "b\tToy\tStory"), r"shop\.item:3: has 6 cells, the header 5"),
        (ITEM.replace("9.5", "dear"), r"shop\.item:2: price is 'dear'; expected a number"),
        (ITEM + "a\tAgain\t\t\t\n", r"shop\.item:6: item_id 'a' is a duplicate of shop\.item:2"),
    ],
)
def test_malformed_items_are_named(tmp_path, item, message):
    write(tmp_path, item=item)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u1\ta z\tb", r"shop\.valid\.inter:2: item 'z' is not in shop\.item"),
        ("u1\t\tb", r"shop\.valid\.inter:2: history is empty"),
        ("\ta\tb", r"shop\.valid\.inter:2: user is empty"),
        ("u1\ta", r"shop\.valid\.inter:2: has 2 cells, the header 3"),
    ],
)
def test_malformed_histories_are_named_or_counted(tmp_path, line, message):
    write_sequences(tmp_path, rows=ROWS | {"valid": f"{line}\nu1\ta\tb\n"})
    with pytest.raises(InputError, match=message):
        read(tmp_path)
    skipped = read(tmp_path, bad_lines="skip")
    assert skipped.notes["rows_dropped"] == 1 and skipped.notes["valid_cases"] == 1


def test_what_cannot_be_meant_is_named(tmp_path):
    with pytest.raises(InputError, match="no category; give the directory that holds NAME"):
        read(tmp_path)
    write_sequences(tmp_path)
    with pytest.raises(InputError, match="user_core: has no effect on rows that are split already"):
        read(tmp_path, user_core=5)
    (tmp_path / "shop.item").unlink()
    with pytest.raises(InputError, match=r"has neither shop\.item nor shop\.item\.json"):
        read(tmp_path)
    write(tmp_path)
    with pytest.raises(InputError, match="form: .* has both shop.inter and shop.train.inter"):
        read(tmp_path)
    assert read(tmp_path, form="interactions").interactions.num_interactions == 6
    with pytest.raises(InputError, match=r"shop\.train\.inter:1: has no field 'item_id_list'"):
        write_sequences(tmp_path, header=HEADER.replace("item_id_list", "history"))
        read(tmp_path, form="sequences")
    write(tmp_path, name="other")
    with pytest.raises(InputError, match=r"\['other', 'shop'\]; set source_args\.category"):
        read(tmp_path)
