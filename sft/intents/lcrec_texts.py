"""LC-Rec's `.user.json` as intents: tastes and vague intentions that a language model wrote for its authors.

    {"user_explicit_preference": {user: [text, ...]},
     "user_vague_intention": {"train" | "test":
         {user: {"item": id, "inters": [id, ...], "querys": [of the user, of the item]}}}}

Ids are the file's own; `<name>.item2id` and `<name>.user2id` beside it give the keys a catalogue was built
with, and without them the ids are the keys, as for the `lcrec` source. The first of `querys` speaks of the
user (an intention behind `inters`), the second of the item alone (a query).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompts.intents import Intent, IntentKind, IntentSplit
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.sources.peer_files import read_json_object, read_key_file

SUFFIX = ".user.json"
_SPLITS: tuple[IntentSplit, ...] = ("train", "test")
_KINDS: tuple[IntentKind, ...] = ("intention", "query")  # in the order of `querys`


class PeerKeys:
    """The keys that the ids of a peer's file stand for: those of `item2id` and `user2id` beside it.

    Args:
        beside: path of the file.
        suffix: what its name ends with behind the data set's.
    """

    def __init__(self, beside: Path, suffix: str) -> None:
        stem = beside.name.removesuffix(suffix)
        paths = {kind: beside.with_name(f"{stem}.{kind}2id") for kind in ("item", "user")}
        self._key_of = {kind: read_key_file(path) for kind, path in paths.items() if path.is_file()}

    def key(self, kind: str, peer_id: Any, label: str) -> str:
        """InputError, beginning with `label`, for an id that the key file does not have."""
        table = self._key_of.get(kind)
        if table is None:
            return str(peer_id)
        if str(peer_id) not in table:
            raise InputError(f"{label}: {kind} {peer_id!r} is not in the {kind}2id beside it; add it there")
        return table[str(peer_id)]


def lcrec_intents(path: Path, catalog: Catalog) -> Iterator[Intent]:
    """Intents of one file; tastes are train's, as LC-Rec uses them.

    Raises:
        InputError: naming the user whose entry is malformed, or an item that is not in the catalogue.
    """
    keys = PeerKeys(path, SUFFIX)
    index_of = {item_id: item for item, item_id in enumerate(catalog.item_ids)}

    def index(item: Any, label: str) -> int:
        key = keys.key("item", item, label)
        if key not in index_of:
            raise InputError(f"{label}: item {key!r} is not in the catalogue; import into the one it is from")
        return index_of[key]

    table = read_json_object(path)
    for user, texts in _section(table, "user_explicit_preference", path).items():
        label = f"{path.name}: user_explicit_preference of user {user!r}"
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{label} is {repr(texts)[:60]}; expected a list of texts")
        name = keys.key("user", user, label)
        yield from (Intent("preference", (text.strip(),), user=name) for text in texts if text.strip())
    intentions = _section(table, "user_vague_intention", path)
    for split in _SPLITS:
        for user, entry in _section(intentions, split, path).items():
            label = f"{path.name}: user_vague_intention.{split} of user {user!r}"
            item, history, texts = _entry(entry, label)
            behind = tuple(index(one, label) for one in history)
            target, name = index(item, label), keys.key("user", user, label)
            for kind, text in zip(_KINDS, texts, strict=True):
                if text.strip():
                    told = behind if kind == "intention" else ()
                    yield Intent(kind, (text.strip(),), target, history=told, user=name, split=split)


def _section(table: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = table.get(name, {})
    if not isinstance(section, dict):
        raise InputError(f"{path.name}: {name} is {repr(section)[:60]}; expected an object")
    return section


def _entry(entry: Any, label: str) -> tuple[Any, list[Any], list[str]]:
    """(item, inters, querys) of a vague intention."""
    if not isinstance(entry, dict) or not {"item", "inters", "querys"} <= entry.keys():
        raise InputError(f"{label} is {repr(entry)[:60]}; expected item, inters and querys")
    texts, history = entry["querys"], entry["inters"]
    if not isinstance(history, list):
        raise InputError(f"{label}: inters is {repr(history)[:60]}; expected a list of items")
    if not isinstance(texts, list) or len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{label}: querys is {repr(texts)[:60]}; expected a list of two texts")
    return entry["item"], history, texts
