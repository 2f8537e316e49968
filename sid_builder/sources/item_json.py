"""`item.json` of MiniOneRec and LC-Rec: `{peer id: {title, description, brand, categories, ...}}`.

MiniOneRec writes lists as their Python text, "['a', 'b']", with quotes that are not always escaped; LC-Rec
joins them. Both are read, and what our exporters write is read back as it was.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sid_builder.catalog import SCHEMA, Catalog
from sid_builder.errors import InputError
from sid_builder.sources.peer_files import keys_of, read_json_object

# Quotes inside list-strings are not always escaped, so a separator is a quote, a comma and a quote.
_QUOTED_SEPARATOR = re.compile(r"""['"],\s*['"]""")
# LC-Rec joins categories by a bare comma; a comma inside a category's name has a space behind it.
_CATEGORY_SEPARATOR = re.compile(r",(?!\s)")


@dataclass(frozen=True)
class PeerItems:
    """A catalogue, the peer id of each of its rows, and what was noticed in reading it."""

    catalog: Catalog
    peer_ids: list[str]
    notes: dict[str, Any]


def read_item_json(path: Path, key_file: Path | None) -> PeerItems:
    """The catalogue in the file's order. Keys beside ours with plain values become columns of text.

    Raises:
        InputError: naming the item that is malformed.
    """
    table = read_json_object(path)
    rows: list[dict[str, Any]] = []
    repaired = 0
    keys = keys_of(list(table), key_file, "item", path.name)
    for key, (peer_id, item) in zip(keys, table.items(), strict=True):
        if not isinstance(item, dict):
            raise InputError(f"{path.name}: item {peer_id!r} is {item!r}; expected an object with a title")
        description, broken = _description(item.get("description"))
        categories, broken_too = _categories(item.get("categories"))
        repaired += broken + broken_too
        rows.append(item | {"item_id": key, "description": description, "categories": categories})
    names = dict.fromkeys(name for row in rows for name in row if name not in SCHEMA.names)
    skipped = [name for name in names if any(isinstance(row.get(name), (list, dict)) for row in rows)]
    catalog = Catalog.from_stream(
        ((f"{path.name}: item {peer_id!r}", row) for peer_id, row in zip(table, rows, strict=True)),
        further=[name for name in names if name not in skipped],
    )
    notes = {"descriptions_with_broken_quotes": repaired, "item_keys_not_kept": skipped}
    return PeerItems(catalog, list(table), notes)


def _list_string(value: Any) -> tuple[list[str], bool]:
    """Decode "['a', 'b']" (or plain text, or a real list); True if broken quoting had to be split by hand."""
    if value is None or value == "":
        return [], False
    if isinstance(value, list):
        return [str(part) for part in value], False
    text = str(value).strip()
    if not (text.startswith("[") and text.endswith("]")):
        return [text], False
    try:
        parts = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        inner = text[1:-1].strip()
        if not inner.startswith(("'", '"')):
            return [text], False  # plain text in brackets
        parts = _QUOTED_SEPARATOR.split(inner.strip("'\"").replace("\\n", " "))
        return [part for part in parts if part.strip()], True
    if not all(isinstance(part, str) for part in parts):
        return [text], False
    return [part for part in parts if part.strip()], False


def _description(value: Any) -> tuple[str, bool]:
    parts, broken = _list_string(value)
    return " ".join(parts), broken


def _categories(value: Any) -> tuple[list[str], bool]:
    parts, broken = _list_string(value)
    if parts == [str(value).strip()]:  # plain text, no list
        parts = [name.strip() for name in _CATEGORY_SEPARATOR.split(parts[0])]
    return parts, broken


def spell_description(text: str) -> str:
    """How `item.json` says this description: plainly, or as a list-string where it has brackets around it.

    MiniOneRec's code evaluates whatever has brackets around it, so no such text may reach it as it is.
    """
    return repr([text]) if text.startswith("[") and text.endswith("]") else text


def spell_categories(names: list[str]) -> str:
    """How `item.json` says these categories: joined by commas as LC-Rec does, or as a list-string."""
    joined = ",".join(names)
    return joined if _categories(joined) == (names, False) else repr(names)
