"""What the layouts of MiniOneRec and LC-Rec share: `item.json`, `index.json` and the key files.

Both number items from 0, so keys that are not such numbers are mapped, and `item2id` has the original ones.
`sid_builder.sources.item_json` and `peer_files` read these files back.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sid_builder.catalog import SCHEMA, Catalog
from sid_builder.errors import InputError
from sid_builder.exporters import ExportData
from sid_builder.semantic_ids import DEFAULT_PATTERN, SemanticIds
from sid_builder.sources.item_json import spell_categories, spell_description
from sid_builder.sources.peer_files import fitted_level_sizes

TEXT_COLUMNS = ("title", "description", "brand", "categories")
_LINE_BREAK_OR_TAB = re.compile(r"[\t\n\r]")


def check_keys(keys: Sequence[str], kind: str) -> None:
    """InputError for a key of users or items (`kind`) that a cell of these layouts cannot hold."""
    for key in keys:
        if not key or _LINE_BREAK_OR_TAB.search(key):
            raise InputError(
                f"{kind}: key {key!r} has a tab or line break or is empty; rename it and build again"
            )


def numbered(keys: Sequence[str]) -> list[int]:
    """The peer id of every key: the key itself where they are 0..N-1 in any order, else its position."""
    if set(keys) == {str(number) for number in range(len(keys))}:
        return [int(key) for key in keys]
    return list(range(len(keys)))


def write_key_file(path: Path, keys: Sequence[str], numbers: Sequence[int]) -> None:
    """Lines `key <tab> number`."""
    with open(path, "w", encoding="utf-8", newline="\n") as handle:
        handle.writelines(f"{key}\t{number}\n" for key, number in zip(keys, numbers, strict=True))


def write_json_object(path: Path, entries: Iterable[tuple[str, Any]]) -> None:
    """One JSON object, an entry a line, in the order given and without holding it in memory.

    ASCII, because the peers open files in the locale's encoding.
    """
    with open(path, "w", encoding="ascii", newline="\n") as handle:
        separator = "{\n"
        for key, value in entries:
            handle.write(f"{separator}{json.dumps(key)}: {json.dumps(value)}")
            separator = ",\n"
        handle.write("\n}\n")


def peer_sids(sids: SemanticIds) -> SemanticIds:
    """The same codes in the spelling both peers' code expects."""
    return SemanticIds(sids.codes_NL, sids.level_sizes, DEFAULT_PATTERN)


def one_line(text: str) -> str:
    """Line breaks and tabs separate rows and cells in these layouts: any run of white space is one space."""
    return " ".join(text.split())


def write_item_files(data: ExportData, numbers: Sequence[int], directory: Path) -> None:
    """Write `NAME.item.json` and `NAME.index.json`, items in order of item_index."""
    catalog, sids = data.index.catalog, peer_sids(data.index.semantic_ids)
    keys = list(map(str, numbers))
    write_json_object(directory / f"{data.name}.item.json", zip(keys, _described(catalog), strict=True))
    write_json_object(
        directory / f"{data.name}.index.json",
        (
            (key, [sids.token(level, code) for level, code in enumerate(row) if code >= 0])
            for key, row in zip(keys, sids.codes_NL.tolist(), strict=True)
        ),
    )


def _described(catalog: Catalog) -> Iterator[dict[str, Any]]:
    columns = _carried_columns(catalog)
    for batch in catalog.table.select(columns).to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            yield row | {
                "title": one_line(row["title"]),
                "description": spell_description(one_line(row["description"])),
                "brand": one_line(row["brand"]),
                "categories": spell_categories(row["categories"]),
            }


def _carried_columns(catalog: Catalog) -> list[str]:
    """Columns of `item.json`: the texts, price and domain where any item has one, further plain columns."""
    table = catalog.table
    carried = list(TEXT_COLUMNS)
    if table.column("price").null_count < table.num_rows:
        carried.append("price")
    if any(table.column("domain").to_pylist()):
        carried.append("domain")
    return carried + [field.name for field in _further(catalog) if not pa.types.is_nested(field.type)]


def _further(catalog: Catalog) -> list[pa.Field]:
    return [field for field in catalog.table.schema if field.name not in SCHEMA.names]


def shared_remarks(data: ExportData) -> list[str]:
    """What neither layout has a place for."""
    catalog, sids, interactions = data.index.catalog, data.index.semantic_ids, data.interactions
    remarks = []
    if interactions.timestamps_I is not None:
        remarks.append("timestamps are not in the layout; the order of interactions is")
    if interactions.features_I:
        remarks.append(f"features of interactions are not in the layout: {sorted(interactions.features_I)}")
    texts = ["title", "description", "brand"]
    if data.source_notes.get("user_texts"):
        remarks.append("LC-Rec's texts about users are not in a SID directory, so they are not here either")
    nested: list[str] = []
    typed: list[str] = []
    for column in _further(catalog):
        is_nested, is_text = pa.types.is_nested(column.type), pa.types.is_string(column.type)
        (nested if is_nested else texts if is_text else typed).append(column.name)
    if nested:
        remarks.append(f"catalogue columns of lists are not in the layout: {nested}")
    if typed:
        remarks.append(f"catalogue columns that come back as text: {typed}")
    broken = sum(
        text is not None and text != one_line(text)
        for name in texts
        for text in catalog.table.column(name).to_pylist()
    )
    if broken:
        remarks.append(f"{broken} texts had line breaks, tabs or several spaces in a row: one space each now")
    if fitted_level_sizes(sids.codes_NL) != sids.level_sizes:
        remarks.append(
            f"codebook sizes are not in the layout: read it with codes_per_level: {list(sids.level_sizes)}"
        )
    if sids.pattern != DEFAULT_PATTERN:
        remarks.append(
            f"tokens are spelled {DEFAULT_PATTERN}, not {sids.pattern}: the peers' code expects it"
        )
    return remarks
