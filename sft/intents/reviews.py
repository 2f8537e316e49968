"""Requests out of review texts: short sentences in which buyers say what an item is or does.

Reads Amazon's reviews of 2014, 2018 (`reviewerID`, `asin`, `reviewText`, `summary`) and 2023 (`user_id`,
`parent_asin`, `text`, `title`), one JSON object a line, plain or gzip, as a stream. Only reviews that belong
to a train interaction are read: what a user wrote of a valid or test item stays unknown.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sft.intents.facts import CatalogFacts
from sft.intents.titles import key
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sources.lines import BadLines, json_lines

# (user, item, summary, text) by layout.
_LAYOUTS = (
    ("reviewerID", "asin", "summary", "reviewText"),
    ("user_id", "parent_asin", "title", "text"),
)
_SENTENCE_END = re.compile(r"[.!?\n]+")
_PERSONAL = re.compile(r"\b(?:i|i'm|i've|my|me|we|our|you|he|she|they|him|her|husband|wife)\b", re.IGNORECASE)
_LEAST_WORDS, _MOST_WORDS = 3, 12


class TrainPairs:
    """Which (user, item) pairs are train interactions and nothing else: 8 bytes each.

    A pair that is a valid or test target as well, in whichever sequence of the user, is none: a review does
    not say which of the two interactions it is about.
    """

    def __init__(self, interactions: Interactions, item_ids: list[str]) -> None:
        users = interactions.users.dictionary_encode()  # a user may have many sequences
        self._user = {user: number for number, user in enumerate(users.dictionary.to_pylist())}
        self._item = {item_id: number for number, item_id in enumerate(item_ids)}
        user_S, items_I = users.indices.to_numpy().astype(np.int64), interactions.items_I.astype(np.int64)
        sequence_I = np.repeat(np.arange(interactions.num_sequences), np.diff(interactions.indptr_S1))
        within_I = np.arange(interactions.num_interactions) - interactions.indptr_S1[sequence_I]
        # Everything before a sequence's last train position is train, the first items of a history among it.
        # A row that train asks nothing of (pre-split data) is a history of valid or test: it proves nothing.
        trains_S = interactions.train_lo_S < interactions.train_hi_S
        known_I = trains_S[sequence_I] & (within_I < interactions.train_hi_S[sequence_I]) & (items_I >= 0)
        known = user_S[sequence_I[known_I]] << 32 | items_I[known_I]
        for cases in (interactions.histories("valid"), interactions.histories("test")):
            known = np.setdiff1d(known, user_S[cases.sequence_C] << 32 | cases.targets_C.astype(np.int64))
        self._pairs = known

    def item(self, user: str, item_id: str) -> int:
        """The item's index when the pair is train's, else -1."""
        user_number, item = self._user.get(user, -1), self._item.get(item_id, -1)
        if user_number < 0 or item < 0:
            return -1
        wanted = user_number << 32 | item
        place = int(np.searchsorted(self._pairs, wanted))
        return item if place < len(self._pairs) and self._pairs[place] == wanted else -1


def review_requests(path: Path, pairs: TrainPairs, facts: CatalogFacts) -> Iterator[tuple[int, str]]:
    """(item, sentence) of every review of a train interaction, in the file's order.

    Raises:
        InputError: naming the line that is no JSON object or has neither layout's keys.
    """
    for label, row in json_lines(path, BadLines()):
        names = next((names for names in _LAYOUTS if names[0] in row and names[1] in row), None)
        if names is None:
            raise InputError(
                f"{label}: has neither reviewerID and asin nor user_id and parent_asin; give "
                "Amazon's review files, or JSONL with these keys"
            )
        user, item_id, summary, text = (str(row.get(name) or "") for name in names)
        item = pairs.item(user, item_id)
        if item >= 0:
            for sentence in (summary, *_SENTENCE_END.split(text)):
                sentence = " ".join(sentence.split())
                if tells(sentence, facts, item):
                    yield item, sentence.rstrip(" ,;:-!.").lower()


def tells(sentence: str, facts: CatalogFacts, item: int) -> bool:
    """Whether a sentence is short, speaks of the thing and not of a person, and says more than its name."""
    words = sentence.split()
    if not _LEAST_WORDS <= len(words) <= _MOST_WORDS or _PERSONAL.search(sentence):
        return False
    own = facts.items[item]
    names = {key(word) for word in own.thing.split()}
    told = {key(word) for word in words}
    traits = {key(word) for trait in own.traits for word in trait.words.split()}
    return bool(told & (traits | {key(word) for word in own.keywords}) - names) or bool(names & told)
