"""Rows -> batches that a model takes, in the ways of `layout.batches`.

Labels come shifted (`shift_labels`). `labels` is the same tensor: Trainer divides the loss by the number of
labels, and looks for it only where that key is present.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch

from prompts.branches import BranchBatch
from sft.arguments import LayoutOptions
from sid_builder.errors import InputError

Collator = Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]]


def collator_of(layout: LayoutOptions, pad_id: int, dtype: torch.dtype) -> Collator:
    """The collator of a layout, for a model whose weights are of `dtype`."""
    if layout.batches == "padding_free":
        return PaddingFreeCollator()
    return BranchCollator(pad_id, dtype, pack=layout.batches == "packed")


class BranchCollator:
    """Rows -> model inputs with a 4-D mask and position ids, [B, Q]; right-padded.

    With `pack`, small examples lie beside each other, so that a batch mixes tasks at random without paying
    for padding: ten questions of 20 tokens lie in the row that one history of 200 fills. Without it, row b is
    example b.
    """

    def __init__(self, pad_id: int, dtype: torch.dtype, pack: bool = True) -> None:
        self.pad_id = pad_id
        self.dtype = dtype
        self.pack = pack

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        names = ("input_ids", "shift_labels", "branch_attach", "branch_length")
        columns = ([row[name] for row in rows] for name in names)
        batch = BranchBatch.from_rows(*columns, pad_id=self.pad_id, pack=self.pack)
        labels = batch.shift_labels_BQ
        assert labels is not None
        return {
            "input_ids": batch.input_ids_BQ,
            "position_ids": batch.position_ids_BQ,
            "attention_mask": batch.attention_mask(self.dtype),
            "shift_labels": labels,
            "labels": labels,
        }


class PaddingFreeCollator:
    """Rows without branches -> model inputs [1, T]: one example behind the other, and no mask.

    Position ids start at 0 with each example. That alone, with no mask and no cache, tells transformers where
    examples end (5.17: `find_packed_sequence_indices` for sdpa and eager, `_is_packed_sequence` for flash
    attention): no token sees another example.
    """

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        for row in rows:
            if len(row["branch_length"]):
                raise InputError(
                    f"layout.batches: 'padding_free' has no mask for the branches of task {row['task']!r}; "
                    "set layout.batches: packed"
                )

        def joined(lists: Any) -> torch.Tensor:
            return torch.tensor(list(chain.from_iterable(lists)))[None]

        labels = joined(row["shift_labels"] for row in rows)
        return {
            "input_ids": joined(row["input_ids"] for row in rows),
            "position_ids": joined(range(len(row["input_ids"])) for row in rows),
            "shift_labels": labels,
            "labels": labels,
        }
