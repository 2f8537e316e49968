"""What people want, in words, and the item that answers: data of the natural-language tasks.

An intent is a question without a history ("a warm blue jacket under 80 dollars"), one asked behind a history,
a request refined over several turns ("cheaper", "not that brand"), or the taste of a user in words. Intents
are written by `sft.compose_intents` (from metadata and reviews), `sft.generate_intents` (by a language model)
or by anyone, one JSON object a line:

    {"kind": "query", "turns": ["a red tent", "cheaper"], "shown": ["P0003"], "item_id": "P0017",
     "history": [], "user": "", "split": "train", "wanted": {"max_price": 199.99}}

`text` may stand for `turns` with one entry; all keys but `kind`, the words and `item_id` may be left out.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from prompts.wanted import check_wanted
from sid_builder.artifact import artifact_kind, open_artifact
from sid_builder.catalog import Catalog
from sid_builder.cli import unknown_key
from sid_builder.errors import InputError

KIND = "intents"
INTENTS_FILE = "intents.parquet"
IntentKind = Literal["query", "intention", "preference"]
IntentSplit = Literal["train", "valid", "test"]
SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("turns", pa.list_(pa.string()), nullable=False),
        pa.field("shown", pa.list_(pa.string()), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),  # "" for a preference, which is about a user
        pa.field("history", pa.list_(pa.string()), nullable=False),
        pa.field("user", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("wanted", pa.string(), nullable=False),  # JSON
    ]
)


@dataclass(frozen=True)
class Intent:
    """One request with its answer; items are `item_index`.

    Attributes:
        kind: "query" asks for an item by what it is, "intention" by what the user is after, and "preference"
            describes a user's taste (it is an answer or a context, and has no item: -1).
        turns: what the user says, oldest first; `item` answers the last turn.
        shown: the item shown after each turn but the last.
        history: items chosen before, oldest first; empty when the request stands alone.
        wanted: the constraints the words state, as data (truth for evaluation); empty where unknown.
    """

    kind: IntentKind
    turns: tuple[str, ...]
    item: int = -1
    shown: tuple[int, ...] = ()
    history: tuple[int, ...] = ()
    user: str = ""
    split: IntentSplit = "train"
    wanted: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What is asked now."""
        return self.turns[-1]


class Intents:
    """Intents over a catalogue, kept as an Arrow table of `SCHEMA`, with item ids: they outlive indices."""

    def __init__(self, table: pa.Table, catalog: Catalog) -> None:
        self.table = table
        self.catalog = catalog

    def __len__(self) -> int:
        return self.table.num_rows

    def __iter__(self) -> Iterator[Intent]:
        index = self.catalog.item_index
        for batch in self.table.to_batches(max_chunksize=1 << 14):
            for row in batch.to_pylist():
                yield Intent(
                    kind=row["kind"],
                    turns=tuple(row["turns"]),
                    item=index(row["item_id"]) if row["item_id"] else -1,
                    shown=tuple(index(item) for item in row["shown"]),
                    history=tuple(index(item) for item in row["history"]),
                    user=row["user"],
                    split=row["split"],
                    wanted=json.loads(row["wanted"]),
                )

    def select(self, kinds: Sequence[IntentKind], split: IntentSplit) -> "Intents":
        """Those of these kinds in a split, in order."""
        import pyarrow.compute as pc

        table = self.table
        mask = pc.and_(
            pc.is_in(table["kind"], pa.array(list(kinds), pa.string())), pc.equal(table["split"], split)
        )
        return Intents(table.filter(mask), self.catalog)

    def slice(self, low: int, high: int) -> "Intents":
        return Intents(self.table.slice(low, high - low), self.catalog)

    @staticmethod
    def of(intents: Iterable[Intent], catalog: Catalog) -> "Intents":
        """From intents in memory; their indices become ids."""
        ids = catalog.item_ids
        rows = [
            {
                "kind": intent.kind,
                "turns": list(intent.turns),
                "shown": [ids[item] for item in intent.shown],
                "item_id": ids[intent.item] if intent.item >= 0 else "",
                "history": [ids[item] for item in intent.history],
                "user": intent.user,
                "split": intent.split,
                "wanted": json.dumps(intent.wanted, sort_keys=True),
            }
            for intent in intents
        ]
        return Intents(pa.Table.from_pylist(rows, SCHEMA), catalog)

    @staticmethod
    def load(path: str | Path, catalog: Catalog) -> "Intents":
        """An artefact of kind "intents" or a JSONL file.

        Raises:
            InputError: naming the line and the key that is missing, of a wrong type or unknown, or the item
                that is not in the catalogue.
        """
        path = Path(path)
        if path.is_dir() or artifact_kind(path):
            return Intents(pq.read_table(open_artifact(path, KIND).path / INTENTS_FILE), catalog)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"intents: cannot read {path} ({error}); give a JSONL file or a directory"
            ) from error
        rows = [
            read_row(line, f"{path.name}:{number}", catalog)
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        if not rows:
            raise InputError(f"intents: {path} is empty; write one JSON object a line")
        return Intents(pa.Table.from_pylist(rows, SCHEMA), catalog)

    def write(self, directory: Path) -> None:
        """The table as `INTENTS_FILE`, inside an artefact the caller is writing."""
        write_parts([self], directory)


def write_parts(parts: Iterable[Intents], directory: Path) -> None:
    """`Intents.write` for more than memory holds: each part is written before the next is asked for."""
    with pq.ParquetWriter(directory / INTENTS_FILE, SCHEMA, compression="zstd") as writer:
        for part in parts:
            writer.write_table(part.table)


def read_row(line: str, label: str, catalog: Catalog) -> dict[str, Any]:
    """One line of JSONL as a row of `SCHEMA`; InputError begins with `label` (such as "intents.jsonl:17")."""
    try:
        given = json.loads(line)
    except ValueError as error:
        raise InputError(f"{label}: is not JSON ({error}); write one object a line") from error
    if not isinstance(given, dict):
        raise InputError(f"{label}: is {type(given).__name__}; write one JSON object a line")
    unknown_key(given, [*SCHEMA.names, "text"], f"{label}: ")
    if ("text" in given) == ("turns" in given):
        raise InputError(f"{label}: give either text or turns")
    row = {
        "kind": given.get("kind", "query"),
        "turns": [given["text"]] if "text" in given else given["turns"],
        "shown": given.get("shown", []),
        "item_id": str(given.get("item_id", "")),
        "history": given.get("history", []),
        "user": str(given.get("user", "")),
        "split": given.get("split", "train"),
        "wanted": json.dumps(given.get("wanted", {}), sort_keys=True),
    }
    check_wanted(given.get("wanted", {}), f"{label}: wanted")
    for name, choices in (("kind", get_args(IntentKind)), ("split", get_args(IntentSplit))):
        if row[name] not in choices:
            raise InputError(f"{label}: {name} is {row[name]!r}; use one of {list(choices)}")
    for name in ("turns", "shown", "history"):
        if not isinstance(row[name], list) or (
            name == "turns" and not all(isinstance(text, str) and text.strip() for text in row[name])
        ):
            raise InputError(f"{label}: {name} is {row[name]!r}; expected a list of texts or item ids")
    if not row["turns"] or len(row["shown"]) != len(row["turns"]) - 1:
        raise InputError(
            f"{label}: {len(row['turns'])} turns with {len(row['shown'])} items shown; every turn but the "
            "last shows one"
        )
    if (row["kind"] == "preference") == bool(row["item_id"]):
        raise InputError(f"{label}: a preference is about a user and has no item_id, all else has one")
    for name in ("shown", "history"):
        row[name] = [str(item) for item in row[name]]
    for item in [*row["shown"], *row["history"], *([row["item_id"]] if row["item_id"] else [])]:
        try:
            catalog.item_index(item)
        except InputError as error:
            raise InputError(f"{label}: {error}") from error
    return row
