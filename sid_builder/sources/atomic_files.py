"""RecBole's atomic files: tab-separated lines under a header that gives each field a type.

Cells are taken as they stand: RecBole's data sets are written without quoting.
https://recbole.io/docs/user_guide/data/atomic_files.html
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sid_builder.catalog import SCHEMA, Catalog
from sid_builder.errors import InputError
from sid_builder.sources.lines import BadLines, text_lines

TYPES = ("token", "token_seq", "float", "float_seq")


def read_header(path: Path) -> dict[str, str]:
    """{field: type} of an atomic file; InputError for a type RecBole does not have or a field twice."""
    kinds: dict[str, str] = {}
    for cell in next(text_lines(path), "").rstrip("\r\n").split("\t"):
        name, _, kind = cell.rpartition(":")
        if not name or kind not in TYPES:
            raise InputError(
                f"{path.name}:1: header cell {cell!r} is not `field:type` with a type of {list(TYPES)}"
            )
        if name in kinds:
            raise InputError(f"{path.name}:1: field {name!r} is there twice; rename one")
        kinds[name] = kind
    return kinds


def read_rows(path: Path, bad: BadLines, wanted: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """(label "file:line", {field: cell}) for every line, streamed.

    Args:
        bad: told of lines that do not have as many cells as the header.
        wanted: the fields to give; InputError for one the file does not have.
    """
    kinds = list(read_header(path))
    lacking = next((name for name in wanted if name not in kinds), None)
    if lacking is not None:
        raise InputError(f"{path.name}:1: has no field {lacking!r}, but {kinds}; set source_args.columns")
    lines = enumerate(text_lines(path), start=1)
    next(lines)
    for number, line in lines:
        cells = line.rstrip("\r\n").split("\t")
        if len(cells) == len(kinds):
            row = dict(zip(kinds, cells, strict=True))
            yield f"{path.name}:{number}", {name: row[name] for name in wanted}
        elif line.strip():
            bad.report(
                f"{path.name}:{number}: has {len(cells)} cells, the header {len(kinds)}; repair the line"
            )


def read_items(
    path: Path, columns: dict[str, str], separator: str, bad_lines: Literal["error", "skip"]
) -> tuple[Catalog, dict[str, Any]]:
    """The catalogue of an `.item` file in its order, and notes on what was not kept.

    Args:
        columns: our name -> field where it is another; fields that are none of ours stay under their names.
        separator: what separates categories in a token_seq.

    Raises:
        InputError: for a field that is not there, or naming the line that is malformed.
    """
    kinds = read_header(path)
    chosen = {ours: ours for ours in SCHEMA.names if ours in kinds} | columns
    for ours in ("item_id", *columns):
        if chosen.get(ours) not in kinds:
            raise InputError(
                f"{path.name}:1: has no field {chosen.get(ours, ours)!r} ({ours}), but {list(kinds)}; "
                "set source_args.item_columns"
            )
    rest = [name for name in kinds if name not in chosen.values()]
    further = [name for name in rest if name not in SCHEMA.names]
    bad = BadLines(bad_lines)

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for label, row in read_rows(path, bad, tuple(kinds)):
            item: dict[str, Any] = {ours: row[theirs] or None for ours, theirs in chosen.items()}
            if item.get("categories") and kinds[chosen["categories"]] == "token_seq":
                parts = item["categories"].split(separator)
                item["categories"] = [part.strip() for part in parts if part.strip()]
            yield label, item | {name: row[name] or None for name in further}

    catalog = Catalog.from_stream(rows(), further)
    return catalog, {
        "item_columns_not_kept": [name for name in rest if name not in further],
        "malformed_item_lines": bad.count,
    }
