"""What a catalogue's own titles tell about words: which name things, which describe them, which are brands.

No dictionary is asked: a word that many titles' first part ends with names a thing ("lipstick"); one that
stands right before such a word in the titles of several brands describes it ("waterproof mascara"); one that
titles nearly always begin with is a brand. So it works for any shop, and knows nothing of rare things.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from sft.intents.titles import COLOURS, DESCRIBING, NEVER_ALONE, PREPOSITIONS, key, segments

# Fewer titles than this are chance; large catalogues need more, which also bounds the tables.
LEAST_TITLES = 4
_TITLES_A_FLOOR = 20_000
_MOST_BRANDS_KEPT = 4


class ItemRow(NamedTuple):
    """What is read of an item."""

    title: str
    description: str
    brand: str
    categories: list[str]


@dataclass
class _Uses:
    """How often something was seen, and under which brands (the first few)."""

    count: int = 0
    brands: set[str] = field(default_factory=set)

    def add(self, brand: str) -> None:
        self.count += 1
        if len(self.brands) < _MOST_BRANDS_KEPT:
            self.brands.add(brand)


class TitleParts(NamedTuple):
    """A title taken apart, all words as spelled: `first` is the first segment behind the brand."""

    brand: list[str]
    first: list[str]
    others: list[list[str]]


class Lexicon:
    """Counts over a catalogue; `learn` reads it three times, in order, and keeps no text.

    Args:
        rows: gives all items anew each time it is called.
    """

    def __init__(self, rows: Callable[[], Iterable[ItemRow]]) -> None:
        self.titles_with: Counter[str] = Counter()
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._starts: Counter[tuple[str, ...]] = Counter()
        num_titles = 0
        for row in rows():
            num_titles += 1
            self._count_words(row)
        self.least = max(LEAST_TITLES, num_titles // _TITLES_A_FLOOR)
        self._starts = Counter({words: n for words, n in self._starts.items() if n >= self.least})
        self._pairs = Counter({pair: n for pair, n in self._pairs.items() if n >= self.least})

        ends: Counter[str] = Counter()
        for row in rows():
            named = self._naming_part(self.parts(row.title, row.brand).first)
            if len(named) > 1:
                ends[key(named[-1])] += 1
        self.things = {
            word: n for word, n in ends.items() if n >= self.least and n >= 0.2 * self.titles_with[word]
        }

        self._before: defaultdict[tuple[str, str], _Uses] = defaultdict(_Uses)
        self._described_by: defaultdict[str, set[str]] = defaultdict(set)
        self._phrases: defaultdict[str, _Uses] = defaultdict(_Uses)
        self._thing_titles: Counter[str] = Counter()
        for row in rows():
            self._count_descriptions(row)
        for (unit, thing), uses in self._before.items():
            if uses.count >= 2:
                self._described_by[unit].add(thing)
        kept = {at: uses for at, uses in self._before.items() if uses.count >= 2}
        self._before = defaultdict(_Uses, kept)

    # -- counting --

    def _count_words(self, row: ItemRow) -> None:
        parts = segments(row.title)
        self.titles_with.update({key(word) for part in parts for word in part})
        for part in parts:
            keys = [key(word) for word in part]
            self._pairs.update(zip(keys, keys[1:], strict=False))
        if parts and not row.brand:
            keys = [key(word) for word in parts[0][:3]]
            self._starts.update(tuple(keys[:size]) for size in range(1, len(keys) + 1))

    def _count_descriptions(self, row: ItemRow) -> None:
        parts = self.parts(row.title, row.brand)
        brand = key(" ".join(parts.brand)) or row.title.split(" ", 1)[0].lower()
        place = self.thing_place(parts.first)
        if place is not None:
            thing = key(parts.first[place])
            self._thing_titles[thing] += 1
            words = parts.first[:place]
            while words and words[-1].lower() in COLOURS:
                words = words[:-1]
            for size in (1, 2):
                if len(words) >= size and self._is_common(words[-size:]):
                    self._before[key(" ".join(words[-size:])), thing].add(brand)
        for phrase in {phrase for _, phrase in self._phrases_of(row)}:
            if self._is_common(phrase.split()):
                self._phrases[key(phrase)].add(brand)

    def _is_common(self, words: list[str]) -> bool:
        """Whether the words could be in enough titles; most of a large catalogue's are not."""
        return all(self.titles_with[key(word)] >= self.least for word in words)

    def _phrases_of(self, row: ItemRow) -> Iterator[tuple[str, str]]:
        for part in [*segments(row.title), *segments(row.description)]:
            yield from described(part)

    # -- asking --

    def parts(self, title: str, brand: str) -> TitleParts:
        """The title without its brand: the column's where there is one, else what titles begin with."""
        first, *others = segments(title) or [[]]
        size = 0
        if brand:
            told = [key(word) for part in segments(brand) for word in part]
            if [key(word) for word in first[: len(told)]] == told:
                size = len(told)
        else:
            size = self._brand_words([key(word) for word in first[:3]])
        return TitleParts(first[:size], first[size:], others)

    def _brand_words(self, keys: list[str]) -> int:
        """How many of a title's first words are its brand."""
        if not keys or keys[0] in NEVER_ALONE or keys[0] in COLOURS or not keys[0][0].isalpha():
            return 0
        alone = self._starts[keys[0],]
        if alone < self.least or alone < 0.8 * self.titles_with[keys[0]]:
            return 0
        longer = [size for size in (3, 2) if self._starts[tuple(keys[:size])] > 0.6 * alone]
        return next((size for size in longer if len(keys) >= size), 1)

    def _naming_part(self, first: list[str]) -> list[str]:
        """Words up to a preposition, without sizes, colours and numbers at the end."""
        for place, word in enumerate(first):
            if word.lower() in PREPOSITIONS and place:
                first = first[:place]
                break
        while first and (
            first[-1].lower() in COLOURS | NEVER_ALONE or not first[-1].isalpha() or len(first[-1]) < 3
        ):
            first = first[:-1]
        return first

    def thing_place(self, first: list[str]) -> int | None:
        """Where the first segment names the thing: the last word known for that before a preposition."""
        named = self._naming_part(first)
        return next(
            (place for place in reversed(range(len(named))) if key(named[place]) in self.things), None
        )

    def thing_start(self, words: list[str], place: int) -> int:
        """Where its name begins: "nail polish", "printer filament" are names of two words."""
        start, name = place, key(words[place])
        titles = self._thing_titles[name]
        for before in (place - 1, place - 2):
            if before < 0:
                break
            word = key(" ".join(words[before:place]))
            uses = self._before.get((word, name))
            low = words[before].lower()
            named = uses is not None and len(uses.brands) > 2 and uses.count >= max(self.least, 0.08 * titles)
            if not named or low in COLOURS | NEVER_ALONE or _describes_by_form(low):
                break
            start = before
        return start

    def describes(self, unit: str, thing: str) -> bool:
        """Whether several brands put these words before this thing, or before three things."""
        uses = self._before.get((key(unit), key(thing)))
        if uses is not None and uses.count >= 3 and len(uses.brands) > 1:
            return True
        return len(self._described_by.get(key(unit), ())) > 2

    def is_pair(self, left: str, right: str) -> bool:
        """Whether two words belong together ("stainless steel", "dry hair")."""
        pair = self._pairs[key(left), key(right)]
        rarer = min(self.titles_with[key(left)], self.titles_with[key(right)])
        return pair >= self.least and pair > 0.3 * rarer

    def is_phrase(self, phrase: str) -> bool:
        """Whether several brands say "for" or "with" this."""
        uses = self._phrases.get(key(phrase))
        return uses is not None and uses.count >= self.least - 1 and len(uses.brands) > 1


def described(part: list[str]) -> Iterator[tuple[str, str]]:
    """("for" or "with", up to four words behind it), to the segment's end or the next preposition."""
    for place, word in enumerate(part):
        if word.lower() not in DESCRIBING:
            continue
        words = []
        for behind in part[place + 1 :]:
            if behind.lower() in PREPOSITIONS:
                break
            words.append(behind.lower())
        plain = [word for word in words if word not in NEVER_ALONE or word in ("all", "types")]
        if 1 <= len(words) <= 4 and len(plain) == len(words) and words[0][0].isalpha():
            yield word.lower(), " ".join(words)


def _describes_by_form(word: str) -> bool:
    """Endings of words that describe; a wrong guess makes a name shorter, never untrue."""
    endings = (
        "proof",
        "free",
        "less",
        "able",
        "ible",
        "ful",
        "ous",
        "ive",
        "ing",
        "ed",
        "ic",
        "al",
        "ary",
        "y",
    )
    return word.endswith(endings) and word not in ("body",)
