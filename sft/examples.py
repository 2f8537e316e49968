"""One training row.

A row is a trunk with branches (see `prompts.branches`); an ordinary prompt and answer is a trunk alone.
Labels are already shifted: `shift_labels[i]` is what the model should say after `input_ids[i]`, `IGNORE`
where nothing is learnt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prompts.branches import IGNORE, Branch
from prompts.intents import Intent, IntentKind, Intents
from prompts.template import PromptTemplate, Rendered
from sid_builder.errors import InputError
from sid_builder.interactions import Histories, Interactions
from sid_builder.sid_index import SidIndex

Positions = Literal["all", "windows"]


@dataclass(frozen=True)
class TaskContext:
    """What a task may read: all of it, or one of `num_parts` contiguous parts, or a random `share` of that.

    Tasks learn from `train_cases`, `train_intents`, `train_preferences` and `items` alone. The rows of a part
    depend on the part and its random stream, not on who makes them: parts are made in parallel and after an
    interruption.
    """

    index: SidIndex
    interactions: Interactions
    template: PromptTemplate
    intents: Intents | None = None
    positions: Positions = "all"
    part: int = 0
    num_parts: int = 1
    share: float = 1.0
    share_seed: Sequence[int] = (0,)

    def _part_of(self, size: int) -> tuple[int, int]:
        return size * self.part // self.num_parts, size * (self.part + 1) // self.num_parts

    def _kept(self, size: int) -> np.ndarray:
        """Which of `size` things `share` keeps, bool: each with that probability.

        They are chosen before they become text, so that a small share costs little.
        """
        return np.random.default_rng(self.share_seed).random(size) < self.share

    def choices(self) -> dict[str, Any]:
        """What else decides which of the data is learnt, as JSON: shards made by other choices are others."""
        return {}

    def train_cases(self, whole_sequences: bool = False) -> Histories:
        """Train's cases whose target is on the shelf: a removed item is no answer, only part of histories.

        A part has the cases of its sequences. A share below 1 keeps single cases, or with `whole_sequences`
        all of a sequence or none: for rows that hold a sequence.
        """
        low, high = self._part_of(self.interactions.num_sequences)
        cases = self.interactions.histories("train", low, high)
        kept_C = self._kept(high - low)[cases.sequence_C - low] if whole_sequences else self._kept(len(cases))
        return self.index.reachable(cases.take(np.flatnonzero(kept_C)))

    def items(self) -> np.ndarray:
        """Item indices on the shelf, ascending, int64."""
        low, high = self._part_of(self.index.catalog.num_items)
        return low + np.flatnonzero(self.index.live_N[low:high] & self._kept(high - low))

    def train_intents(self, *kinds: IntentKind) -> Intents:
        """Train's intents of these kinds.

        Raises:
            InputError: when the run was given no intents.
        """
        if self.intents is None:
            raise InputError(
                f"task_weights: a task with weight needs intents of kind {' or '.join(kinds)}, and there are "
                "none; pass --intents (sft.compose_intents writes them from the catalogue)"
            )
        part = self.intents.slice(*self._part_of(len(self.intents))).select(kinds, "train")
        return Intents(part.table.filter(pa.array(self._kept(len(part)))), part.catalog)

    def train_preferences(self) -> Iterator[tuple[Intent, Histories]]:
        """Train's preferences, each with the train cases of its user (whichever part those are in); no cases
        for a user without a sequence.
        """
        chosen = self.train_intents("preference")
        users = self.interactions.users
        sequences: dict[str, list[int]] = {}
        for row in np.flatnonzero(pc.is_in(users, chosen.table["user"].combine_chunks())).tolist():
            sequences.setdefault(users[row].as_py(), []).append(row)
        for intent in chosen:
            cases = [
                self.interactions.histories("train", row, row + 1) for row in sequences.get(intent.user, [])
            ]
            sequence_C = np.concatenate([np.empty(0, np.int64), *(case.sequence_C for case in cases)])
            position_C = np.concatenate([np.empty(0, np.int64), *(case.position_C for case in cases)])
            yield intent, self.index.reachable(Histories(self.interactions, sequence_C, position_C))


@dataclass(frozen=True)
class TaskExample:
    """Token ids of a trunk followed by those of its branches, with shifted labels.

    `branch_attach[b]` is the trunk position branch b grows from and `branch_length[b]` its number of tokens;
    `target_items` are the item indices the answers are about, never re-parsed from text. `cut_from` is the
    number of tokens of a prompt before a text of it was cut, 0 where none was.
    """

    task: str
    input_ids: list[int]
    shift_labels: list[int]
    target_items: list[int]
    branch_attach: list[int] = field(default_factory=list)
    branch_length: list[int] = field(default_factory=list)
    cut_from: int = 0

    @staticmethod
    def of(task: str, rendered: Rendered, target_item: int) -> "TaskExample":
        """A prompt and its answer. The end-of-turn token is a label only: nothing follows it."""
        answer = rendered.completion_ids
        labels = [IGNORE] * (len(rendered.prompt_ids) - 1) + answer
        ids = rendered.prompt_ids + answer[:-1]
        return TaskExample(task, ids, labels, [target_item], cut_from=rendered.cut_from)

    @staticmethod
    def tree(
        task: str, trunk: list[int], branches: Sequence[Branch], target_items: list[int]
    ) -> "TaskExample":
        """A trunk whose own tokens are not learnt, with labelled branches."""
        ids, labels = list(trunk), [IGNORE] * len(trunk)
        for branch in branches:
            assert branch.labels is not None
            ids += branch.token_ids
            labels += branch.labels
        lengths = [len(branch.token_ids) for branch in branches]
        return TaskExample(task, ids, labels, target_items, [branch.attach for branch in branches], lengths)

    def as_row(self) -> dict[str, Any]:
        """Columns of the training table; `length` is the number of tokens."""
        return {
            "task": self.task,
            "input_ids": np.array(self.input_ids, dtype=np.int32),
            "shift_labels": np.array(self.shift_labels, dtype=np.int32),
            "target_items": np.array(self.target_items, dtype=np.int32),
            "branch_attach": np.array(self.branch_attach, dtype=np.int32),
            "branch_length": np.array(self.branch_length, dtype=np.int32),
            "length": len(self.input_ids),
            "cut_from": self.cut_from,
        }
