"""Amazon's metadata lines of 2014, 2018 and 2023 as catalogue rows of one shape.

2014 wrote Python literals (`categories` are lists of paths, `imUrl` one link), 2018 JSON with pieces of web
page among the values (`category`, lists of `description` and `feature`, prices such as "$12.99"), 2023 JSON
with `parent_asin`, `store` and lists of `images`. One reader takes each value from whichever key has it.
"""

import ast
import html
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sid_builder.sources.lines import BadLines, json_lines, parse_json

FURTHER_COLUMNS = ("features", "image_url")
_TAG = re.compile(r"</?[a-zA-Z!][^<>]*>")
# "$12.99", "1,299.00", "$5.00 - $9.00", "from 7.49": the (first, lowest) amount.
_PRICE = re.compile(r"(?:from\s+)?\$?\s*(\d[\d,]*(?:\.\d+)?)(?:\s*-\s*\$?\s*\d[\d,]*(?:\.\d+)?)?")


@dataclass
class MetadataCounts:
    """What was noticed on the way through a metadata file."""

    lines: int = 0
    duplicates: int = 0  # lines of an item that had one before; the first is kept
    titles_not_readable: int = 0  # pieces of a web page; the item has no title then
    prices_not_readable: int = 0
    seen: set[str] = field(default_factory=set)

    def notes(self) -> dict[str, int]:
        return {
            "metadata_lines": self.lines,
            "metadata_lines_repeating_an_item": self.duplicates,
            "titles_not_readable": self.titles_not_readable,
            "prices_not_readable": self.prices_not_readable,
        }


def metadata_rows(
    path: Path, wanted: Container[str], bad: BadLines, counts: MetadataCounts
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, catalogue row) of every wanted item, in the file's order, each once.

    Args:
        wanted: ids of items to keep; the others are only counted as lines.
        bad: told of lines that cannot be parsed or name no item.
        counts: filled on the way.
    """
    for label, raw in json_lines(path, bad, parse_json_or_literal):
        item_id = raw.get("parent_asin") or raw.get("asin")
        if not isinstance(item_id, str):
            bad.report(f"{label}: has no asin or parent_asin; repair the line")
            continue
        counts.lines += 1
        if item_id not in wanted:
            continue
        if item_id in counts.seen:
            counts.duplicates += 1
            continue
        counts.seen.add(item_id)
        yield label, _row(item_id, raw, counts)


def parse_json_or_literal(text: str) -> Any:
    """A line of JSON or, as 2014 has them, a Python literal (parsed, never run); ValueError says what is
    wrong.
    """
    # The second character tells the two apart without parsing twice: JSON quotes its keys with ".
    if not text.lstrip().startswith("{'"):
        return parse_json(text)
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("is neither JSON nor a Python literal") from error


def _row(item_id: str, raw: dict[str, Any], counts: MetadataCounts) -> dict[str, Any]:
    # 2018 has titles that are a script of the shop's page; taking the tags out would leave its code.
    title = raw.get("title")
    if isinstance(title, str) and ("<span" in title or "getTime()" in title):
        counts.titles_not_readable += 1
        title = None
    price, readable = _price(raw.get("price"))
    counts.prices_not_readable += not readable
    return {
        "item_id": item_id,
        "title": _plain(title),
        "description": _plain(raw.get("description")),
        "brand": _plain(raw.get("brand") or raw.get("store")),
        "categories": _categories(raw),
        "price": price,
        "features": _plain(raw.get("features") or raw.get("feature")) or None,
        "image_url": _image(raw),
    }


def _plain(value: Any) -> str:
    """Text without tags and character references; a list becomes one text."""
    if isinstance(value, list):
        return " ".join(filter(None, map(_plain, value)))
    if value is None or isinstance(value, dict):
        return ""
    # Twice: "&amp;quot;" is common in these files. So are halves of emoji, which no UTF-8 file can hold.
    text = html.unescape(html.unescape(str(value))).encode(errors="replace").decode()
    return " ".join(_TAG.sub(" ", text).split())


def _categories(raw: dict[str, Any]) -> list[str]:
    """Names of all paths in order, each once; `main_category` (2023) where there is no path."""
    paths = raw.get("categories") or raw.get("category") or raw.get("main_category") or []
    names: dict[str, None] = {}
    for path in paths if isinstance(paths, list) else [paths]:
        for name in path if isinstance(path, list) else [path]:
            names[_plain(name)] = None
    return [name for name in names if name]


def _price(value: Any) -> tuple[float | None, bool]:
    """(price or None, False for something that is given but no price)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (float(value), True) if 0 <= value < float("inf") else (None, False)
    text = str(value or "").strip()
    match = _PRICE.fullmatch(text)
    if match is None:
        return None, text in ("", "None", "—", "-")
    return float(match[1].replace(",", "")), True


def _image(raw: dict[str, Any]) -> str | None:
    """Link to the largest picture named first, from `images`, `imageURLHighRes`, `imageURL` or `imUrl`."""
    for key in ("images", "imageURLHighRes", "imageURL", "imUrl"):
        value = raw.get(key)
        # 2023's files are a list of pictures, its copy on the Hugging Face hub a picture of lists.
        for picture in value if isinstance(value, list) else [value]:
            sizes = picture if isinstance(picture, dict) else {"large": picture}
            for size in ("hi_res", "large", "thumb"):
                links = sizes.get(size)
                for link in links if isinstance(links, list) else [links]:
                    if isinstance(link, str) and link:
                        return link
    return None
