"""What a reward sees: the completions of a rollout, each bound to its own target, and the adapter to TRL's
signature.

Legend: C completions (all groups, flat), L levels, G completions of one group, N items, P pairs of a
completion and an item that has its SID, T tokens of all completions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from prompts.vocabulary import SidVocabulary
from sid_builder.errors import InputError
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class Completions:
    """A rollout's completions. Everything travels with its row: nothing is looked up by prompt or text.

    Truth is an item, and a completion is an SID that several items may share. It is a hit if the target is
    one of them, for a list shows all items of an SID, as evaluation's does. What an SID is worth by a value
    of items (a price, a similarity) is the mean over its items: each of them takes a place in that list.

    Attributes:
        codes_CL: int32 SIDs, -1 pads short ones; a row that is not the spelling of a code path is all -1.
        target_item_C: int64 item_index asked for.
        rank_C: int64 rank in the beam, 0 is the model's favourite. Draws may repeat ranks and SIDs: rewards
            by rank read `place_C`.
        group_C: int64; completions of one prompt share a number.
        score_C: float64 log-prob of the SID under the policy that proposed it.
        index: the items, for rewards that look at more than SIDs.
        history_C: per row the items before the target, oldest first; the same for all rows of a group.
        exclude_history: whether lists leave these items out, as evaluation does on data without repeats.
    """

    codes_CL: np.ndarray
    target_item_C: np.ndarray
    rank_C: np.ndarray
    group_C: np.ndarray
    score_C: np.ndarray
    index: SidIndex
    history_C: Sequence[Sequence[int]]
    exclude_history: bool = False

    def __len__(self) -> int:
        return len(self.codes_CL)

    @cached_property
    def slot_C(self) -> np.ndarray:
        """`group_C` renumbered 0, 1, ... without gaps, int64: what numpy can count by."""
        return np.unique(self.group_C, return_inverse=True)[1]

    @cached_property
    def leaf_C(self) -> np.ndarray:
        """Leaf of the trie, int64; -1: the SID of no item on the shelf."""
        return self.index.trie.leaves_of(self.codes_CL)

    @cached_property
    def target_codes_CL(self) -> np.ndarray:
        return self.index.semantic_ids.codes_NL[self.target_item_C]

    @cached_property
    def hit_C(self) -> np.ndarray:
        """Whether the target is among the items of the SID. No model can tell those apart."""
        return (self.leaf_C >= 0) & (self.leaf_C == self.index.trie.leaf_of_item_N[self.target_item_C])

    @cached_property
    def place_C(self) -> np.ndarray:
        """Place of the SID among the distinct SIDs of its group, int64 from 0: by beam rank, then by score.

        Of a beam's rows it is the rank itself. Copies of an SID share the place of the best of them; what is
        no item's SID shares the place behind all others.
        """
        leaf_C = self.leaf_C
        order = np.lexsort((leaf_C, -self.score_C, self.rank_C, leaf_C < 0, self.slot_C))
        _, first_D, sid_C = np.unique(self._sid_C[order], return_index=True, return_inverse=True)
        new_C = np.zeros(len(self), dtype=np.int64)
        new_C[first_D] = 1
        number_D = (np.cumsum(new_C) - 1)[first_D]
        distinct_S = np.bincount(self.slot_C[order][first_D])  # SIDs per group
        before_S = np.cumsum(distinct_S) - distinct_S
        place_C = np.empty(len(self), dtype=np.int64)
        place_C[order] = number_D[sid_C]
        return place_C - before_S[self.slot_C]

    @cached_property
    def copies_C(self) -> np.ndarray:
        """How many rows of the group have the row's SID, int64, at least 1."""
        _, sid_C, count_D = np.unique(self._sid_C, return_inverse=True, return_counts=True)
        return count_D[sid_C]

    @property
    def _sid_C(self) -> np.ndarray:
        """A number for each group's each SID, int64."""
        return self.slot_C * (self.index.trie.num_leaves + 1) + self.leaf_C

    @cached_property
    def items(self) -> tuple[np.ndarray, np.ndarray]:
        """The items of every completion, int64 [P] twice: the row (ascending) and the item_index."""
        listed = np.flatnonzero(self.leaf_C >= 0)
        place_P, item_P = self.index.trie.items_of_leaves(self.leaf_C[listed])
        return listed[place_P], item_P

    def mean_of_items(self, value_P: np.ndarray, otherwise: float) -> np.ndarray:
        """Mean over the items of each completion, float64 [C]; `otherwise` for what is no item's SID.

        Args:
            value_P: of the pairs in `items`.
        """
        row_P, _ = self.items
        count_C = np.bincount(row_P, minlength=len(self))
        total_C = np.bincount(row_P, weights=value_P, minlength=len(self))
        return np.where(count_C > 0, total_C / np.maximum(count_C, 1), otherwise)

    def any_in_group(self, flag_C: np.ndarray) -> np.ndarray:
        """Bool [C]: whether any completion of the same group has the flag."""
        return (np.bincount(self.slot_C, weights=flag_C) > 0)[self.slot_C]

    def group_size_C(self) -> np.ndarray:
        """Completions in each row's group, int64 [C]."""
        return np.bincount(self.slot_C)[self.slot_C]


Reward = Callable[[Completions], np.ndarray]


class BoundReward:
    """A reward in the form TRL calls: keyword columns in, one float per completion out.

    `target_item` and `history` are columns of the dataset; `beam_rank`, `group` and `beam_score` are what the
    rollout returned beside its tokens. TRL hands them over row by row, before anything is shuffled.
    """

    def __init__(
        self,
        name: str,
        reward: Reward,
        index: SidIndex,
        vocabulary: SidVocabulary,
        exclude_history: bool = False,
    ) -> None:
        self.__name__ = name  # TRL's log key: rewards/<name>/mean
        self.reward, self.index, self.vocabulary = reward, index, vocabulary
        self.exclude_history = exclude_history

    def __call__(
        self,
        completion_ids: Sequence[Sequence[int]],
        target_item: Sequence[int],
        beam_rank: Sequence[int],
        group: Sequence[int],
        beam_score: Sequence[float],
        history: Sequence[Sequence[int]],
        **_: Any,
    ) -> list[float]:
        codes_CL = codes_of(completion_ids, self.vocabulary)
        target_C, rank_C, group_C = (np.asarray(c, dtype=np.int64) for c in (target_item, beam_rank, group))
        completions = Completions(
            codes_CL,
            target_C,
            rank_C,
            group_C,
            np.asarray(beam_score, dtype=np.float64),
            self.index,
            history,
            self.exclude_history,
        )
        return checked(self.__name__, self.reward(completions), len(codes_CL))


def codes_of(completion_ids: Sequence[Sequence[int]], vocabulary: SidVocabulary) -> np.ndarray:
    """Codes int32 [C, L] of token ids, -1 after the end; all -1 where they are not SID tokens in level order.

    What `SidVocabulary.decode` says of each row, for all rows at once.
    """
    tokens = np.concatenate(vocabulary.token_ids)
    sizes = [len(ids) for ids in vocabulary.token_ids]
    level, code = np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(size) for size in sizes])
    order = np.argsort(tokens)
    length_C = np.array([len(ids) for ids in completion_ids], dtype=np.int64)
    row_T = np.repeat(np.arange(len(length_C)), length_C)
    position_T = np.arange(len(row_T)) - np.repeat(np.cumsum(length_C) - length_C, length_C)
    said_T = np.fromiter(chain.from_iterable(completion_ids), dtype=np.int64, count=len(row_T))
    entry_T = order[np.minimum(np.searchsorted(tokens[order], said_T), len(tokens) - 1)]
    right_T = (tokens[entry_T] == said_T) & (said_T >= 0) & (level[entry_T] == position_T)
    right_T &= np.bincount(row_T[~right_T], minlength=len(length_C))[row_T] == 0
    codes_CL = np.full((len(length_C), len(sizes)), -1, dtype=np.int32)
    codes_CL[row_T[right_T], position_T[right_T]] = code[entry_T[right_T]]
    return codes_CL


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
