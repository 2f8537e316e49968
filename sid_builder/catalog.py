"""The catalogue: one row per item, addressed inside by `item_index`, outside by the user's `item_id`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Catalog:
    """Items in order of `item_index` 0..N-1.

    `table` follows `SCHEMA`: missing texts are empty strings, a missing price is null. `domain` names the
    data set an item came from where several share one codebook. Further columns a source gave follow.
    """

    table: pa.Table

    @staticmethod
    def from_rows(rows: Sequence[dict[str, Any]], where: Iterable[str] | None = None) -> "Catalog":
        """Build from dicts with `item_id` and any of title, description, brand, categories, price, domain.

        Args:
            where: one label per row (such as "items.jsonl:17") used in error messages.

        Raises:
            InputError: on an empty list, a missing or repeated item_id, or a field of the wrong type.
        """
        labels = list(where) if where is not None else [f"item row {i}" for i in range(len(rows))]
        if not rows:
            raise InputError("catalogue: it has no items; check the items file")
        first_row: dict[str, str] = {}
        columns: dict[str, list] = {name: [] for name in SCHEMA.names}
        for row, label in zip(rows, labels, strict=True):
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

    def item_index(self, item_id: str | int) -> int:
        """Dense index of the user's key; InputError names a key that is not in the catalogue."""
        index = self._index_of.get(str(item_id))
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
