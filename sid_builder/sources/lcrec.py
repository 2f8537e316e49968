"""An LC-Rec data directory, read as it is: `NAME.inter.json` and what lies beside it, split leave-one-out.

    NAME.inter.json   {user: [item, ...]}, oldest first
    NAME.item.json    {item: {title, description, brand, categories, ...}}; without it titles are empty
    NAME.index.json   {item: ["<a_1>", "<b_2>", ...]}, SIDs for `quantizer: given`
    NAME.user.json    texts about users, for the tasks itemsearch and preferenceobtain
    NAME.item2id, NAME.user2id   `key <tab> number`, which give the original keys back

All but the first may be absent, as long as one file lists the items.
Layout: https://github.com/zhengbw0324/LC-Rec (`data_process`, `data.py`).
"""

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sources import SourceData, standard_notes
from sid_builder.sources.item_json import PeerItems, read_item_json
from sid_builder.sources.peer_files import (
    PeerOptions,
    keys_of,
    only_stem,
    read_index_json,
    read_json_object,
    read_key_file,
    stems_of,
)

SUFFIXES = {
    "interactions": ".inter.json",
    "items": ".item.json",
    "index": ".index.json",
    "user_texts": ".user.json",
    "item_keys": ".item2id",
    "user_keys": ".user2id",
}


@dataclass(frozen=True, kw_only=True)
class LcRecArgs(PeerOptions):
    """Which data set of the directory to read."""


def load(args: LcRecArgs) -> SourceData:
    """Read the files that are there; every user and item of one must be known to the others.

    `files["user_texts"]` names `user.json` where there is one; it is checked here, and what it says is for
    the tasks to read.

    Raises:
        InputError: naming the file and the user, item or line that is malformed, unknown or missing.
    """
    directory = Path(args.path)
    stem = only_stem(
        directory, stems_of(directory, SUFFIXES["interactions"]), args.category, "NAME.inter.json"
    )
    paths = {name: directory / f"{stem}{suffix}" for name, suffix in SUFFIXES.items()}
    files = {name: path for name, path in paths.items() if path.is_file() or name == "interactions"}
    items = _read_items(files, paths)
    sids = None
    if "index" in files:
        listed_in = files.get("items", files.get("item_keys", files["index"]))
        sids = read_index_json(files["index"], items.peer_ids, listed_in.name, args.codes_per_level)
    elif args.codes_per_level is not None:
        raise InputError(
            f"source_args.codes_per_level: {args.codes_per_level} has no effect without "
            f"{paths['index'].name}; drop it"
        )
    index_of = {peer_id: index for index, peer_id in enumerate(items.peer_ids)}
    user_ids, interactions = _read_interactions(files, index_of)
    notes = standard_notes(items.catalog, interactions) | {
        "split": "leave-one-out",
        "category": stem,
        "user_texts": None,
        "files_not_read": sorted(
            path.name for path in directory.glob(f"{stem}.*") if path not in files.values()
        ),
    }
    if "user_texts" in files:
        notes["user_texts"] = _check_user_texts(files["user_texts"], set(user_ids), index_of)
    return SourceData(items.catalog, interactions, sids, files, notes | items.notes)


def _read_items(files: dict[str, Path], paths: dict[str, Path]) -> PeerItems:
    """Items of the first of item.json, item2id and index.json that is there."""
    key_file = files.get("item_keys")
    if "items" in files:
        return read_item_json(files["items"], key_file)
    if key_file is not None:
        key_of = read_key_file(key_file)
    elif "index" in files:
        key_of = {peer_id: peer_id for peer_id in read_json_object(files["index"])}
    else:
        raise InputError(
            f"source_args.path: {files['interactions'].parent} has none of {paths['items'].name}, "
            f"{paths['item_keys'].name} and {paths['index'].name}; add one that lists the items"
        )
    return PeerItems(Catalog.bare(pa.array(key_of.values(), pa.string())), list(key_of), {})


def _read_interactions(files: dict[str, Path], index_of: dict[str, int]) -> tuple[list[str], Interactions]:
    path = files["interactions"]
    table = read_json_object(path)
    items, lengths = array("i"), []
    for user, sequence in table.items():
        if not isinstance(sequence, list) or not sequence:
            raise InputError(f"{path.name}: user {user!r} has {sequence!r}; expected a list of items")
        items.extend(_index(item, index_of, f"{path.name}: user {user!r}") for item in sequence)
        lengths.append(len(sequence))
    users = keys_of(list(table), files.get("user_keys"), "user", path.name)
    return list(table), Interactions.from_csr(
        pa.array(users, pa.string()),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array(items, dtype=np.int32),
    )


def _index(item: Any, index_of: dict[str, int], label: str) -> int:
    index = None if isinstance(item, (bool, float)) else index_of.get(str(item))
    if index is None:
        raise InputError(f"{label}: item {item!r} is not among the {len(index_of)} items; add or remove it")
    return index


def _check_user_texts(path: Path, users: set[str], index_of: dict[str, int]) -> dict[str, int]:
    """How many users have texts of each kind; InputError names the entry that is malformed or unknown."""
    table = read_json_object(path)
    preferences = _section(table, "user_explicit_preference", path)
    intentions = _section(table, "user_vague_intention", path)
    counts = {"users_with_preferences": len(preferences)}
    for user, texts in preferences.items():
        label = f"{path.name}: user_explicit_preference of user {user!r}"
        _check_user(user, users, label)
        _check_texts(texts, label)
    for split in ("train", "test"):
        entries = _section(intentions, split, path)
        counts[f"users_with_intention_{split}"] = len(entries)
        for user, entry in entries.items():
            label = f"{path.name}: user_vague_intention.{split} of user {user!r}"
            _check_user(user, users, label)
            if not isinstance(entry, dict) or not {"item", "inters", "querys"} <= entry.keys():
                raise InputError(f"{label} is {repr(entry)[:60]}; expected item, inters and querys")
            if not isinstance(entry["inters"], list):
                raise InputError(f"{label}: inters is {repr(entry['inters'])[:60]}; expected a list of items")
            for item in [entry["item"], *entry["inters"]]:
                _index(item, index_of, label)
            _check_texts(entry["querys"], f"{label}: querys", wanted=2)
    return counts


def _section(table: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = table.get(name)
    if not isinstance(section, dict):
        raise InputError(f"{path.name}: {name} is {repr(section)[:60]}; expected an object")
    return section


def _check_user(user: str, users: set[str], label: str) -> None:
    if user not in users:
        raise InputError(f"{label}: this user has no interactions; add them or remove the entry")


def _check_texts(texts: Any, label: str, wanted: int | None = None) -> None:
    fits = isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
    if not fits or (wanted is not None and len(texts) != wanted):
        raise InputError(f"{label}: {repr(texts)[:60]}; expected a list of {wanted or 'one or more'} texts")
