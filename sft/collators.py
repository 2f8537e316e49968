"""Rows -> batches that a model takes."""

from collections.abc import Sequence
from typing import Any

import torch

from prompts.branches import Branch, BranchBatch


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
