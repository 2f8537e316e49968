"""A MiniOneRec data directory, read as it is: three CSVs, info, index.json, item.json.

Every CSV row is one sequence (history, then target); its folder says which split asks for the target, so only
transitions into targets count for train. List cells are parsed by `ast.literal_eval`, never evaluated. An
`index/NAME.item2id`, which our exporter writes where item keys are not 0..N-1, gives the keys back.
Layout: https://github.com/AkaliKong/MiniOneRec (`data/Amazon`).
"""

import ast
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sid_builder.errors import InputError
from sid_builder.interactions import SPLITS, Interactions, Split
from sid_builder.sources import SourceData, standard_notes
from sid_builder.sources.item_json import read_item_json
from sid_builder.sources.lines import text_lines
from sid_builder.sources.peer_files import (
    PeerOptions,
    only_stem,
    read_index_json,
    stems_of,
)
from sid_builder.sources.presplit import PresplitRows

COLUMNS = ("user_id", "history_item_id", "item_id", "history_item_sid", "item_sid")
# A history of many long titles is more than the 131,072 characters Python's csv takes for a cell by default.
_LONGEST_CELL = 1 << 30
_NUMBERS = re.compile(r"\[(?:0|[1-9]\d*)(?:, ?(?:0|[1-9]\d*))*\]")


@dataclass(frozen=True, kw_only=True)
class MiniOneRecArgs(PeerOptions):
    """Which data set of the directory to read."""


def load(args: MiniOneRecArgs) -> SourceData:
    """Read every row of the three CSVs; SIDs come from index.json and must agree with the CSVs and the info
    file.

    Raises:
        InputError: naming file and line of what is malformed, unknown or contradictory.
    """
    directory = Path(args.path)
    stem = only_stem(directory, stems_of(directory / "index", ".item.json"), args.category, "index/")
    files = {
        "items": directory / "index" / f"{stem}.item.json",
        "index": directory / "index" / f"{stem}.index.json",
        "info": _one_file(directory / "info", stem, ".txt"),
    }
    files |= {split: _one_file(directory / split, stem, ".csv") for split in SPLITS}
    key_file = directory / "index" / f"{stem}.item2id"
    if key_file.is_file():
        files["item_keys"] = key_file
    items = read_item_json(files["items"], files.get("item_keys"))
    sids = read_index_json(files["index"], items.peer_ids, files["items"].name, args.codes_per_level)
    spelled = {peer_id: sids.spell(index) for index, peer_id in enumerate(items.peer_ids)}
    _check_info(files["info"], spelled)
    interactions = _read_rows(files, items.peer_ids, spelled)
    unread = sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*.csv") if path not in files.values()
    )
    notes = standard_notes(items.catalog, interactions) | {
        "split": "as in the directory: one sequence per CSV row",
        "category": stem,
        "csv_files_not_read": unread,
    }
    return SourceData(items.catalog, interactions, sids, files, notes | items.notes)


def _one_file(folder: Path, stem: str, suffix: str) -> Path:
    """The one file of a folder named after the category (`rows_with_source.csv` is none of the data)."""
    found = sorted(
        path for path in folder.glob(f"{stem}*{suffix}") if re.match(r"[._]", path.name[len(stem) :])
    )
    if len(found) != 1:
        names = [path.name for path in found] or "none"
        raise InputError(f"source_args.path: {folder} needs exactly one file {stem}*{suffix}, found {names}")
    return found[0]


def _check_info(path: Path, spelled: dict[str, str]) -> None:
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        cells = line.rstrip("\r\n").split("\t")
        if len(cells) != 3 or cells[2] not in spelled:
            raise InputError(
                f"{path.name}:{number}: {line[:60]!r} is not `SID <tab> title <tab> item id` of a known item"
            )
        if cells[0] != spelled[cells[2]]:
            raise InputError(
                f"{path.name}:{number}: SID {cells[0]} differs from index.json's {spelled[cells[2]]}"
            )


def _read_rows(files: dict[str, Path], peer_ids: list[str], spelled: dict[str, str]) -> Interactions:
    index_of = {peer_id: index for index, peer_id in enumerate(peer_ids)}
    rows = PresplitRows()
    for split in SPLITS:
        for label, row in _csv_rows(files[split], split):
            history = _list_cell(row["history_item_id"], "history_item_id", label)
            keys = [str(key) for key in [*history, row["item_id"]]]
            for key in keys:
                if key not in index_of:
                    raise InputError(
                        f"{label}: item {key!r} is not in item.json; add the item or remove the row"
                    )
            *expected, target_sid = [spelled[key] for key in keys]
            # Nearly every cell is spelled as expected, and comparing texts is far cheaper than parsing them.
            same = row["history_item_sid"] == f"[{', '.join(map(repr, expected))}]" or (
                _list_cell(row["history_item_sid"], "history_item_sid", label) == expected
            )
            if not same or row["item_sid"] != target_sid:
                raise InputError(
                    f"{label}: its SIDs differ from index.json's; make the CSV again from this index"
                )
            rows.add(split, row["user_id"], [index_of[key] for key in keys])
    return rows.finish(files["train"].name)


def _csv_rows(path: Path, split: Split) -> Iterator[tuple[str, dict[str, str]]]:
    """(label "split/file:line", row) for every row, streamed."""
    limit = csv.field_size_limit(_LONGEST_CELL)
    reader = csv.DictReader(text_lines(path))
    try:
        lacking = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
        if lacking:
            raise InputError(f"{path.name}:1: column {lacking[0]!r} is missing; expected {list(COLUMNS)}")
        for row in reader:
            label = f"{split}/{path.name}:{reader.line_num}"
            if None in row:
                raise InputError(f"{label}: has more cells than the header; quote cells that hold commas")
            yield label, row
    except csv.Error as error:
        raise InputError(f"{split}/{path.name}:{reader.line_num + 1}: {error}; repair the line") from error
    finally:
        csv.field_size_limit(limit)


def _list_cell(text: str | None, column: str, label: str) -> list:
    if text and _NUMBERS.fullmatch(text):
        return json.loads(text)  # several times faster than literal_eval, and most cells are such
    try:
        value = ast.literal_eval(text or "")
    except (ValueError, SyntaxError) as error:
        raise InputError(
            f"{label}: {column} is {str(text)[:60]!r}; expected a list such as [3, 7]"
        ) from error
    if not isinstance(value, list) or not value:
        raise InputError(f"{label}: {column} is {str(text)[:60]!r}; expected a list of at least one entry")
    return value
