"""What is asked of the language model: one question per item, per train case or per user.

Questions about users see train's interactions alone; the answers they get are data of split train.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from prompts.intents import IntentKind
from sft.endpoint_intents.prompts import EndpointPrompts
from sid_builder.interactions import Histories, Interactions
from sid_builder.item_text import item_texts
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class Question:
    """One request to the endpoint.

    Attributes:
        about: what it is about, for people who read the log: "item P0003" or "user u7 before item P0003".
        number: how many texts are wanted.
        item, history, user: what the intents made of the answer will carry.
        hidden: items whose title must not be in the answer.
    """

    kind: IntentKind
    about: str
    messages: Sequence[dict[str, str]]
    number: int
    item: int = -1
    history: tuple[int, ...] = ()
    user: str = ""
    hidden: tuple[int, ...] = ()

    def key(self, model: str, body: dict[str, Any]) -> str:
        """Names the question and everything that shapes its answer: an answered key is never asked again."""
        content = json.dumps([self.kind, self.about, model, self.messages, body], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class QuestionWriter:
    """Questions over a catalogue and its interactions."""

    index: SidIndex
    interactions: Interactions
    prompts: EndpointPrompts
    seed: int = 0

    @cached_property
    def _texts(self) -> list[str]:
        texts = item_texts(self.index.catalog, self.prompts.item)
        return [" ".join(text.split()[: self.prompts.max_item_words]) for text in texts]

    def about_items(self, most: int, number: int) -> Iterator[Question]:
        """For `number` requests per item that is on the shelf and has a text; `most` items, 0 for all."""
        ids, texts = self.index.catalog.item_ids, self._texts
        known = [item for item in np.flatnonzero(self.index.live_N).tolist() if texts[item]]
        for place in self._drawn(len(known), most):
            item = known[place]
            messages = self.prompts.messages("query", number, item=texts[item])
            yield Question("query", f"item {ids[item]}", messages, number, item, hidden=(item,))

    def about_cases(self, most_users: int, per_user: int) -> Iterator[Question]:
        """For the intention behind train cases: the newest `per_user` of each user, 0 for all."""
        for user, cases in self._train_users(most_users):
            for case in cases[-per_user:]:
                item = int(self._train.targets_C[case])
                history = self._newest(self._train.history(case))
                texts = {"items": self._listed(history), "item": self._texts[item]}
                messages = self.prompts.messages("intention", 1, **texts)
                about = f"user {user}, choice {int(self._train.position_C[case]) + 1}"
                yield Question("intention", about, messages, 1, item, history, user, hidden=(item,))

    def about_users(self, most_users: int) -> Iterator[Question]:
        """For the taste of users, by all they chose in train."""
        for user, cases in self._train_users(most_users):
            last = cases[-1]
            history = self._newest(np.append(self._train.history(last), self._train.targets_C[last]))
            messages = self.prompts.messages("preference", 1, items=self._listed(history))
            yield Question(
                "preference", f"user {user}", messages, 1, history=history, user=user, hidden=history
            )

    @cached_property
    def _train(self) -> Histories:
        return self.index.reachable(self.interactions.histories("train"))

    def _train_users(self, most: int) -> Iterator[tuple[str, range]]:
        """Users with train cases, and which of `_train` are theirs, oldest first."""
        starts = np.flatnonzero(np.diff(self._train.sequence_C, prepend=-1))
        ends = np.append(starts[1:], len(self._train))
        for number in self._drawn(len(starts), most):
            first, end = int(starts[number]), int(ends[number])
            yield str(self.interactions.users[int(self._train.sequence_C[first])]), range(first, end)

    def _drawn(self, size: int, most: int) -> list[int]:
        """All of 0..size-1, or the first `most` of a seeded order, ascending: asking for more later keeps
        those asked for before.
        """
        if not 0 < most < size:
            return list(range(size))
        return np.sort(np.random.default_rng(self.seed).permutation(size)[:most]).tolist()

    def _newest(self, history: np.ndarray) -> tuple[int, ...]:
        return tuple(history[-self.prompts.max_items :].tolist())

    def _listed(self, items: Sequence[int]) -> str:
        return "\n".join(f"{number}. {self._texts[item]}" for number, item in enumerate(items, start=1))
