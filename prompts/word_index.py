"""Which texts hold a word or a phrase, whatever its case, plural, punctuation or unit's spelling.

"12 Fl. Ounces" is "12oz". "fragrance-free" and "no fragrance" do not hold the word "fragrance": both are
words of their own, so that asking for a thing never finds its absence.

Legend: N texts, T tokens of all texts in order, V distinct tokens.
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# What a number is read together with. Spellings follow in `_REWRITES`, after plurals are gone.
_UNITS = "ounce|oz|inch|pound|lb|gram|g|kg|mm|cm|ml|liter|l|ft|pack|piece|pc|count|ct|volt|v|watt|w"
_REWRITES = [
    (r"['’`]", ""),
    (r"(\d)[.,](\d)", r"\1_\2"),
    (rf"(\d)[\s-]*(?:fluid |fl\.? ?)?((?:{_UNITS})(?:s|es)?)\b", r"\1\2"),
    (r"[^\p{L}\p{N}_\n]+", " "),
    (r"\n", " \n "),
    # Plurals, as Harman's "s" stemmer has them (How effective is suffixing?, JASIS 1991), "es" after a hiss.
    (r"([a-z]{2})ies\b", r"\1y"),
    (r"(ss|x|zz|ch|sh|inch)es\b", r"\1"),
    (r"([^\Wus])s\b", r"\1"),
    (r"(\d)ounce\b", r"\1oz"),
    (r"(\d)pound\b", r"\1lb"),
    (r"(\d)gram\b", r"\1g"),
    (r"(\d)(?:piece|count|ct)\b", r"\1pc"),
    (r"\b(?:free of|free from|no|non|without) (\w+)", r"no-\1"),
    (r"(\w+) free\b", r"\1-free"),
    (r" +", " "),
    (r"^ ", ""),
    (r" $", ""),
]


def normal_texts(texts: pa.Array) -> pa.Array:
    """Texts as the words that are compared, between single spaces; a line's end is a word of its own.

    Args:
        texts: string [N].
    """
    texts = pc.utf8_lower(texts.cast(pa.large_string()))
    for pattern, replacement in _REWRITES:
        texts = pc.replace_substring_regex(texts, pattern=pattern, replacement=replacement)
    return texts


@lru_cache(maxsize=1 << 16)
def words_of(phrase: str) -> tuple[str, ...]:
    """The words of one phrase in that form."""
    return tuple(normal_texts(pa.array([phrase]))[0].as_py().split(" "))


class WordIndex:
    """Positions of every word in N texts: 12 bytes a word, and the distinct words.

    Args:
        texts: in order; read once, in batches.
    """

    def __init__(self, texts: Iterable[str], batch: int = 1 << 15) -> None:
        self._id_of: dict[str, int] = {}
        ids: list[np.ndarray] = []
        lengths: list[np.ndarray] = []
        held: list[str] = []
        for text in texts:
            held.append(text)
            if len(held) == batch:
                self._add(held, ids, lengths)
                held = []
        self._add(held, ids, lengths)
        length_N = np.concatenate(lengths)
        self.ids_T = np.concatenate(ids)
        self.starts_N1 = np.concatenate([[0], np.cumsum(length_N)])
        self._row_T = np.repeat(np.arange(len(length_N), dtype=np.int32), length_N)
        self._order_T = np.argsort(self.ids_T, kind="stable").astype(
            np.int32 if len(self.ids_T) < 1 << 31 else np.int64
        )
        self._starts_V1 = np.searchsorted(self.ids_T[self._order_T], np.arange(len(self._id_of) + 1))

    def _add(self, texts: list[str], ids: list[np.ndarray], lengths: list[np.ndarray]) -> None:
        words = pc.split_pattern(normal_texts(pa.array(texts, pa.string())), " ")
        lengths.append(pc.list_value_length(words).to_numpy())
        coded = pc.list_flatten(words).dictionary_encode()
        known = [self._id_of.setdefault(word, len(self._id_of)) for word in coded.dictionary.to_pylist()]
        ids.append(np.array(known, dtype=np.int32)[coded.indices.to_numpy()])

    def __len__(self) -> int:
        return len(self.starts_N1) - 1

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
        """Ids of the phrase's words; None when one of them is in no text."""
        ids = tuple(self._id_of.get(word, -1) for word in words_of(phrase))
        return None if -1 in ids else ids
