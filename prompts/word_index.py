"""Which texts hold a word or a phrase, whatever its case, plural, punctuation or unit's spelling.

"12 Fl. Ounces" is "12oz". "fragrance-free" and "no fragrance" do not hold the word "fragrance": both are
words of their own, so that asking for a thing never finds its absence.

Legend: N texts, T words of all texts in order, V distinct words.
"""

import re
from array import array
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

_APOSTROPHES = str.maketrans("", "", "'’`")
_UNITS = "ounce|oz|inch|pound|lb|gram|g|kg|mm|cm|ml|liter|l|ft|pack|piece|pc|count|ct|volt|v|watt|w"
_MEASURE = re.compile(rf"(\d)[\s-]*(?:fluid |fl\.? ?)?((?:{_UNITS})(?:s|es)?)\b")
# A line's end is a word: it keeps phrases from reaching over it.
_WORD = re.compile(r"\n|\d+(?:[.,]\d+)+[^\W_]*|[^\W_]+")
_PLURAL_OF_HISS = re.compile(r"(?:ss|x|zz|ch|sh)es")
_UNIT_SPELLINGS = {"ounce": "oz", "pound": "lb", "gram": "g", "piece": "pc", "count": "pc", "ct": "pc"}
_NEGATIONS = frozenset(("no", "non", "without"))
_FREE_OF = (("free", "of"), ("free", "from"))


def words_of(text: str) -> list[str]:
    """The words of a text in the form in which they are compared."""
    text = text.lower().translate(_APOSTROPHES)
    words = [_singular(word) for word in _WORD.findall(_MEASURE.sub(r"\1\2", text))]
    if "free" in words or not _NEGATIONS.isdisjoint(words):
        words = _with_absences(words)
    return words


@lru_cache(maxsize=1 << 20)
def _singular(word: str) -> str:
    """Without the plural, after Harman's "s" stemmer (How effective is suffixing?, JASIS 1991), and with one
    spelling of a unit behind a number.
    """
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif _PLURAL_OF_HISS.search(word, max(0, len(word) - 4)):
        word = word[:-2]
    elif len(word) > 2 and word.endswith("s") and word[-2] not in "us":
        word = word[:-1]
    if word[0].isdigit():
        number = word.rstrip("abcdefghijklmnopqrstuvwxyz")
        return number + _UNIT_SPELLINGS.get(word[len(number) :], word[len(number) :])
    return word


def _with_absences(words: list[str]) -> list[str]:
    """One word for what is said to be absent: "no-dye" of "free of dyes", "dye-free" of "dye free"."""
    joined: list[str] = []
    place = 0
    while place < len(words):
        size = 1 if words[place] in _NEGATIONS else 2 if tuple(words[place : place + 2]) in _FREE_OF else 0
        if size and place + size < len(words):
            joined.append(f"no-{words[place + size]}")
            place += size
        elif words[place] == "free" and joined and joined[-1] != "\n":
            joined[-1] += "-free"
        else:
            joined.append(words[place])
        place += 1
    return joined


class WordIndex:
    """Positions of every word in N texts: 12 bytes a word, and the distinct words. Texts are read once."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._id_of: dict[str, int] = {}
        ids, lengths = array("i"), array("q")
        id_of = self._id_of
        for text in texts:
            words = words_of(text)
            ids.extend([id_of.setdefault(word, len(id_of)) for word in words])
            lengths.append(len(words))
        self.ids_T = np.frombuffer(ids, dtype=np.int32) if ids else np.empty(0, np.int32)
        length_N = np.array(lengths, dtype=np.int64)
        self.starts_N1 = np.concatenate([[0], np.cumsum(length_N)])
        self._row_T = np.repeat(np.arange(len(length_N), dtype=np.int32), length_N)
        order = np.argsort(self.ids_T, kind="stable")
        self._order_T = order.astype(np.int32) if len(order) < 1 << 31 else order
        self._starts_V1 = np.concatenate([[0], np.cumsum(np.bincount(self.ids_T, minlength=len(id_of)))])

    def rows(self, phrase: str) -> np.ndarray:
        """Texts that hold the phrase, ascending, each once, int32."""
        ids = self._ids(phrase)
        if ids is None:
            return np.empty(0, np.int32)
        sizes = [self._starts_V1[word + 1] - self._starts_V1[word] for word in ids]
        rarest = int(np.argmin(sizes))
        first, end = self._starts_V1[ids[rarest]], self._starts_V1[ids[rarest] + 1]
        begin = self._order_T[first:end].astype(np.int64) - rarest
        begin = begin[(begin >= 0) & (begin + len(ids) <= len(self.ids_T))]
        for place, word in enumerate(ids):
            begin = begin[self.ids_T[begin + place] == word]
        rows = self._row_T[begin]
        # A phrase that ends in another text than it began in is none.
        return np.unique(rows[self._row_T[begin + len(ids) - 1] == rows])

    def holds(self, row: int, phrase: str) -> bool:
        """Whether one text holds the phrase."""
        ids = self._ids(phrase)
        if ids is None:
            return False
        text = self.ids_T[self.starts_N1[row] : self.starts_N1[row + 1]].tolist()
        if len(ids) == 1:
            return ids[0] in text
        return any(
            word == ids[0] and tuple(text[place : place + len(ids)]) == ids for place, word in enumerate(text)
        )

    @lru_cache(maxsize=1 << 16)  # noqa: B019 (an index lives as long as the process that needs it)
    def _ids(self, phrase: str) -> tuple[int, ...] | None:
        """Ids of the phrase's words; None when it has none, or one that is in no text."""
        ids = tuple(self._id_of.get(word, -1) for word in words_of(phrase))
        return None if not ids or -1 in ids else ids
