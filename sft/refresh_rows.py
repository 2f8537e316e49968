"""What a refresh learns from: what is new, and a share of what is old, lest it be forgotten.

Legend: S sequences, C cases, N items.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sft.examples import TaskContext
from sid_builder.interactions import Histories

_CASES, _ITEMS = 0, 1  # random streams of replay


@dataclass(frozen=True)
class RefreshContext(TaskContext):
    """A `TaskContext` over old and new interactions and items in one.

    `train_cases` are train's positions that the model has not learnt, and those it has of a share of the
    sequences (of whole sequences: their positions share one trunk). `items` are the new ones and a share of
    the old. The share is drawn per part of each pass.

    Attributes:
        learnt_S: int64; positions below it were train's before. It is the position of the old valid target.
        held_out_S: bool; sequences whose old valid target stays out of train, since it is asked before and
            after: what refreshing learnt by heart would not show what it forgot.
        num_old_items: items from this index on are new.
        replay: share of what is old.
    """

    learnt_S: np.ndarray = field(kw_only=True)
    held_out_S: np.ndarray = field(kw_only=True)
    num_old_items: int = field(kw_only=True)
    replay: float = field(kw_only=True)

    def choices(self) -> dict[str, Any]:
        held_out = hashlib.sha256(np.packbits(self.held_out_S).tobytes()).hexdigest()
        return {"replay": self.replay, "held_out": held_out}

    def _replayed(self, size: int, stream: int) -> np.ndarray:
        """Which of `size` old things of this part are learnt again, bool."""
        return np.random.default_rng([*self.share_seed, stream]).random(size) < self.replay

    def train_cases(self, whole_sequences: bool = False) -> Histories:
        cases = super().train_cases(whole_sequences)
        low, high = self._part_of(self.interactions.num_sequences)
        learnt_C = self.learnt_S[cases.sequence_C]
        old_C = cases.position_C < learnt_C
        held_out_C = self.held_out_S[cases.sequence_C] & (cases.position_C == learnt_C)
        replayed_C = self._replayed(high - low, _CASES)[cases.sequence_C - low]
        return cases.take(np.flatnonzero(np.where(old_C, replayed_C, ~held_out_C)))

    def items(self) -> np.ndarray:
        items = super().items()
        low, high = self._part_of(self.index.catalog.num_items)
        return items[(items >= self.num_old_items) | self._replayed(high - low, _ITEMS)[items - low]]
