"""One training row, and batches of them.

A row is a trunk with branches (see `prompts.branches`); an ordinary prompt and answer is a trunk alone.
Labels are already shifted: `shift_labels[i]` is what the model should say after `input_ids[i]`, `IGNORE`
where nothing is learnt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from prompts.branches import IGNORE, Branch, BranchBatch
from prompts.template import PromptTemplate, Rendered
from sid_builder.interactions import Histories, Interactions
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class TaskContext:
    """What a task may read. Tasks learn from `train_cases` alone."""

    index: SidIndex
    interactions: Interactions
    template: PromptTemplate

    def train_cases(self) -> Histories:
        """Train's cases whose target is on the shelf: a removed item is no answer, only part of histories."""
        return self.index.reachable(self.interactions.histories("train"))


@dataclass(frozen=True)
class TaskExample:
    """Token ids of a trunk followed by those of its branches, with shifted labels.

    `branch_attach[b]` is the trunk position branch b grows from and `branch_length[b]` its number of tokens;
    `target_items` are the item indices the answers are about, never re-parsed from text.
    """

    task: str
    input_ids: list[int]
    shift_labels: list[int]
    target_items: list[int]
    branch_attach: list[int] = field(default_factory=list)
    branch_length: list[int] = field(default_factory=list)

    @staticmethod
    def of(task: str, rendered: Rendered, target_item: int) -> "TaskExample":
        """A prompt and its answer. The end-of-turn token is a label only: nothing follows it."""
        answer = rendered.completion_ids
        labels = [IGNORE] * (len(rendered.prompt_ids) - 1) + answer
        return TaskExample(task, rendered.prompt_ids + answer[:-1], labels, [target_item])

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
        }


class BranchCollator:
    """Rows -> model inputs: a 4-D mask and position ids, small examples packed beside each other.

    So a batch mixes tasks at random without paying for padding: ten questions of 20 tokens lie in the row
    that one history of 200 fills.
    """

    def __init__(self, pad_id: int, dtype: torch.dtype) -> None:
        self.pad_id = pad_id
        self.dtype = dtype

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        trunks, branches, trunk_labels = [], [], []
        for row in rows:
            ids, labels = list(row["input_ids"]), list(row["shift_labels"])
            start = len(ids) - sum(row["branch_length"])
            trunks.append(ids[:start])
            trunk_labels.append(labels[:start])
            own = []
            for attach, length in zip(row["branch_attach"], row["branch_length"], strict=True):
                own.append(Branch(attach, ids[start : start + length], labels[start : start + length]))
                start += length
            branches.append(own)
        batch = BranchBatch.from_branches(trunks, branches, self.pad_id, trunk_labels, pack=True)
        return {
            "input_ids": batch.input_ids_BQ,
            "position_ids": batch.position_ids_BQ,
            "attention_mask": batch.attention_mask(self.dtype),
            "shift_labels": batch.shift_labels_BQ,
            # Trainer divides the loss by the number of labels, and looks for it only where this key is
            # present.
            "labels": batch.shift_labels_BQ,
        }
