"""What is true of each item, in words that a request can use.

Legend: N items.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from prompts.word_index import words_of
from sft.intents.lexicon import ItemRow, Lexicon, described
from sft.intents.titles import COLOURS, NEVER_ALONE, article, is_plural, key, measures, packs, segments
from sid_builder.catalog import Catalog

# Fewer siblings than this make no "cheap" and no word for their kind.
LEAST_SIBLINGS = 8
_MOST_BEFORE = 4  # words and pairs before the thing's name
_MOST_KEYWORDS = 8
_DESCRIPTION_PARTS = 40


class Trait(NamedTuple):
    """Something an item is or has.

    `role` says how it is spoken: "before" the thing ("waterproof"), as a "colour", "for" or "with" something,
    as a "size" ("12 oz") or a "pack" ("pack of 3").
    """

    role: Literal["before", "colour", "for", "with", "size", "pack"]
    words: str


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """One item.

    Attributes:
        thing: what it is ("nail polish"); empty where its title does not say.
        category: the catalogue's name for that, where the thing is one of its categories; else empty.
        kind: what siblings have in common: a category or a thing; empty where there are none.
        brand: as spoken; `brand_given` is False where it was read from the title.
        traits: in the order in which they stand before the thing, then the others.
        keywords: the title's less common words, in order.
    """

    thing: str
    category: str
    kind: str
    brand: str
    brand_given: bool
    traits: tuple[Trait, ...]
    keywords: tuple[str, ...]

    @property
    def plural(self) -> bool:
        return bool(self.thing) and is_plural(self.thing.rsplit(" ", 1)[-1])

    def named(self, words: str) -> str:
        """Those words with the article the thing needs: "a red tent", "some red socks"."""
        return f"some {words}" if self.plural else f"{article(words)} {words}"


class CatalogFacts:
    """`ItemFacts` of every item, and its siblings: items of the same kind.

    Reads the catalogue four times, in batches: three times to learn its words, once to take items apart.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.prices_N = catalog.table["price"].to_numpy()
        self.lexicon = Lexicon(lambda: self._rows("learning words"))
        found = [self._item(row) for row in self._rows("reading items")]
        self.items: Sequence[ItemFacts] = found

    def _rows(self, doing: str) -> Iterator[ItemRow]:
        table = self._catalog.table.select(ItemRow._fields)
        with tqdm(total=table.num_rows, desc=doing, unit="item", delay=3, leave=False) as bar:
            for batch in table.to_batches(max_chunksize=1 << 14):
                yield from map(ItemRow, *(batch.column(name).to_pylist() for name in ItemRow._fields))
                bar.update(batch.num_rows)

    @cached_property
    def siblings(self) -> dict[str, np.ndarray]:
        """Items of each kind, ascending int64."""
        rows: defaultdict[str, list[int]] = defaultdict(list)
        for item, facts in enumerate(self.items):
            if facts.kind:
                rows[facts.kind].append(item)
        return {kind: np.array(items) for kind, items in rows.items()}

    @cached_property
    def price_levels(self) -> dict[str, tuple[float, float]]:
        """Lower and upper quartile of the prices of each kind with enough of them."""
        levels = {}
        for kind, items in self.siblings.items():
            prices = self.prices_N[items]
            prices = prices[~np.isnan(prices)]
            if len(prices) >= LEAST_SIBLINGS:
                low, high = np.quantile(prices, [0.25, 0.75], method="nearest")
                levels[kind] = float(low), float(high)
        return levels

    # -- one item --

    def _item(self, row: ItemRow) -> ItemFacts:
        lexicon = self.lexicon
        parts = lexicon.parts(row.title, row.brand)
        category = next((name for name in reversed(row.categories) if name), "")
        place = self._category_place(parts.first, category)
        if place is not None:
            start, end, category = place, place + len(words_of(category)), category
        else:
            found, category = lexicon.thing_place(parts.first), ""
            start, end = (lexicon.thing_start(parts.first, found), found + 1) if found is not None else (0, 0)
        words = parts.first[start:end]
        thing = " ".join(words).lower()
        traits = [
            *(self._before(parts.first[:start], words[-1]) if words else ()),
            *self._colours([parts.first[end:] if words else parts.first, *parts.others]),
            *self._described(row),
            *(Trait("size", size) for size in measures(row.title)[:1]),
            *(Trait("pack", pack) for pack in packs(row.title)[:1]),
        ]
        once: dict[str, Trait] = {}
        for trait in traits:
            once.setdefault(key(trait.words), trait)
        given = bool(row.brand)
        return ItemFacts(
            thing=thing,
            category=category,
            kind=category or key(thing),
            brand=row.brand if given else _spoken(parts.brand),
            brand_given=given,
            traits=tuple(once.values()),
            keywords=self._keywords([parts.first, *parts.others]),
        )

    def _category_place(self, first: list[str], category: str) -> int | None:
        """Where the first segment says its own category, word by word."""
        told = list(words_of(category))
        keys = [key(word) for word in first]
        places = range(len(keys) - len(told), -1, -1)
        return next(
            (place for place in places if told != [""] and keys[place : place + len(told)] == told), None
        )

    def _before(self, words: list[str], thing: str) -> list[Trait]:
        """What stands before the thing and is known to describe it, from the nearest word on outwards."""
        found: list[Trait] = []
        end = len(words)
        while end and len(found) < _MOST_BEFORE:
            low = words[end - 1].lower()
            size = 1
            if end > 1 and self.lexicon.is_pair(words[end - 2], words[end - 1]):
                size = 2
            unit = " ".join(words[end - size : end]).lower()
            if low in COLOURS and size == 1:
                found.append(Trait("colour", low))
            elif low not in NEVER_ALONE and self.lexicon.describes(unit, thing):
                found.append(Trait("before", unit))
            else:
                break
            end -= size
        return found[::-1]

    def _colours(self, parts: list[list[str]]) -> list[Trait]:
        """Colours that end a segment: "..., Matte Black"; "green tea" is no colour."""
        return [Trait("colour", part[-1].lower()) for part in parts if part and part[-1].lower() in COLOURS]

    def _described(self, row: ItemRow) -> Iterator[Trait]:
        told = [*segments(row.title), *segments(row.description)[:_DESCRIPTION_PARTS]]
        for part in told:
            for role, words in described(part):
                if self.lexicon.is_phrase(words):
                    yield Trait("for" if role == "for" else "with", words)

    def _keywords(self, parts: list[list[str]]) -> tuple[str, ...]:
        """Words a searcher would pick: not glue, not in every tenth title, rarer ones first to be kept."""
        told = dict.fromkeys(word.lower() for part in parts for word in part)
        usual = 0.1 * self._catalog.num_items + self.lexicon.least
        kept = [
            word
            for word in told
            if word not in NEVER_ALONE and len(word) > 2 and self.lexicon.titles_with[key(word)] <= usual
        ]
        return tuple(kept[:_MOST_KEYWORDS])


def _spoken(words: list[str]) -> str:
    """A brand as people write it: "MAYBELLINE NEW YORK" is shouted."""
    return " ".join(word.capitalize() if word.isupper() and len(word) > 4 else word for word in words)
