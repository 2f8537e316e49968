"""LC-Rec's `.user.json` as intents: tastes and vague intentions that a language model wrote for its authors.

    {"user_explicit_preference": {user: [text, ...]},
     "user_vague_intention": {"train" | "test":
         {user: {"item": id, "inters": [id, ...], "querys": [of the user, of the item]}}}}

Ids are the file's own; `<name>.item2id` and `<name>.user2id` beside it give the keys a catalogue was built
with, as the `lcrec` source does. The first of `querys` speaks of the user (an intention behind `inters`), the
second of the item alone (a query).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompts.intents import Intent, IntentSplit
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.sources.peer_files import read_json_object, read_key_file

SUFFIX = ".user.json"


def lcrec_intents(path: Path, catalog: Catalog) -> Iterator[Intent]:
    """Intents of one file; tastes are train's, as LC-Rec uses them.

    Raises:
        InputError: naming the user whose entry is malformed, or an item that is not in the catalogue.
    """
    stem = path.name.removesuffix(SUFFIX)
    item_key, user_key = (_keys(path.with_name(f"{stem}.{name}2id")) for name in ("item", "user"))
    table = read_json_object(path)
    for user, texts in _section(table, "user_explicit_preference", path).items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{path.name}: user_explicit_preference of user {user!r} is no list of texts")
        for text in texts:
            if text.strip():
                yield Intent("preference", (text.strip(),), user=user_key.get(user, user))
    intentions = _section(table, "user_vague_intention", path)
    splits: tuple[IntentSplit, ...] = ("train", "test")
    for split in splits:
        for user, entry in _section(intentions, split, path).items():
            label = f"{path.name}: user_vague_intention.{split} of user {user!r}"
            texts = entry.get("querys") if isinstance(entry, dict) else None
            if not isinstance(texts, list) or len(texts) != 2 or not isinstance(entry.get("inters"), list):
                raise InputError(f"{label} needs item, inters and two querys; repair the entry")
            item = _index(entry.get("item"), item_key, catalog, label)
            history = tuple(_index(one, item_key, catalog, label) for one in entry["inters"])
            name = user_key.get(user, user)
            for kind, text, behind in (("intention", texts[0], history), ("query", texts[1], ())):
                if not isinstance(text, str):
                    raise InputError(f"{label}: {text!r} in querys is no text; repair the entry")
                if text.strip():
                    yield Intent(kind, (text.strip(),), item, history=behind, user=name, split=split)  # type: ignore[arg-type]


def _keys(path: Path) -> dict[str, str]:
    return read_key_file(path) if path.is_file() else {}


def _section(table: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = table.get(name, {})
    if not isinstance(section, dict):
        raise InputError(f"{path.name}: {name} is {repr(section)[:60]}; expected an object")
    return section


def _index(item: Any, key_of: dict[str, str], catalog: Catalog, label: str) -> int:
    try:
        return catalog.item_index(key_of.get(str(item), str(item)))
    except InputError as error:
        raise InputError(f"{label}: {error}") from error
