"""What is true of each item, in words that a request can use.

Legend: N items.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from sft.intents.lexicon import ItemRow, Lexicon
from sft.intents.titles import (
    COLOURS,
    NEVER_ALONE,
    PREPOSITIONS,
    article,
    is_plural,
    is_uncounted,
    key,
    measures,
    packs,
)
from sid_builder.catalog import Catalog

# Fewer siblings than this make no "cheap" and no word for their kind.
LEAST_SIBLINGS = 8
_MOST_BEFORE = 4  # words and pairs before the thing's name
_MOST_NAMES = 6


class Trait(NamedTuple):
    """Something an item is or has.

    `role` says how it is spoken: "before" the thing ("waterproof"), as a "colour", "for" or "with" something,
    as a "size" ("12 oz") or a "pack" ("pack of 3"). A "line" is what its maker alone puts before the thing
    ("color show" of a lacquer): siblings cannot be said to lack it.
    """

    role: Literal["line", "before", "colour", "for", "with", "size", "pack"]
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
        names: what else the title says, one or two words at a time.
    """

    thing: str
    category: str
    kind: str
    brand: str
    brand_given: bool
    traits: tuple[Trait, ...]
    names: tuple[str, ...]

    @property
    def plural(self) -> bool:
        return bool(self.thing) and is_plural(self.thing.rsplit(" ", 1)[-1])

    def named(self, words: str) -> str:
        """Those words with the article the thing needs: "a red tent", "some red socks"."""
        some = self.plural or is_uncounted(self.thing.rsplit(" ", 1)[-1])
        return f"some {words}" if some else f"{article(words)} {words}"


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
    def _sharing(self) -> dict[str, Counter[str]]:
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for facts in self.items:
            counts[facts.kind].update(trait.words for trait in facts.traits)
            counts[facts.kind][facts.brand] += 1
        return counts

    def num_siblings(self, facts: ItemFacts) -> int:
        """How many items are of its kind, itself among them; all where it has none."""
        return len(self.siblings[facts.kind]) if facts.kind else self._catalog.num_items

    def share(self, facts: ItemFacts, words: str) -> float:
        """The share of an item's kind that has a trait or a brand; of all items, one that says a name."""
        siblings = self._sharing[facts.kind].get(words)
        if siblings is not None:
            return siblings / self.num_siblings(facts)
        titles = min(self.lexicon.titles_with[key(word)] for word in words.split())
        return max(titles, 1) / self._catalog.num_items

    def is_telling(self, word: str) -> bool:
        """Whether a word (a `key`) is in some titles and not in many: it tells items apart."""
        titles = self.lexicon.titles_with[word]
        return 0 < titles <= 0.05 * self._catalog.num_items + self.lexicon.least

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
        parts = self.lexicon.parts(row.title, row.brand)
        told = [parts.first, *parts.others]
        span = self.lexicon.thing_span(told, row.category)
        thing, before = "", []
        if span is not None:
            words = told[span.part]
            thing = " ".join(words[span.start : span.end]).lower()
            before, left = self._before(words[: span.start], words[span.end - 1])
            told[span.part : span.part + 1] = [words[:left], words[span.end :]]
        category = row.category if row.category and key(thing) == key(row.category) else ""
        phrases = self.lexicon.phrases_of(row)
        traits = [
            *before,
            *self._colours(told),
            *(Trait(role, words) for role, words in phrases if self.lexicon.is_phrase(words)),
            *(Trait("size", size) for size in measures(row.title)[:1]),
            *(Trait("pack", pack) for pack in packs(row.title)[:1]),
        ]
        once: dict[str, Trait] = {}
        for trait in traits:
            once.setdefault(key(trait.words), trait)
        once.pop(key(thing), None)
        given = bool(row.brand)
        brand = row.brand if given else _spoken(parts.brand)
        return ItemFacts(
            thing=thing,
            category=category,
            kind=category or key(thing),
            brand=brand,
            brand_given=given,
            traits=tuple(once.values()),
            names=self._names(told, {part for words in (thing, brand, *once) for part in key(words).split()}),
        )

    def _before(self, words: list[str], thing: str) -> tuple[list[Trait], int]:
        """What stands before the thing, in order, and how many words are left before that.

        From the nearest word on outwards as far as it is known to describe the thing, then up to two words
        of the maker's own.
        """
        found: list[Trait] = []
        end = len(words)
        while end and len(found) < _MOST_BEFORE:
            low = words[end - 1].lower()
            pair = end > 1 and low not in COLOURS and self.lexicon.is_pair(words[end - 2], words[end - 1])
            unit = words[end - 1 - pair : end]
            if low in COLOURS:
                found.append(Trait("colour", low))
            elif any(map(_says_little, unit)) or not self.lexicon.describes(" ".join(unit), thing):
                break
            else:
                found.append(Trait("before", " ".join(unit).lower()))
            end -= len(unit)
        first = end
        while first and end - first < 2 and not self._is_no_name(words[first - 1].lower()):
            first -= 1
        if first < end:
            found.append(Trait("line", " ".join(words[first:end]).lower()))
        return found[::-1], first

    def _colours(self, parts: list[list[str]]) -> list[Trait]:
        """Colours that end a segment: "..., Matte Black"; "green tea" is no colour."""
        return [Trait("colour", part[-1].lower()) for part in parts if part and part[-1].lower() in COLOURS]

    def _names(self, parts: list[list[str]], told: Collection[str]) -> tuple[str, ...]:
        """What else the title says, one or two words at a time: lines and shades ("tenacious teal").

        Words of `told` and what stands behind a preposition are left out.
        """
        found: list[str] = []
        for part in parts:
            run: list[str] = []
            for word in [*part, ""]:
                low = word.lower()
                if not self._is_no_name(low) and key(low) not in told:
                    run.append(low)
                    continue
                found += [" ".join(run[place : place + 2]) for place in range(0, len(run), 2)]
                run = []
                if low in PREPOSITIONS:
                    break
        return tuple(dict.fromkeys(found))[:_MOST_NAMES]

    def _is_no_name(self, word: str) -> bool:
        """Digits, glue, and what nearly all titles say."""
        return len(word) < 3 or not word.isalpha() or word in NEVER_ALONE or not self.is_telling(key(word))


def _says_little(word: str) -> bool:
    return word.lower() in NEVER_ALONE or not any(letter.isalpha() for letter in word)


def _spoken(words: list[str]) -> str:
    """A brand as people write it: "MAYBELLINE NEW YORK" is shouted."""
    return " ".join(word.capitalize() if word.isupper() and len(word) > 4 else word for word in words)
