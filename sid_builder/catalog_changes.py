"""Which items join a catalogue, leave it and come back: read from files and checked against what is there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sid_builder.catalog import SCHEMA, Catalog
from sid_builder.errors import InputError
from sid_builder.sid_index import SidIndex
from sid_builder.sources.lines import BadLines, json_lines, text_lines


@dataclass(frozen=True)
class CatalogChanges:
    """`added` has the columns of the catalogue it joins; `removed` and `restored` are item indices, int64."""

    added: Catalog | None
    removed: np.ndarray
    restored: np.ndarray

    @property
    def num_added(self) -> int:
        return 0 if self.added is None else self.added.num_items


def read_changes(index: SidIndex, add: str | None, remove: str | None, restore: str | None) -> CatalogChanges:
    """Read the files that are given.

    Args:
        add: JSON lines (perhaps gzipped) of new items, with keys that are columns of the catalogue.
        remove, restore: text files, one item_id a line.

    Raises:
        InputError: for an item that is added though it is there, removed though it is not on the shelf,
            restored though it was not removed, or named twice; keys that are no column; an empty shelf.
    """
    index_of = {item_id: item for item, item_id in enumerate(index.catalog.item_ids)}
    added = None if add is None else _read_items(Path(add), index, index_of)
    removed, restored = (
        np.empty(0, dtype=np.int64) if path is None else _read_ids(Path(path), field, index_of)
        for field, path in (("remove", remove), ("restore", restore))
    )
    for field, items, wanted, why in (
        ("remove", removed, True, "was removed already"),
        ("restore", restored, False, "is on the shelf"),
    ):
        wrong = items[index.live_N[items] != wanted]
        if len(wrong):
            item_id = index.catalog.item_ids[wrong[0]]
            raise InputError(f"{field}: item_id {item_id!r} {why}; drop the line")
    changes = CatalogChanges(added, removed, restored)
    if index.live_N.sum() - len(removed) + len(restored) + changes.num_added == 0:
        raise InputError(f"remove: all {len(removed)} items on the shelf are to go; keep at least one")
    return changes


def _read_items(path: Path, index: SidIndex, index_of: Mapping[str, int]) -> Catalog:
    table = index.catalog.table

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for label, row in json_lines(path, BadLines()):
            for key in row:
                if key not in table.column_names:
                    raise InputError(
                        f"{label}: {key!r} is no column of the catalogue; drop it or use {table.column_names}"
                    )
            item = index_of.get(str(row.get("item_id")))
            if item is not None:
                live = index.live_N[item]
                why = "is in the catalogue; drop the line" if live else "was removed; use --restore"
                raise InputError(f"{label}: item_id {row['item_id']!r} {why}")
            yield label, row

    further = [name for name in table.column_names if name not in SCHEMA.names]
    added = Catalog.from_stream(rows(), further).table.select(table.column_names)
    try:
        return Catalog(added.cast(table.schema))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        first = " ".join(str(error).split())
        raise InputError(f"add: {path} does not fit the catalogue's columns ({first}); repair it") from error


def _read_ids(path: Path, field: str, index_of: Mapping[str, int]) -> np.ndarray:
    """Item indices of a file's lines, in their order."""
    seen: dict[int, int] = {}
    for number, line in enumerate(text_lines(path, field), start=1):
        if not (item_id := line.strip()):
            continue
        item = index_of.get(item_id)
        if item is None:
            raise InputError(
                f"{path.name}:{number}: item_id {item_id!r} is not in the catalogue of "
                f"{len(index_of)} items; check the key"
            )
        if item in seen:
            raise InputError(f"{path.name}:{number}: item_id {item_id!r} stands on line {seen[item]} already")
        seen[item] = number
    if not seen:
        raise InputError(f"{field}: {path} names no item; write one item_id a line")
    return np.array(list(seen), dtype=np.int64)
