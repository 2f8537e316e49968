"""Tables of interactions and items: CSV and Parquet say the same; columns, types and rows that are wrong."""

import datetime
import gzip

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from sid_builder import SOURCES, cli
from sid_builder.errors import InputError
from sid_builder.registry import options_class, resolve

COLUMNS = {"user": "customer", "item": "sku", "timestamp": "ts", "rating": "stars", "price": "amount"}
ROWS = [
    ("u1", "7", 1400000300, 5.0, 1.5),
    ("u2", "x y", 1400000000, 3.0, None),
    ("u1", "x y", 1400000100, None, 2.5),
    ("u1", "b", 1400000200, 1.0, 3.5),
    ("u2", "7", 1400000900, 2.0, 4.5),
]
ITEMS = [
    {"key": "b", "name": 'Big, blue\n"tent"', "kinds": "Camping | Tents", "cost": "12.5", "colour": "blue"},
    {"key": "7", "name": "Boots", "kinds": "", "cost": "", "colour": ""},
    {"key": "x y", "name": "", "kinds": "Gear", "cost": "3", "colour": "red"},
]
ITEM_COLUMNS = {"item_id": "key", "title": "name", "categories": "kinds", "price": "cost"}
TRUNCATED = gzip.compress(b"user,item\n" + b"".join(b"u%d,i\n" % (n * n) for n in range(9999)))[:-3000]
ITEM_ARGS = {"items_file": "items.csv", "item_columns": ITEM_COLUMNS}


def load(path, **args):
    function = resolve(SOURCES, "table", "source")
    return function(cli.build_dataclass(options_class(function), {"path": str(path)} | args, "source_args"))


def table_of(rows=ROWS, **changed) -> pa.Table:
    columns = dict(zip(COLUMNS.values(), map(list, zip(*rows, strict=True)), strict=True))
    return pa.table(columns | {"note": ['said "hi",\nleft'] * len(rows)} | changed)


def write(directory, ending, rows=ROWS, **changed):
    """An interactions file; in text formats its last column holds quotes, commas and line ends."""
    path = directory / f"orders{ending}"
    if ending == ".parquet":
        pq.write_table(table_of(rows, **changed), path, row_group_size=2)
        return path
    options = pa.csv.WriteOptions(delimiter="\t" if ".tsv" in ending else ",")
    pa.csv.write_csv(table_of(rows, **changed), path, options)
    if ending.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def write_items(directory):
    pa.csv.write_csv(pa.Table.from_pylist(ITEMS), directory / "items.csv")
    rows = [
        item
        | {
            "kinds": [part.strip() for part in item["kinds"].split("|") if part],
            "cost": float(item["cost"] or "nan"),
        }
        for item in ITEMS
    ]
    rows = [
        row | {"cost": None if np.isnan(row["cost"]) else row["cost"], "sizes": {"eu": 1}} for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(rows), directory / "items.parquet")


@pytest.mark.parametrize("items_file", ["items.csv", "items.parquet"])
@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet"])
def test_every_format_says_the_same(tmp_path, ending, items_file):
    write_items(tmp_path)
    args = ITEM_ARGS | {"items_file": items_file, "columns": COLUMNS}
    data = load(write(tmp_path, ending), **args)
    assert data.catalog.item_ids == ["b", "7", "x y"]
    assert data.catalog.titles == ['Big, blue "tent"', "Boots", ""]
    assert data.catalog.table.column("categories").to_pylist() == [["Camping", "Tents"], [], ["Gear"]]
    assert data.catalog.table.column("price").to_pylist() == [12.5, None, 3.0]
    assert data.catalog.table.column("colour").to_pylist() == ["blue", None, "red"]
    interactions = data.interactions
    assert interactions.users.to_pylist() == ["u1", "u2"] and interactions.items_I.tolist() == [2, 0, 1, 2, 1]
    assert interactions.timestamps_I.tolist() == [1400000000 + s for s in (100, 200, 300, 0, 900)]
    np.testing.assert_array_equal(interactions.features_I["rating"], np.float32([np.nan, 1, 5, 3, 2]))
    np.testing.assert_array_equal(interactions.features_I["price"], np.float32([2.5, 3.5, 1.5, np.nan, 4.5]))
    assert data.notes["columns_not_read"] == ["note"] and data.notes["rows_read"] == 5
    assert data.notes["item_columns_not_kept"] == (["sizes"] if items_file.endswith("parquet") else [])
    assert set(data.files) == {"interactions", "items"}


def test_names_of_ours_need_no_mapping(tmp_path):
    path = tmp_path / "orders.csv"
    path.write_text("\ufeffuser,item,rating\nu,a,1\n\nu,b,2\nv,a,3\n", encoding="utf-8")
    data = load(path)
    assert data.catalog.item_ids == ["a", "b"] and data.interactions.timestamps_I is None
    assert data.interactions.features_I["rating"].tolist() == [1, 2, 3]
    assert data.catalog.table.schema.names[0] == "item_id" and data.notes["items_without_title"] == 2


def test_types_of_parquet_columns(tmp_path):
    nanoseconds = pa.array([10**9 * row[2] + 1 for row in ROWS])
    changed = {
        "ts": nanoseconds.cast(pa.timestamp("ns", "Europe/Berlin")),
        "sku": pa.array([7, 8, 9, 7, 8], pa.int16()),
        "customer": pa.array(["u1", "u2", "u1", "u1", "u2"]).dictionary_encode(),
        "stars": pa.array([True, False, None, True, True]),
    }
    data = load(write(tmp_path, ".parquet", **changed), columns=COLUMNS, timestamp_unit="milliseconds")
    assert data.catalog.item_ids == ["7", "8", "9"]
    assert data.interactions.timestamps_I.tolist() == [1400000000 + s for s in (100, 200, 300, 0, 900)]
    np.testing.assert_array_equal(data.interactions.features_I["rating"], np.float32([np.nan, 1, 1, 0, 1]))
    dates = write(tmp_path, ".parquet", ts=pa.array([datetime.date(1970, 1, 2)] * 5))
    assert load(dates, columns=COLUMNS).interactions.timestamps_I.tolist() == [86400] * 5
    with pytest.raises(InputError, match="timestamp_unit: column 'ts' is int64, no iso text"):
        load(write(tmp_path, ".parquet"), columns=COLUMNS, timestamp_unit="iso")
    floats = write(tmp_path, ".parquet", sku=pa.array([7.0, 8.0, 9.0, 7.0, 8.0]))
    with pytest.raises(InputError, match="columns: 'sku' is double; ids are text or whole numbers"):
        load(floats, columns=COLUMNS)


@pytest.mark.parametrize(
    ("unit", "cells"),
    [
        ("seconds", ["1400000300", "1400000000.9", "1400000100", "1400000200", "1400000900"]),
        (
            "milliseconds",
            ["1400000300123", "1400000000999", "1400000100000", "1400000200000", "1400000900001"],
        ),
        ("iso", [f"2014-05-13T{t}" for t in ("16:58:20", "16:53:20.9", "16:55:00", "16:56:40", "17:08:20")]),
        ("iso", [f"2014-05-13 {t}Z" for t in ("16:58:20", "16:53:20", "16:55:00", "16:56:40", "17:08:20")]),
        (
            "iso",
            [
                "2014-05-13T18:58:20+02:00",
                "2014-05-13T16:53:20",
                *(f"2014-05-13T{t}Z" for t in ("16:55:00", "16:56:40", "17:08:20")),
            ],
        ),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_units_of_timestamps(tmp_path, ending, unit, cells):
    data = load(write(tmp_path, ending, ts=cells), columns=COLUMNS, timestamp_unit=unit)
    assert data.interactions.timestamps_I.tolist() == [1400000000 + s for s in (100, 200, 300, 0, 900)]


@pytest.mark.parametrize(
    ("given", "right", "factor"), [("seconds", "milliseconds", 1000), ("milliseconds", "seconds", 1)]
)
def test_a_wrong_unit_is_named(tmp_path, given, right, factor):
    path = write(tmp_path, ".csv", ts=[row[2] * factor for row in ROWS])
    with pytest.raises(InputError, match=rf"timestamp_unit: 14\d+ in column 'ts' .* set it to {right}"):
        load(path, columns=COLUMNS, timestamp_unit=given)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u1,7,1400000300,5", "has 4 cells, the header 6"),
        ("u1,7,1400000300,5,1,note,more", "has 7 cells, the header 6"),
        (",7,1400000300,5,1,n", r"column 'customer' \(user\) is None; give every row one"),
        ('u1,"",1400000300,5,1,n', r"column 'sku' \(item\) is None"),
        ("u1,7,,5,1,n", r"column 'ts' \(timestamp\) is None; expected seconds"),
        ("u1,7,soon,5,1,n", r"column 'ts' \(timestamp\) is 'soon'; expected seconds"),
        ("u1,7,1400000300,five,1,n", r"column 'stars' \(rating\) is 'five'; expected a number"),
        ("u1,7,1400000300,5,inf,n", r"column 'amount' \(price\) is 'inf'"),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_a_malformed_row_is_named_or_counted(tmp_path, line, message, ending):
    path = write(tmp_path, ".csv")
    # Records 1 and 2 take two lines each, and one line is blank: the third begins on line 7.
    lines = path.read_text().split("\n")
    text = "\n".join([*lines[:5], "", line, *lines[5:]]).encode()
    path = tmp_path / f"bad{ending}"
    path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    with pytest.raises(InputError, match=rf"^bad{ending}:7: {message}.*set bad_lines: skip"):
        load(path, columns=COLUMNS)
    data = load(path, columns=COLUMNS, bad_lines="skip")
    assert data.interactions.num_interactions == 5 and data.notes["rows_read"] == 6
    assert data.notes["rows_dropped_by"]["malformed_line"] == data.notes["rows_dropped"] == 1


def test_a_malformed_parquet_row_is_named(tmp_path):
    path = write(tmp_path, ".parquet", customer=["u1", "u2", "u1", None, "u2"])
    with pytest.raises(InputError, match=r"^orders\.parquet: row 4: column 'customer' \(user\) is None"):
        load(path, columns=COLUMNS)
    assert load(path, columns=COLUMNS, bad_lines="skip").interactions.num_interactions == 4


def test_rows_far_down_are_named_by_line(tmp_path):
    path = tmp_path / "orders.csv"
    lines = [f'u{n % 999},i{n % 77},{n},"a\nb"' for n in range(300_000)]
    lines[250_000] = 'u,i,x,"a\nb"'
    path.write_text("user,item,timestamp,note\n" + "\n".join(lines))
    with pytest.raises(InputError, match=r"^orders\.csv:500002: column 'timestamp' .* is 'x'"):
        load(path)
    assert load(path, bad_lines="skip").interactions.num_interactions == 299_999


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"columns": COLUMNS | {"user": "who"}},
            r"columns\.user: orders\.csv has no column 'who'; it has \['customer'",
        ),
        (
            {"columns": {"user": "customer"}},
            r"columns\.item: orders\.csv has no column 'item'; it has \['customer'",
        ),
        ({"columns": COLUMNS | {"weight": "kg"}}, r"columns\.weight: orders\.csv has no column 'kg'"),
        (
            {"columns": COLUMNS, "item_columns": ITEM_COLUMNS},
            "item_columns: has no effect without items_file",
        ),
        (
            {"columns": COLUMNS} | ITEM_ARGS | {"item_columns": {"titel": "name"}},
            r"item_columns\.titel: unknown key; did you mean 'title'",
        ),
        (
            {"columns": COLUMNS} | ITEM_ARGS | {"item_columns": {"title": "name"}},
            r"item_columns\.item_id: items\.csv has no column 'item_id'; it has \['key'",
        ),
        (
            {"columns": COLUMNS, "items_file": "nowhere.csv"},
            r"source_args\.items_file: cannot read .*nowhere\.csv",
        ),
        (
            {"columns": COLUMNS, "items_file": "nowhere.parquet"},
            r"source_args\.items_file: cannot read .*nowhere\.parquet",
        ),
        (
            {"columns": COLUMNS, "items_file": "items.xls"},
            r"source_args\.items_file: items\.xls ends in none of \.csv",
        ),
        ({"columns": COLUMNS, "category_separator": ""}, "category_separator: is empty"),
    ],
)
def test_unknown_columns_and_options_are_named(tmp_path, args, message):
    write_items(tmp_path)
    with pytest.raises(InputError, match=message):
        load(write(tmp_path, ".csv"), **args)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", r"a\.csv: is empty; it needs a header"),
        ("a.csv", b"user,item,user\n", r"a\.csv: has column 'user' twice"),
        ("a.csv", b"user,item\n", "interactions: there are none that can be used"),
        ("a.csv", b"user,item\nu,a\nu\xff,a\n", r"a\.csv:3: is not UTF-8"),
        ("a.csv.gz", TRUNCATED, r"a\.csv\.gz:\d\d\d+: the gz stream is broken"),
        ("a.parquet", b"user,item\nu,a\n", r"a\.parquet: is no Parquet file"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(tmp_path / name)


def test_malformed_items(tmp_path):
    path = write(tmp_path, ".csv")
    (tmp_path / "items.csv").write_text('key,name\nb,"Two\nlines"\n7\nx y,z\n')
    args = {
        "columns": COLUMNS,
        "items_file": "items.csv",
        "item_columns": {"item_id": "key", "title": "name"},
    }
    with pytest.raises(InputError, match=r"^items\.csv:4: has 1 cells, the header 2"):
        load(path, **args)
    data = load(path, **args, bad_lines="skip")
    assert (
        data.notes["malformed_item_lines"] == 1
        and data.notes["rows_dropped_by"]["item_without_metadata"] == 2
    )
    (tmp_path / "items.csv").write_text("key,name\nb,a\n7,c\nb,d\n")
    with pytest.raises(InputError, match=r"^items\.csv:4: item_id 'b' is a duplicate of items\.csv:2"):
        load(path, **args)


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = write(tmp_path, ".parquet", rows=[(f"u{n}", f"i{n * n}", n, 1.0, 2.0) for n in range(5000)])
    content = bytearray(path.read_bytes())
    content[200:2000] = b"\xff" * 1800
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"orders\.parquet: is damaged"):
        load(path, columns=COLUMNS)
