"""A table of interactions and, if there is one, a table of items: CSV or Parquet, with any names of columns.

    source: table
    data_path: data/orders.parquet
    source_args:
      columns: {user: customer_id, item: sku, timestamp: ts, rating: stars}
      items_file: products.csv
      item_columns: {item_id: sku, title: name}

Interactions are streamed into columns; of items, one row a time is in Python's hands.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sid_builder.catalog import SCHEMA, Catalog
from sid_builder.cli import unknown_key
from sid_builder.errors import InputError
from sid_builder.event_log import EventLog, LogBuilder
from sid_builder.events import EventOptions, prepare
from sid_builder.sources import SourceData, standard_notes
from sid_builder.sources.columns import (
    TimestampUnit,
    batches,
    column_names,
    csv_records,
    is_parquet,
    moments,
    numbers,
    parquet_file,
    row_label,
    texts,
)
from sid_builder.sources.lines import BadLines, LineOptions

KEYS = ("user", "item", "timestamp")
FEATURES = ("rating", "price")
_PATH, _ITEMS = "source_args.path", "source_args.items_file"


@dataclass(frozen=True, kw_only=True)
class TableArgs(EventOptions, LineOptions):
    """Where the tables are and how their columns are called."""

    path: str = field(metadata={"help": "File of interactions: .csv or .tsv (also with .gz), or .parquet."})
    columns: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "Our name -> column: user, item, timestamp, and features (rating, price, any other) as "
            "numbers. Without a line here, user, item, timestamp, rating and price go by these names."
        },
    )
    timestamp_unit: TimestampUnit = field(
        default="seconds",
        metadata={
            "help": "What timestamps are, unless the column's type says it: UTC where iso has no zone."
        },
    )
    items_file: str | None = field(
        default=None,
        metadata={"help": "File of items, beside the interactions; none: items are known by their ids."},
    )
    item_columns: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "Our name -> column of the items file: item_id, title, description, brand, categories, "
            "price, domain. Further columns are kept under their own names."
        },
    )
    category_separator: str = field(
        default="|", metadata={"help": "What separates categories where they are one text."}
    )

    def check(self) -> None:
        super().check()
        unknown_key(self.item_columns, SCHEMA.names, "source_args.item_columns.")
        if self.item_columns and self.items_file is None:
            raise InputError(
                "source_args.item_columns: has no effect without items_file; set that or drop it"
            )
        if not self.category_separator:
            raise InputError("source_args.category_separator: is empty; give a character such as |")


def load(args: TableArgs) -> SourceData:
    """Read interactions and items; the catalogue is in the order of the items file, or of first appearance.

    Raises:
        InputError: naming file and line (CSV) or row (Parquet) of what is malformed, or an unknown column.
    """
    args.check()
    files = {"interactions": Path(args.path)}
    bad = BadLines(args.bad_lines)
    log, unread = read_interactions(files["interactions"], args, bad)
    notes: dict[str, Any] = {"columns_not_read": unread}
    dropped = {"malformed_line": bad.count}
    if args.items_file is None:
        prepared = prepare(log, None, args, dropped)
        catalog = Catalog.bare(prepared.item_ids)
    else:
        files["items"] = files["interactions"].parent / args.items_file
        described, item_notes = _read_items(files["items"], args)
        ids = described.table.column("item_id").combine_chunks()
        prepared = prepare(log, ids, args, dropped)
        catalog = described.select(prepared.item_rows_N, prepared.item_ids)
        notes |= item_notes
    notes |= standard_notes(catalog, prepared.interactions) | prepared.notes
    return SourceData(catalog, prepared.interactions, files=files, notes=notes)


def read_interactions(path: Path, args: TableArgs, bad: BadLines) -> tuple[EventLog, list[str]]:
    """(log of all rows in the file's order, columns of the file that were not read)."""
    names = column_names(path, _PATH)
    chosen = _chosen(args.columns, (*KEYS, *FEATURES), ("user", "item"), names, path, "columns")
    features = [name for name in chosen if name not in KEYS]
    builder, row = LogBuilder(), 0
    for batch in batches(path, list(dict.fromkeys(chosen.values())), _PATH, bad):
        columns = {our: batch.column(their) for our, their in chosen.items()}
        users, items = (texts(columns[key], chosen[key]) for key in ("user", "item"))
        good = {key: _named(values) for key, values in (("user", users), ("item", items))}
        stamps, values = None, {}
        if "timestamp" in chosen:
            stamps, good["timestamp"] = moments(
                columns["timestamp"], args.timestamp_unit, chosen["timestamp"]
            )
        for name in features:
            values[name], good[name] = numbers(columns[name])
        kept = np.logical_and.reduce(list(good.values()))
        if not kept.all():
            first = int(np.argmin(kept))
            key = next(key for key, mask in good.items() if not mask[first])
            label = row_label(path, _PATH, row + first) if bad.policy == "error" else ""
            bad.report(
                f"{label}: column {chosen[key]!r} ({key}) is {columns[key][first].as_py()!r}; "
                f"{_expected(key, args)}",
                count=int(np.count_nonzero(~kept)),
            )
            users, items = users.filter(pa.array(kept)), items.filter(pa.array(kept))
            stamps = None if stamps is None else stamps[kept]
            values = {name: value[kept] for name, value in values.items()}
        builder.add(users, items, stamps, values)
        row += batch.num_rows
    return builder.finish(), [name for name in names if name not in chosen.values()]


def _chosen(
    given: dict[str, str],
    defaults: tuple[str, ...],
    required: tuple[str, ...],
    names: list[str],
    path: Path,
    option: str,
) -> dict[str, str]:
    """Our name -> column that is there; InputError names a column that is not."""
    chosen = {name: name for name in defaults if name in names and name not in given} | given
    for our in (*required, *given):
        if chosen.get(our) not in names:
            raise InputError(
                f"source_args.{option}.{our}: {path.name} has no column {chosen.get(our, our)!r}; "
                f"it has {names}"
            )
    return chosen


def _named(values: pa.Array) -> np.ndarray:
    """Which ids are given, bool [R]."""
    return pc.not_equal(values.fill_null(""), "").to_numpy(zero_copy_only=False)


def _expected(key: str, args: TableArgs) -> str:
    if key in ("user", "item"):
        return "give every row one"
    if key == "timestamp":
        return f"expected {args.timestamp_unit}"
    return "expected a number"


def _read_items(path: Path, args: TableArgs) -> tuple[Catalog, dict[str, Any]]:
    names = column_names(path, _ITEMS)
    chosen = _chosen(args.item_columns, tuple(SCHEMA.names), ("item_id",), names, path, "item_columns")
    nested: list[str] = []
    if is_parquet(path, _ITEMS):
        schema = parquet_file(path, _ITEMS).schema_arrow
        nested = [column.name for column in schema if pa.types.is_nested(column.type)]
    rest = [name for name in names if name not in chosen.values()]
    further = [name for name in rest if name not in SCHEMA.names and name not in nested]

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for label, row in labelled:
            item = {our: row[their] for our, their in chosen.items()} | {name: row[name] for name in further}
            categories = item.get("categories")
            if isinstance(categories, str):
                parts = categories.split(args.category_separator)
                item["categories"] = [part.strip() for part in parts if part.strip()]
            yield label, {key: None if value == "" else value for key, value in item.items()}

    bad = BadLines(args.bad_lines)
    labelled = _item_rows(path, names, [*chosen.values(), *further], bad)
    catalog = Catalog.from_stream(rows(), further)
    return catalog, {
        "item_columns_not_kept": [name for name in rest if name not in further],
        "malformed_item_lines": bad.count,
    }


def _item_rows(
    path: Path, names: list[str], wanted: list[str], bad: BadLines
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, row) of every item, by column."""
    if is_parquet(path, _ITEMS):
        number = 0
        for batch in batches(path, wanted, _ITEMS, bad):
            for row in batch.to_pylist():
                number += 1
                yield (
                    f"{path.name}: row {number}",
                    {
                        key: value
                        if value is None or isinstance(value, (str, int, float, list))
                        else str(value)
                        for key, value in row.items()
                    },
                )
        return
    records = csv_records(path, _ITEMS, bad)
    next(records)
    for line, cells in records:
        yield f"{path.name}:{line}", dict(zip(names, cells, strict=True))
