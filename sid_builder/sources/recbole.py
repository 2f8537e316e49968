"""RecBole's atomic files: tab-separated tables whose header gives each column a type.

    NAME.inter   user_id:token  item_id:token  rating:float  timestamp:float   one interaction a line
    NAME.item    item_id:token  title:token_seq  ...                           optional

The form MiniOneRec, LC-Rec and VQ-Rec write is read as well: NAME.train.inter, NAME.valid.inter and
NAME.test.inter of `user_id:token  item_id_list:token_seq  item_id:token`, a history and its target a line.
Its items come from NAME.item, or from NAME.item.json with NAME.item2id and NAME.index.json where these are.
https://recbole.io/docs/user_guide/data/atomic_files.html
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sid_builder.catalog import SCHEMA, Catalog
from sid_builder.cli import unknown_key
from sid_builder.errors import InputError
from sid_builder.events import EventOptions, prepare
from sid_builder.interactions import SPLITS
from sid_builder.sources import SourceData, standard_notes, table
from sid_builder.sources.atomic_files import read_header, read_items, read_rows
from sid_builder.sources.columns import TimestampUnit
from sid_builder.sources.item_json import PeerItems, read_item_json
from sid_builder.sources.lines import BadLines, LineOptions
from sid_builder.sources.peer_files import (
    only_stem,
    read_index_json,
    stems_of,
)
from sid_builder.sources.presplit import PresplitRows

INTERACTION_FIELDS = {"user": "user_id", "item": "item_id", "timestamp": "timestamp", "rating": "rating"}


@dataclass(frozen=True, kw_only=True)
class RecBoleArgs(EventOptions, LineOptions):
    """Which data set to read, how its fields are called, and what of its interactions is kept."""

    path: str = field(metadata={"help": "Directory of the atomic files."})
    category: str | None = field(
        default=None, metadata={"help": "NAME, such as ml-1m; needed if there are several."}
    )
    form: Literal["auto", "interactions", "sequences"] = field(
        default="auto",
        metadata={"help": "NAME.inter, or NAME.train.inter and its siblings; auto: whichever is there."},
    )
    columns: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "Our name -> field of .inter where it is another: user, item, timestamp, rating. Further "
            "float fields are kept as features."
        },
    )
    item_columns: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "Our name -> field of .item where it is another, such as {title: movie_title}. Further "
            "fields are kept under their own names."
        },
    )
    sequence_separator: str = field(
        default=" ", metadata={"help": "RecBole's seq_separator, inside a token_seq of categories."}
    )
    timestamp_unit: TimestampUnit = field(
        default="seconds", metadata={"help": "What timestamps are: seconds or milliseconds."}
    )

    def check(self) -> None:
        super().check()
        unknown_key(self.columns, list(INTERACTION_FIELDS), "source_args.columns.")
        unknown_key(self.item_columns, SCHEMA.names, "source_args.item_columns.")
        if not self.sequence_separator:
            raise InputError("source_args.sequence_separator: is empty; RecBole's default is a space")


def load(args: RecBoleArgs) -> SourceData:
    """Read the data set in the form it is there in.

    Raises:
        InputError: naming file and line of what is malformed, or the option that is needed.
    """
    args.check()
    directory = Path(args.path)
    plain, split = stems_of(directory, ".inter"), stems_of(directory, ".train.inter")
    plain = [name for name in plain if not name.endswith(tuple(f".{part}" for part in SPLITS))]
    stem = only_stem(directory, [*plain, *split], args.category, "NAME.inter")
    found = {"interactions": stem in plain, "sequences": stem in split}
    form = args.form
    if form == "auto":
        if all(found.values()):
            raise InputError(
                f"source_args.form: {directory} has both {stem}.inter and {stem}.train.inter; "
                "set it to interactions or sequences"
            )
        form = "sequences" if found["sequences"] else "interactions"
    return (_load_sequences if form == "sequences" else _load_interactions)(args, directory, stem)


def _load_interactions(args: RecBoleArgs, directory: Path, stem: str) -> SourceData:
    files = {"interactions": directory / f"{stem}.inter"}
    bad = BadLines(args.bad_lines)
    log, unread = table.read_interactions(
        files["interactions"],
        table.TableArgs(
            path=str(files["interactions"]),
            columns=_typed_columns(files["interactions"], args.columns),
            timestamp_unit=args.timestamp_unit,
            bad_lines=args.bad_lines,
        ),
        bad,
    )
    catalog: Catalog | None = None
    notes: dict[str, Any] = {}
    if (directory / f"{stem}.item").is_file():
        files["items"] = directory / f"{stem}.item"
        catalog, notes = read_items(
            files["items"], args.item_columns, args.sequence_separator, args.bad_lines
        )
    ids = None if catalog is None else catalog.table.column("item_id").combine_chunks()
    prepared = prepare(log, ids, args, {"malformed_line": bad.count})
    if catalog is None:
        catalog = Catalog.bare(prepared.item_ids)
    else:
        catalog = catalog.select(prepared.item_rows_N, prepared.item_ids)
    notes |= standard_notes(catalog, prepared.interactions) | prepared.notes
    notes |= {"category": stem, "columns_not_read": unread}
    return SourceData(catalog, prepared.interactions, files=files, notes=notes)


def _typed_columns(path: Path, given: dict[str, str]) -> dict[str, str]:
    """Our name (a feature's own) -> header cell `field:type` of what is read of an `.inter` file."""
    kinds = read_header(path)
    mapping: dict[str, str] = {}
    for ours, default in INTERACTION_FIELDS.items():
        theirs = given.get(ours, default)
        wanted = "token" if ours in ("user", "item") else "float"
        if theirs not in kinds:
            if wanted == "token" or ours in given:
                raise InputError(
                    f"{path.name}:1: has no field {theirs!r} ({ours}), but {list(kinds)}; "
                    "set source_args.columns"
                )
            continue
        if kinds[theirs] != wanted:
            raise InputError(
                f"{path.name}:1: field {theirs!r} ({ours}) is a {kinds[theirs]}; expected {wanted}"
            )
        mapping[ours] = theirs
    features = [name for name, kind in kinds.items() if kind == "float" and name not in mapping.values()]
    mapping = {name: name for name in features} | mapping
    return {ours: f"{theirs}:{kinds[theirs]}" for ours, theirs in mapping.items()}


def _load_sequences(args: RecBoleArgs, directory: Path, stem: str) -> SourceData:
    for option in dataclasses.fields(EventOptions):
        plain = option.default_factory() if callable(option.default_factory) else option.default
        if getattr(args, option.name) != plain:
            raise InputError(
                f"source_args.{option.name}: has no effect on rows that are split already; drop it"
            )
    files: dict[str, Path] = {split: directory / f"{stem}.{split}.inter" for split in SPLITS}
    items, notes = _items_of_sequences(args, directory, stem, files)
    sids = None
    if "index" in files:
        sids = read_index_json(files["index"], items.peer_ids, files["items"].name, None)
    index_of = {peer_id: index for index, peer_id in enumerate(items.peer_ids)}
    rows, bad = PresplitRows(), BadLines(args.bad_lines)
    fields = [args.columns.get(ours, INTERACTION_FIELDS[ours]) for ours in ("user", "item")]
    for split in SPLITS:
        for label, row in read_rows(files[split], bad, (fields[0], f"{fields[1]}_list", fields[1])):
            user, history, target = row.values()
            keys = [*history.split(), target]
            unknown = next((key for key in keys if key not in index_of), None)
            if unknown is not None:
                bad.report(f"{label}: item {unknown!r} is not in {files['items'].name}; add or remove it")
            elif not user or len(keys) < 2:
                bad.report(f"{label}: {'user' if not user else 'history'} is empty; repair the line")
            else:
                rows.add(split, user, [index_of[key] for key in keys])
    interactions = rows.finish(files["train"].name)
    notes |= standard_notes(items.catalog, interactions) | {
        "split": "as in the files: one sequence per row",
        "category": stem,
        "rows_dropped": bad.count,
    }
    return SourceData(items.catalog, interactions, sids, files, notes)


def _items_of_sequences(
    args: RecBoleArgs, directory: Path, stem: str, files: dict[str, Path]
) -> tuple[PeerItems, dict[str, Any]]:
    """Items of NAME.item, else of NAME.item.json; what is read is added to `files`."""
    if (directory / f"{stem}.item").is_file():
        files["items"] = directory / f"{stem}.item"
        catalog, notes = read_items(
            files["items"], args.item_columns, args.sequence_separator, args.bad_lines
        )
        return PeerItems(catalog, catalog.item_ids, {}), notes
    files["items"] = directory / f"{stem}.item.json"
    if not files["items"].is_file():
        raise InputError(
            f"source_args.path: {directory} has neither {stem}.item nor {stem}.item.json; add one"
        )
    for name, suffix in (("item_keys", ".item2id"), ("index", ".index.json")):
        if (directory / f"{stem}{suffix}").is_file():
            files[name] = directory / f"{stem}{suffix}"
    items = read_item_json(files["items"], files.get("item_keys"))
    return items, items.notes
