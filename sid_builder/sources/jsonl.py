"""Two JSON-lines files, plain or gzip: items and users' sequences.

items.jsonl, one item a line: `item_id` (text or whole number) and any of `title`, `description`, `brand`,
`categories` (text or list), `price`; further keys with plain values become columns of the catalogue.
sequences.jsonl, one sequence a line: `user`, `items` (oldest first) and, on all lines or none, `timestamps`
(seconds), `ratings` and `prices` (numbers or null), each a list as long as `items`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sid_builder.catalog import SCHEMA, Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sources import SourceData, standard_notes
from sid_builder.sources.lines import BadLines, json_lines
from sid_builder.splits import SplitOptions

FEATURES = {"ratings": "rating", "prices": "price"}  # key of a line -> name of the feature
SEQUENCE_KEYS = ("user", "items", "timestamps", *FEATURES)


@dataclass(frozen=True, kw_only=True)
class JsonlArgs(SplitOptions):
    """Where the two files are, how their keys are called and how sequences are split."""

    path: str = field(metadata={"help": "Directory that holds both files."})
    items_file: str = field(
        default="items.jsonl", metadata={"help": "File of items, one JSON object a line, plain or gzip."}
    )
    sequences_file: str = field(
        default="sequences.jsonl", metadata={"help": "File of sequences, one a line, plain or gzip."}
    )
    rename: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "Our key -> the key in the files, such as {item_id: asin, items: history}."},
    )


def load(args: JsonlArgs) -> SourceData:
    """Read both files; every line is used or the build stops.

    Raises:
        InputError: naming file and line of the first malformed line, duplicate item or unknown item in a
        sequence.
    """
    args.check()
    known = (*SCHEMA.names, *SEQUENCE_KEYS)
    for key in args.rename:
        if key not in known:
            raise InputError(f"source_args.rename: {key!r} is no key of ours; use one of {list(known)}")
    directory = Path(args.path)
    files = {"items": directory / args.items_file, "sequences": directory / args.sequences_file}
    catalog, skipped_keys = _read_items(files["items"], args.rename)
    interactions = read_sequences(files["sequences"], args, catalog)
    notes = standard_notes(catalog, interactions) | {
        "split": args.split_name,
        "item_keys_not_kept": skipped_keys,
    }
    return SourceData(catalog, interactions, files=files, notes=notes)


def _renamed(row: dict[str, Any], rename: dict[str, str]) -> dict[str, Any]:
    theirs = {their: our for our, their in rename.items()}
    return {
        theirs.get(key, key): value for key, value in row.items() if key not in rename or rename[key] == key
    }


def _read_items(path: Path, rename: dict[str, str]) -> tuple[Catalog, list[str]]:
    labels, rows = [], []
    for label, row in json_lines(path, BadLines()):
        labels.append(label)
        rows.append(_renamed(row, rename))
    catalog = Catalog.from_rows(rows, where=labels)
    table, skipped = catalog.table, []
    for key in dict.fromkeys(key for row in rows for key in row if key not in SCHEMA.names):
        values = [row.get(key) for row in rows]
        if all(value is None or isinstance(value, (str, int, float)) for value in values):
            table = table.append_column(
                key, pa.array([None if v is None else str(v) for v in values], pa.string())
            )
        else:
            skipped.append(key)
    return Catalog(table), skipped


def read_sequences(path: Path, args: JsonlArgs, catalog: Catalog) -> Interactions:
    """Sequences of items of a catalogue, split as `args` say.

    Raises:
        InputError: naming file and line of the first malformed line or unknown item.
    """
    index_of = {item_id: index for index, item_id in enumerate(catalog.item_ids)}
    users: list[str] = []
    sequences: list[np.ndarray] = []
    columns: dict[str, list[np.ndarray]] = {}
    for label, raw in json_lines(path, BadLines()):
        row = _renamed(raw, args.rename)
        items, user = row.get("items"), row.get("user")
        if not isinstance(items, list) or not items:
            raise InputError(f"{label}: items is {items!r}; expected a list of at least one item_id")
        if isinstance(user, bool) or not isinstance(user, (str, int)):
            raise InputError(f"{label}: user is {user!r}; expected text or a whole number")
        for item_id in items:
            if (
                isinstance(item_id, bool)
                or not isinstance(item_id, (str, int))
                or str(item_id) not in index_of
            ):
                raise InputError(
                    f"{label}: item {item_id!r} is not in the items file; add the item or remove it here"
                )
        users.append(str(user))
        sequences.append(np.array([index_of[str(item_id)] for item_id in items], dtype=np.int32))
        for key in ("timestamps", *FEATURES):
            read = _stamps if key == "timestamps" else _numbers
            if key in row:
                columns.setdefault(key, []).append(read(row[key], key, len(items), label))
            if key in columns and len(columns[key]) != len(sequences):
                raise InputError(
                    f"{label}: {key} are given on some lines only; give them on all lines or none"
                )
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    joined = {key: np.concatenate(parts) for key, parts in columns.items()}
    return Interactions.from_csr(
        pa.array(users, pa.string()),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([np.empty(0, np.int32), *sequences]),
        joined.pop("timestamps", None),
        {FEATURES[key]: values for key, values in joined.items()},
        args,
    )


def _numbers(value: Any, key: str, num_items: int, label: str) -> np.ndarray:
    """float32, NaN for null."""
    if not isinstance(value, list) or len(value) != num_items:
        raise InputError(f"{label}: {key} do not match items; give one number or null per item")
    for number in value:
        if number is not None and (type(number) not in (int, float) or not abs(number) < 1e30):
            raise InputError(f"{label}: {number!r} in {key} is no number; give a number or null")
    return np.array(value, dtype=np.float32)


def _stamps(value: Any, key: str, num_items: int, label: str) -> np.ndarray:
    if not isinstance(value, list) or len(value) != num_items:
        raise InputError(f"{label}: {key} do not match items; give one whole number of seconds per item")
    for stamp in value:
        if isinstance(stamp, bool) or not isinstance(stamp, int):
            raise InputError(f"{label}: timestamp {stamp!r} is not a whole number of seconds")
    stamps = np.array(value, dtype=np.int64)
    if (np.diff(stamps) < 0).any():
        raise InputError(f"{label}: timestamps go back in time; sort the sequence, oldest first")
    return stamps
