"""What a reward sees: the completions of a rollout, each bound to its own target, and the adapter to TRL's
signature.

Legend: C completions (all groups, flat), L levels, G completions of one group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from prompts.vocabulary import SidVocabulary
from sid_builder.errors import InputError
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class Completions:
    """A rollout's completions. Everything travels with its row: nothing is looked up by prompt or text.

    Attributes:
        codes_CL: int32 SIDs, -1 pads short ones; a row that is not the spelling of a code path is all -1.
        target_item_C: int64 item_index asked for.
        rank_C: int64 rank in the beam, 0 is the model's favourite.
        group_C: int64; completions of one prompt share a number.
        score_C: float64 log-prob of the SID under the policy that proposed it.
        index: the items, for rewards that look at more than SIDs.
    """

    codes_CL: np.ndarray
    target_item_C: np.ndarray
    rank_C: np.ndarray
    group_C: np.ndarray
    score_C: np.ndarray
    index: SidIndex

    def __len__(self) -> int:
        return len(self.codes_CL)

    @cached_property
    def target_codes_CL(self) -> np.ndarray:
        return self.index.semantic_ids.codes_NL[self.target_item_C]

    @cached_property
    def hit_C(self) -> np.ndarray:
        """Whether the SID is the target item's. No model can tell items that share it apart."""
        return (self.codes_CL == self.target_codes_CL).all(axis=1)

    def any_in_group(self, flag_C: np.ndarray) -> np.ndarray:
        """Bool [C]: whether any completion of the same group has the flag."""
        _, slot_C = np.unique(self.group_C, return_inverse=True)
        return (np.bincount(slot_C, weights=flag_C) > 0)[slot_C]

    def group_size_C(self) -> np.ndarray:
        """Completions in each row's group, int64 [C]."""
        _, slot_C = np.unique(self.group_C, return_inverse=True)
        return np.bincount(slot_C)[slot_C]


Reward = Callable[[Completions], np.ndarray]


class BoundReward:
    """A reward in the form TRL calls: keyword columns in, one float per completion out.

    `target_item` is a column of the dataset; `beam_rank`, `group` and `beam_score` are what the rollout
    returned beside its tokens. TRL hands them over row by row, before anything is shuffled.
    """

    def __init__(self, name: str, reward: Reward, index: SidIndex, vocabulary: SidVocabulary) -> None:
        self.__name__ = name  # TRL's log key: rewards/<name>/mean
        self.reward, self.index, self.vocabulary = reward, index, vocabulary

    def __call__(
        self,
        completion_ids: Sequence[Sequence[int]],
        target_item: Sequence[int],
        beam_rank: Sequence[int],
        group: Sequence[int],
        beam_score: Sequence[float],
        **_: Any,
    ) -> list[float]:
        codes_CL = np.full((len(completion_ids), self.index.semantic_ids.depth), -1, dtype=np.int32)
        for row, ids in enumerate(completion_ids):
            codes = self.vocabulary.decode(list(ids)) or ()
            codes_CL[row, : len(codes)] = codes
        columns = (np.asarray(column, dtype=np.int64) for column in (target_item, beam_rank, group))
        completions = Completions(codes_CL, *columns, np.asarray(beam_score, dtype=np.float64), self.index)
        return checked(self.__name__, self.reward(completions), len(codes_CL))


def checked(name: str, values: Any, count: int) -> list[float]:
    """One finite float per completion, or an InputError that says what the reward returned instead."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (count,):
        raise InputError(
            f"rewards: {name!r} returned shape {array.shape} for {count} completions; return one value each"
        )
    if not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array)))
        raise InputError(
            f"rewards: {name!r} returned {array[row]} for completion {row}; return finite numbers"
        )
    return array.tolist()
