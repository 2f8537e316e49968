"""A MiniOneRec data directory, read as it is: three CSVs, info, index.json, item.json.

Every CSV row is one sequence (history, then target); its folder says which split asks for the target, so only
transitions into targets count for train. List cells are parsed by `ast.literal_eval`, never evaluated.
Layout: https://github.com/AkaliKong/MiniOneRec (`data/Amazon`).
"""

import ast
import csv
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import SPLITS, Interactions
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sources import SourceData, read_text, standard_notes

COLUMNS = ("user_id", "history_item_id", "item_id", "history_item_sid", "item_sid")
# Quotes inside list-strings are not always escaped, so a separator is a quote, a comma and a quote.
_SEPARATOR = re.compile(r"""['"],\s*['"]""")
_TOKEN = re.compile(r"<([a-z])_(\d+)>")


@dataclass(frozen=True)
class MiniOneRecArgs:
    """Which files of the directory to read."""

    path: str = field(metadata={"help": "Directory with train/, valid/, test/, info/ and index/."})
    category: str | None = field(
        default=None,
        metadata={"help": "File stem, such as Industrial_and_Scientific; needed if there are several."},
    )
    codes_per_level: int | None = field(
        default=None,
        metadata={
            "help": "Codebook size of the SIDs taken over; default: the largest code, up to a power of two."
        },
    )


def load(args: MiniOneRecArgs) -> SourceData:
    """Read every row of the three CSVs; SIDs come from index.json and must agree with the CSVs and the info
    file.

    Raises:
        InputError: naming file and line of what is malformed, unknown or contradictory.
    """
    directory = Path(args.path)
    stem = args.category or _only_category(directory)
    files = {
        "items": directory / "index" / f"{stem}.item.json",
        "index": directory / "index" / f"{stem}.index.json",
        "info": _one_file(directory / "info", stem, ".txt"),
    }
    files |= {split: _one_file(directory / split, stem, ".csv") for split in SPLITS}
    catalog, repaired = _read_items(files["items"])
    index_of = {item_id: index for index, item_id in enumerate(catalog.item_ids)}
    sids = _read_sids(files["index"], index_of, args.codes_per_level)
    spelled = {item_id: sids.spell(index) for item_id, index in index_of.items()}
    _check_info(files["info"], spelled)
    interactions = _read_rows(files, index_of, spelled)
    unread = sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*.csv") if path not in files.values()
    )
    notes = standard_notes(catalog, interactions) | {
        "split": "as in the directory: one sequence per CSV row",
        "category": stem,
        "descriptions_with_broken_quotes": repaired,
        "csv_files_not_read": unread,
    }
    return SourceData(catalog, interactions, sids, files, notes)


def _only_category(directory: Path) -> str:
    names = sorted(path.name.removesuffix(".item.json") for path in (directory / "index").glob("*.item.json"))
    if len(names) != 1:
        fix = "set source_args.category to one of them" if names else "give the directory that holds index/"
        raise InputError(f"source_args.path: {directory} has item files for {names or 'no category'}; {fix}")
    return names[0]


def _one_file(folder: Path, stem: str, suffix: str) -> Path:
    """The one file of a folder named after the category (`rows_with_source.csv` is none of the data)."""
    found = sorted(
        path for path in folder.glob(f"{stem}*{suffix}") if re.match(r"[._]", path.name[len(stem) :])
    )
    if len(found) != 1:
        names = [path.name for path in found] or "none"
        raise InputError(f"source_args.path: {folder} needs exactly one file {stem}*{suffix}, found {names}")
    return found[0]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path, "source_args.path"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path.name}:{error.lineno}: is not valid JSON ({error.msg}); repair the file"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path.name}: holds a {type(value).__name__}, expected an object keyed by item id")
    return value


def _read_items(path: Path) -> tuple[Catalog, int]:
    """Catalogue in the file's order, and how many descriptions had list-strings with unescaped quotes."""
    rows, labels, repaired = [], [], 0
    for item_id, item in _read_json(path).items():
        if not isinstance(item, dict):
            raise InputError(f"{path.name}: item {item_id!r} is {item!r}; expected an object with a title")
        row = {
            "item_id": item_id,
            "title": item.get("title"),
            "brand": item.get("brand"),
            "price": item.get("price"),
        }
        for name in ("description", "categories"):
            parts, broken = _list_string(item.get(name))
            repaired += broken
            row[name] = " ".join(parts) if name == "description" else parts
        rows.append(row)
        labels.append(f"{path.name}: item {item_id!r}")
    return Catalog.from_rows(rows, where=labels), repaired


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
        return [str(part) for part in ast.literal_eval(text) if str(part).strip()], False
    except (ValueError, SyntaxError):
        inner = text[1:-1].strip().strip("'\"").replace("\\n", " ")
        return [part for part in _SEPARATOR.split(inner) if part.strip()], True


def _read_sids(path: Path, index_of: dict[str, int], codes_per_level: int | None) -> SemanticIds:
    table = _read_json(path)
    missing = [item_id for item_id in index_of if item_id not in table] or [
        key for key in table if key not in index_of
    ]
    if missing:
        raise InputError(
            f"{path.name}: item {missing[0]!r} is in only one of index.json and item.json; make them agree"
        )
    rows: list[list[int]] = [[] for _ in index_of]
    for item_id, tokens in table.items():
        for level, token in enumerate(tokens):
            match = _TOKEN.fullmatch(str(token))
            if match is None or ord(match[1]) - ord("a") != level:
                raise InputError(
                    f"{path.name}: item {item_id!r} has token {token!r} as number {level + 1}; "
                    "expected <a_1>, <b_2>, ..."
                )
            rows[index_of[item_id]].append(int(match[2]))
    depth = max(map(len, rows))
    codes_NL = np.array([row + [-1] * (depth - len(row)) for row in rows], dtype=np.int32)
    fitted = [1 << int(largest).bit_length() for largest in codes_NL.max(axis=0)]
    sizes = tuple(codes_per_level or size for size in fitted)
    if any(largest >= size for largest, size in zip(codes_NL.max(axis=0), sizes, strict=True)):
        raise InputError(
            f"source_args.codes_per_level: {codes_per_level} is too small for {path.name}; "
            f"give at least {codes_NL.max() + 1}"
        )
    return SemanticIds(codes_NL, sizes)


def _check_info(path: Path, spelled: dict[str, str]) -> None:
    for number, line in enumerate(read_text(path, "source_args.path").split("\n"), start=1):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split("\t")
        if len(cells) != 3 or cells[2] not in spelled:
            raise InputError(
                f"{path.name}:{number}: {line[:60]!r} is not `SID <tab> title <tab> item id` of a known item"
            )
        if cells[0] != spelled[cells[2]]:
            raise InputError(
                f"{path.name}:{number}: SID {cells[0]} differs from index.json's {spelled[cells[2]]}"
            )


def _read_rows(files: dict[str, Path], index_of: dict[str, int], spelled: dict[str, str]) -> Interactions:
    users: list[str] = []
    sequences: list[list[int]] = []
    split_of_row: list[str] = []
    for split in SPLITS:
        path = files[split]
        reader = csv.DictReader(io.StringIO(read_text(path, "source_args.path"), newline=""))
        lacking = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
        if lacking:
            raise InputError(f"{path.name}:1: column {lacking[0]!r} is missing; expected {list(COLUMNS)}")
        for row in reader:
            label = f"{split}/{path.name}:{reader.line_num}"
            history = _list_cell(row["history_item_id"], "history_item_id", label)
            sids = _list_cell(row["history_item_sid"], "history_item_sid", label)
            keys = [str(key) for key in [*history, row["item_id"]]]
            for key in keys:
                if key not in index_of:
                    raise InputError(
                        f"{label}: item {key!r} is not in item.json; add the item or remove the row"
                    )
            if [spelled[key] for key in keys] != [*sids, row["item_sid"]]:
                raise InputError(
                    f"{label}: its SIDs differ from index.json's; make the CSV again from this index"
                )
            users.append(row["user_id"])
            sequences.append([index_of[key] for key in keys])
            split_of_row.append(split)
    if not sequences:
        raise InputError(f"{files['train'].name}: has no rows; check the directory")
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    asked: dict[str, Any] = {f"{split}_lo_S": lengths - 1 for split in SPLITS}
    asked |= {f"{split}_hi_S": lengths - 1 + (np.array(split_of_row) == split) for split in SPLITS}
    return Interactions(
        users=pa.array(users, pa.string()),
        indptr_S1=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items_I=np.concatenate(sequences).astype(np.int32),
        **asked,
    )


def _list_cell(text: str | None, column: str, label: str) -> list:
    try:
        value = ast.literal_eval(text or "")
    except (ValueError, SyntaxError) as error:
        raise InputError(
            f"{label}: {column} is {str(text)[:60]!r}; expected a list such as [3, 7]"
        ) from error
    if not isinstance(value, list) or not value:
        raise InputError(f"{label}: {column} is {str(text)[:60]!r}; expected a list of at least one entry")
    return value
