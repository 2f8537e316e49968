"""Requests out of review texts: short sentences in which buyers say what an item is or does.

Read are Amazon's reviews of 2014 and 2018 (`reviewerID`, `asin`, `reviewText`, `summary`) and 2023
(`user_id`, `parent_asin`, `text`, `title`), one JSON object a line, plain or gzip, as a stream; and
`NAME.review.json` as LC-Rec's and MiniOneRec's scripts can write it, one object
`{"(user, item)": {"review": ..., "summary": ...}}` with the numbers that `NAME.user2id` and `NAME.item2id`
beside it give keys for.

Only reviews that belong to a train interaction are used: what a user wrote of a valid or test item stays
unknown.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sft.intents.facts import CatalogFacts
from sft.intents.lcrec_texts import PeerKeys
from sft.intents.titles import NEVER_ALONE, key
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sources.lines import BadLines, json_lines
from sid_builder.sources.peer_files import read_json_object

PEER_SUFFIX = ".review.json"
# Keys of (user, item, summary, text).
_LAYOUTS = (
    ("reviewerID", "asin", "summary", "reviewText"),
    ("user_id", "parent_asin", "title", "text"),
)
_PEER_KEY = re.compile(r"\((\d+), ?(\d+)\)")
_SENTENCE_END = re.compile(r"[.!?;\n]+|\s-+\s|&#\d+;|<br ?/?>")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
# Sentences about people, about the purchase, or about nothing but the writer's opinion describe no item.
_NO_DESCRIPTION = re.compile(
    r"\b(?:i|i'?m|i'?ve|i'?d|me|my|mine|we|us|our|you|your|he|she|they|his|her|him|husband|wife|daughter|son|"
    r"friend|mom|stars?|love[ds]?|loving|recommend\w*|review\w*|amazon|seller|ship\w*|arriv\w*|receiv\w*|order\w*|"
    r"bought|buy\w*|purchas\w*|return\w*|refund\w*|wast\w*|disappoint\w*|worth|money|price[ds]?|this|that|it'?s?|"
    r"these|those|product|item|thing|not|never|don'?t|doesn'?t|didn'?t|won'?t|broke\w*|too|as|so)\b",
    re.IGNORECASE,
)
_LEAST_WORDS, _MOST_WORDS = 3, 10
_LEAST_TELLING = 2  # words that few items' titles have


class Review(NamedTuple):
    """One review, by the keys of its user and item."""

    user: str
    item_id: str
    texts: tuple[str, str]


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
    for review in _peer_reviews(path) if path.name.endswith(PEER_SUFFIX) else _amazon_reviews(path):
        item = pairs.item(review.user, review.item_id)
        if item < 0:
            continue
        for text in review.texts:
            for sentence in _SENTENCE_END.split(text):
                sentence = " ".join(sentence.split()).strip(" ,:-*\"'")
                if describes(sentence, facts, item):
                    yield item, sentence.lower()


def _amazon_reviews(path: Path) -> Iterator[Review]:
    for label, row in json_lines(path, BadLines()):
        names = next((names for names in _LAYOUTS if names[0] in row and names[1] in row), None)
        if names is None:
            raise InputError(
                f"{label}: has neither reviewerID and asin nor user_id and parent_asin; give "
                "Amazon's review files, or JSONL with these keys"
            )
        user, item_id, summary, text = (str(row.get(name) or "") for name in names)
        yield Review(user, item_id, (summary, text))


def _peer_reviews(path: Path) -> Iterator[Review]:
    keys = PeerKeys(path, PEER_SUFFIX)
    for pair, texts in read_json_object(path).items():
        label = f"{path.name}: {pair!r}"
        match = _PEER_KEY.fullmatch(pair)
        if match is None or not isinstance(texts, dict):
            raise InputError(
                f'{label} is no review; expected "(user, item)": {{"review": ..., "summary": ...}}'
            )
        user, item = keys.key("user", match[1], label), keys.key("item", match[2], label)
        yield Review(user, item, (str(texts.get("summary") or ""), str(texts.get("review") or "")))


def describes(sentence: str, facts: CatalogFacts, item: int) -> bool:
    """Whether a sentence is short, is about the item alone, and says more than that it is one of its kind.

    It has to name the thing or a trait that the item has, and two words that few titles have.
    """
    words = _WORD.findall(sentence)
    if not _LEAST_WORDS <= len(words) <= _MOST_WORDS or _NO_DESCRIPTION.search(sentence):
        return False
    own = facts.items[item]
    told = {key(word) for word in words if word.lower() not in NEVER_ALONE and len(word) > 2}
    known = {key(part) for words in (own.thing, *own.names) for part in words.split()}
    known |= {key(part) for trait in own.traits for part in trait.words.split()}
    return bool(told & known) and sum(map(facts.is_telling, told)) >= _LEAST_TELLING
