"""What a catalogue's own titles tell about words: which name things, which describe them, which are brands.

No dictionary is asked: a word that many titles' first part ends with names a thing ("lipstick"); one that
stands before such a word in the titles of several brands describes it ("waterproof mascara"); one that titles
nearly always begin with is a brand. So it works for any shop, and knows nothing of rare things.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from prompts.word_index import words_of
from sft.intents.titles import COLOURS, DESCRIBING, JOINING, NEVER_ALONE, PREPOSITIONS, key, segments

# Fewer titles than this are chance; large catalogues need more, which also bounds the tables.
LEAST_TITLES = 4
_TITLES_A_FLOOR = 20_000
_MOST_BRANDS_KEPT = 4
_REACH = 4  # words before a thing that may describe it
_LONGEST_PHRASE = 5
_LONGEST_DESCRIPTION = 30  # words; in longer ones "for ..." is about anything
_NO_NAMES = COLOURS | NEVER_ALONE
_ENDS_PHRASE = PREPOSITIONS - JOINING
_NOT_IN_PHRASES = NEVER_ALONE - JOINING - {"all", "type", "types"}


class ItemRow(NamedTuple):
    """What is read of an item."""

    title: str
    description: str
    brand: str
    categories: list[str]

    @property
    def category(self) -> str:
        """The narrowest one; empty where there is none."""
        return next((name for name in reversed(self.categories) if name), "")


@dataclass(slots=True)
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


class Span(NamedTuple):
    """Words [start, end) of a segment of a title."""

    part: int
    start: int | None
    end: int


class Lexicon:
    """Counts over a catalogue, which is read three times; no text is kept.

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
            named, ended = _naming_part(self.parts(row.title, row.brand).first)
            if len(named) > 1 and ended:
                ends[key(named[-1])] += 1
        self.things = {
            word: n / self.titles_with[word]
            for word, n in ends.items()
            if n >= self.least and n >= 0.15 * self.titles_with[word]
        }

        self._before: defaultdict[tuple[str, str], _Uses] = defaultdict(_Uses)
        self._near: defaultdict[tuple[str, str], _Uses] = defaultdict(_Uses)
        self._phrases: defaultdict[str, _Uses] = defaultdict(_Uses)
        self._thing_titles: Counter[str] = Counter()
        for row in rows():
            self._count_descriptions(row)
        self._described_by: defaultdict[str, set[str]] = defaultdict(set)
        for (unit, thing), uses in self._before.items():
            if uses.count > 1:
                self._described_by[unit].add(thing)

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
        told = [parts.first, *parts.others]
        span = self._found(told, row.category)
        if span is not None:
            thing = key(told[span.part][span.end - 1])
            self._thing_titles[thing] += 1
            start = span.end - 1 if span.start is None else span.start
            near = told[span.part][max(0, start - _REACH) : start]
            for size in (1, 2):
                units = [near[place : place + size] for place in range(len(near) - size + 1)]
                for unit in units:
                    if self._is_common(unit):
                        self._near[key(" ".join(unit)), thing].add(brand)
                if units and self._is_common(units[-1]):
                    self._before[key(" ".join(units[-1])), thing].add(brand)
        for words in {words for _, words in self.phrases_of(row)}:
            if self._is_common(words.split()):
                self._phrases[key(words)].add(brand)

    def _is_common(self, words: Sequence[str]) -> bool:
        """Whether the words could be in enough titles; most of a large catalogue's are not."""
        return all(self.titles_with[key(word)] >= self.least for word in words)

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
        for size in (3, 2):
            together = self._starts[tuple(keys[:size])] if len(keys) >= size else 0
            # "Burt's Bees" always goes on so; "Konad Stamping" does not, and "stamping" is a word of its own.
            own = together >= 0.5 * self.titles_with[keys[size - 1]] if together else False
            if together >= 0.85 * alone or (together >= 0.5 * alone and own):
                return size
        return 1

    def thing_span(self, parts: Sequence[list[str]], category: str) -> Span | None:
        """Which words name the thing: its category, word by word, or the last word known to name things,
        with what belongs to it ("nail polish").

        Args:
            parts: segments of the title, the brand left out.
        """
        found = self._found(parts, category)
        if found is None or found.start is not None:
            return found
        return found._replace(start=self._name_start(parts[found.part], found.end - 1))

    def _found(self, parts: Sequence[list[str]], category: str) -> Span | None:
        """The same; `start` is None where only the last word is known yet."""
        told = words_of(category)
        keys = [key(word) for word in parts[0]]
        for place in range(len(keys) - len(told), -1, -1):
            if told and keys[place : place + len(told)] == told:
                return Span(0, place, place + len(told))
        named = [_naming_part(part)[0] for part in parts]
        # The last word of a part; else one that nearly always names things; else, in the first part, any.
        for least, among in ((0.0, named), (0.4, named), (0.2, named[:1])):
            for number, words in enumerate(among):
                for place in reversed(range(len(words))):
                    last = place + 1 == len(words)
                    if (last or least) and self.things.get(key(words[place]), 0.0) > least:
                        return Span(number, None, place + 1)
        return None

    def _name_start(self, words: list[str], place: int) -> int:
        start, name = place, key(words[place])
        titles = self._thing_titles[name]
        for before in range(place - 1, max(-1, place - 3), -1):
            uses = self._before.get((key(" ".join(words[before:place])), name))
            low = words[before].lower()
            known = uses is not None and len(uses.brands) > 2 and uses.count >= max(self.least, 0.08 * titles)
            plain = low.isalpha() or (low[0].isdigit() and len(low) == 2)  # "3d printer"
            if not known or not plain or low in _NO_NAMES or describes_by_form(low):
                break
            start = before
        # "eau de parfum" and "soak off gel" are not cut in the middle.
        return start - 1 if start and words[start].lower() in ("de", "off", "up", "in") else start

    def describes(self, unit: str, thing: str) -> bool:
        """Whether several brands put these words before this thing, or right before three things."""
        uses = self._near.get((key(unit), key(thing)))
        if uses is not None and uses.count > 2 and len(uses.brands) > 1:
            return True
        return len(self._described_by.get(key(unit), ())) > 2

    def is_pair(self, left: str, right: str) -> bool:
        """Whether two words belong together ("stainless steel", "dry hair")."""
        pair = self._pairs[key(left), key(right)]
        rarer = min(self.titles_with[key(left)], self.titles_with[key(right)])
        return pair >= self.least and pair > 0.25 * rarer

    def phrases_of(self, row: ItemRow) -> Iterator[tuple[str, str]]:
        """("for" or "with", words behind it) of the title and of a description that is short enough."""
        parts = segments(row.title)
        described = segments(row.description)
        for part in parts:
            yield from _phrases(part)
        if sum(map(len, described)) <= _LONGEST_DESCRIPTION:
            for part in described:
                yield from _phrases(part)

    def is_phrase(self, words: str) -> bool:
        """Whether several brands say "for" or "with" this."""
        if words.count(" ") > 1 and key(words.rsplit(" ", 1)[-1]) in self.things:
            return False  # "for women eau de parfum spray" names the thing once more
        uses = self._phrases.get(key(words))
        return uses is not None and uses.count >= self.least - 1 and len(uses.brands) > 1


def _naming_part(first: list[str]) -> tuple[list[str], bool]:
    """Words up to a preposition, without sizes, colours and numbers at the end; whether what follows them
    shows that the last one names the thing: nothing, or "for ...", but no number ("SPF 30").
    """
    ended = True
    for place, word in enumerate(first):
        if word.lower() in PREPOSITIONS and place:
            first, ended = first[:place], word.lower() in ("for", "with", "by", "from")
            break
    while first and (first[-1].lower() in _NO_NAMES or not first[-1].isalpha() or len(first[-1]) < 3):
        ended = not any(letter.isdigit() for letter in first[-1])
        first = first[:-1]
    return first, ended


def _phrases(part: list[str]) -> Iterator[tuple[str, str]]:
    """What stands behind "for" and "with", to the segment's end or the next preposition."""
    for place, word in enumerate(part):
        if word.lower() not in DESCRIBING:
            continue
        words = []
        for behind in part[place + 1 :]:
            if behind.lower() in _ENDS_PHRASE:
                break
            words.append(behind.lower())
        ends = words[:1] + words[-1:]
        if (
            ends
            and len(words) <= _LONGEST_PHRASE
            and words[0][0].isalpha()
            and not JOINING.intersection(ends)
            and not _NOT_IN_PHRASES.intersection(words)
        ):
            yield word.lower(), " ".join(words)


_DESCRIBING_ENDINGS = (
    *("proof", "free", "less", "able", "ible", "ful", "ous", "ive", "ing", "ed"),
    *("ic", "al", "ary", "y", "light", "weight", "en"),
)


def describes_by_form(word: str) -> bool:
    """Whether a word ends like an adjective. A wrong guess costs grace, never truth."""
    return word.endswith(_DESCRIBING_ENDINGS) and word not in ("body", "accessory", "eyelash", "vinyl")
