"""Items by their titles: which one a client means, and which ones a text mentions.

Titles are compared word by word as `prompts.word_index` does, whatever their case, plural and punctuation.
Where several items share a title, the most frequent in train is meant.

Legend: N items, T titles that have words.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prompts.word_index import words_of
from sid_builder.sid_index import SidIndex

LEAST_MENTION_WORDS = 2  # an item called "Red" is not meant wherever something is red


@dataclass(frozen=True)
class Mention:
    """Words of a text, as they are compared, that are an item's title."""

    text: str
    item_index: int


class TitleIndex:
    """Every title's words as a 64-bit key, sorted: 12 bytes an item; what is found is compared in full.

    Attributes:
        key_T, item_T: uint64 and int32; of equal keys the item most frequent in train comes first.
        lengths_of: first word of a title -> numbers of words that titles with it have, longest first.
    """

    def __init__(self, index: SidIndex) -> None:
        self.titles = index.catalog.titles
        keys_N = np.zeros(len(self.titles), dtype=np.uint64)
        titled_N = np.zeros(len(self.titles), dtype=bool)
        lengths: dict[str, set[int]] = {}
        for item, title in enumerate(self.titles):
            if words := words_of(title):
                keys_N[item], titled_N[item] = _key(words), True
                lengths.setdefault(words[0], set()).add(len(words))
        titled_T = np.flatnonzero(titled_N)
        order_T = np.lexsort((titled_T, -index.train_counts_N[titled_T], keys_N[titled_T]))
        self.item_T = titled_T[order_T].astype(np.int32)
        self.key_T = keys_N[self.item_T]
        self.lengths_of = {word: sorted(those, reverse=True) for word, those in lengths.items()}

    def item_of(self, title: str) -> int | None:
        """The item of that title, or None."""
        return self._find(words_of(title))

    def _find(self, words: Sequence[str]) -> int | None:
        if not words:
            return None
        key = _key(words)
        first = int(np.searchsorted(self.key_T, key))
        while first < len(self.key_T) and self.key_T[first] == key:
            if words_of(self.titles[self.item_T[first]]) == list(words):
                return int(self.item_T[first])
            first += 1
        return None

    def mentions(self, text: str) -> list[Mention]:
        """Titles of at least two words that stand in a text, in its order; of titles that overlap the one
        that begins first, and of those the longest.

        A text that is nothing but one title mentions none: it is a search for that item.
        """
        words = words_of(text)
        found, at = [], 0
        while at < len(words):
            for length in self.lengths_of.get(words[at], ()):
                if LEAST_MENTION_WORDS <= length <= len(words) - at:
                    item = self._find(words[at : at + length])
                    if item is not None:
                        found.append(Mention(" ".join(words[at : at + length]), item))
                        at += length
                        break
            else:
                at += 1
        alone = len(found) == 1 and found[0].text.split() == [word for word in words if word != "\n"]
        return [] if alone else found


def _key(words: Sequence[str]) -> np.uint64:
    digest = hashlib.blake2b("\0".join(words).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))
