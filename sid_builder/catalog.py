"""The catalogue: one row per item, addressed inside by `item_index`, outside by the user's `item_id`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sid_builder.errors import InputError

SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("description", pa.string(), nullable=False),
        pa.field("brand", pa.string(), nullable=False),
        pa.field("categories", pa.list_(pa.string()), nullable=False),
        pa.field("price", pa.float64(), nullable=True),
        pa.field("domain", pa.string(), nullable=False),
    ]
)
ROWS_A_CHUNK = 16_384


@dataclass(frozen=True)
class Catalog:
    """Items in order of `item_index` 0..N-1.

    `table` follows `SCHEMA`: missing texts are empty strings, a missing price is null. `domain` names the
    data set an item came from where several share one codebook. Further columns a source gave follow.
    """

    table: pa.Table

    @staticmethod
    def from_rows(rows: Sequence[dict[str, Any]], where: Iterable[str] | None = None) -> "Catalog":
        """`from_stream` for rows in a list.

        Args:
            where: one label per row (such as "items.jsonl:17") used in error messages.
        """
        labels = list(where) if where is not None else [f"item row {i}" for i in range(len(rows))]
        return Catalog.from_stream(zip(labels, rows, strict=True))

    @staticmethod
    def from_stream(rows: Iterable[tuple[str, dict[str, Any]]], further: Sequence[str] = ()) -> "Catalog":
        """Build from dicts with `item_id` and any of title, description, brand, categories, price, domain.

        Args:
            rows: (label for error messages, item); columns are kept, not the dicts.
            further: keys kept as columns of text beside ours; an item without the key has null.

        Raises:
            InputError: on no rows, a missing or repeated item_id, or a field of the wrong type.
        """
        schema = pa.schema([*SCHEMA, *(pa.field(name, pa.string()) for name in further)])
        first_row: dict[str, str] = {}
        columns: dict[str, list] = {name: [] for name in schema.names}
        tables: list[pa.Table] = []
        for label, row in rows:
            item_id = _text_id(row.get("item_id"), label)
            if item_id in first_row:
                raise InputError(
                    f"{label}: item_id {item_id!r} is a duplicate of {first_row[item_id]}; "
                    "keep one row per item"
                )
            first_row[item_id] = label
            columns["item_id"].append(item_id)
            for name in ("title", "description", "brand", "domain"):
                columns[name].append(_text(row.get(name), f"{label}: {name}"))
            categories = row.get("categories")
            categories = [categories] if isinstance(categories, str) and categories else categories or []
            columns["categories"].append([_text(entry, f"{label}: categories") for entry in categories])
            columns["price"].append(_price(row.get("price"), label))
            for name in further:
                value = row.get(name)
                columns[name].append(None if value is None else _text(value, f"{label}: {name}"))
            if len(first_row) % ROWS_A_CHUNK == 0:
                tables.append(pa.table(columns, schema=schema))
                columns = {name: [] for name in schema.names}
        if not first_row:
            raise InputError("catalogue: it has no items; check the items file")
        return Catalog(pa.concat_tables([*tables, pa.table(columns, schema=schema)]))

    def select(self, rows_N: np.ndarray, item_ids: pa.Array) -> "Catalog":
        """The catalogue of these rows, then of items with an id and nothing else.

        Args:
            rows_N: ascending row numbers; -1, at the end only, is an item this catalogue does not have.
            item_ids: the id of each, string [N].
        """
        known = rows_N[rows_N >= 0]
        assert (np.diff(known) > 0).all() and (rows_N[: len(known)] >= 0).all()
        mask = np.zeros(self.num_items, dtype=bool)
        mask[known] = True
        # filter, not take: take would first join the chunks of each column, and texts beyond 2 GB do not fit.
        table = self.table.filter(pa.array(mask))
        bare = Catalog.bare(item_ids[len(known) :]).table
        return Catalog(pa.concat_tables([table, bare], promote_options="default"))

    @staticmethod
    def bare(item_ids: pa.Array) -> "Catalog":
        """A catalogue that knows no more of its items than their ids."""
        columns: dict[str, Any] = {name: [""] * len(item_ids) for name in SCHEMA.names}
        columns |= {
            "item_id": item_ids,
            "categories": [[]] * len(item_ids),
            "price": [None] * len(item_ids),
        }
        return Catalog(pa.table(columns, schema=SCHEMA))

    @property
    def num_items(self) -> int:
        return self.table.num_rows

    @cached_property
    def item_ids(self) -> list[str]:
        return self.table.column("item_id").to_pylist()

    @cached_property
    def titles(self) -> list[str]:
        return self.table.column("title").to_pylist()

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    def find(self, item_id: str | int) -> int | None:
        """Dense index of the user's key, or None."""
        return self._index_of.get(str(item_id))

    def item_index(self, item_id: str | int) -> int:
        """Dense index of the user's key; InputError names a key that is not in the catalogue."""
        index = self.find(item_id)
        if index is None:
            raise InputError(
                f"item_id: {item_id!r} is not in the catalogue of {self.num_items} items; check the key"
            )
        return index

    def row(self, item_index: int) -> dict[str, Any]:
        """All columns of one item as a dict."""
        return self.table.slice(item_index, 1).to_pylist()[0]

    def save(self, path: Path) -> None:
        pq.write_table(self.table, path, compression="zstd")

    @staticmethod
    def load(path: Path) -> "Catalog":
        return Catalog(pq.read_table(path))


def _text_id(value: Any, label: str) -> str:
    if value is None or value == "" or isinstance(value, (float, bool, list, dict)):
        raise InputError(f"{label}: item_id is {value!r}; give every item a key (a string or a whole number)")
    return str(value)


def _text(value: Any, label: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, (str, int, float)):
        raise InputError(f"{label} is {value!r}; expected text")
    return " ".join(str(value).split())


def _price(value: Any, label: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        price = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{label}: price is {value!r}; expected a number") from error
    if not 0 <= price < float("inf"):
        raise InputError(f"{label}: price is {value!r}; expected a finite number of at least 0")
    return price
