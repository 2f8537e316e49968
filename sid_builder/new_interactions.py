"""What happened since: new interactions behind those a model was trained on, split leave-one-out anew.

A user's new interactions follow the old ones; new users follow the old users. Of a sequence that grew, the
last interaction is test's and the one before it valid's, so what the old split kept for valid and test
becomes a target of train, or valid's, as far as newer interactions have taken its place.

Legend: S sequences, I interactions, A new interactions.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import SPLITS, Histories, Interactions, Split
from sid_builder.sources.jsonl import JsonlArgs, read_sequences
from sid_builder.splits import leave_one_out


@dataclass(frozen=True)
class JoinedInteractions:
    """Old and new interactions as one; `num_old_S` int64 says how many of each sequence are old (0: a new
    user's).
    """

    whole: Interactions
    num_old_S: np.ndarray

    @property
    def num_new(self) -> int:
        return self.whole.num_interactions - int(self.num_old_S.sum())

    def new_cases(self, split: Split) -> Histories:
        """The cases of a split that ask for a new interaction."""
        cases = self.whole.histories(split)
        return cases.take(np.flatnonzero(cases.position_C >= self.num_old_S[cases.sequence_C]))


def join_interactions(old: Interactions, path: Path, catalog: Catalog) -> JoinedInteractions:
    """Read new interactions and put them behind the old ones.

    Args:
        old: one sequence per user, split leave-one-out.
        path: sequences in the layout of the `jsonl` source, plain or gzip; a user may have several lines,
            oldest first. Features it does not give (ratings, prices) are NaN, those the old ones lack go.
        catalog: what the new items are looked up in; the old items' indices are the same in it.

    Raises:
        InputError: naming the file and the line of a malformed line or an unknown item; for timestamps on one
            side only or that go back; and for old sequences that are split otherwise.
    """
    _check_old(old)
    old = _without_unknown(old)
    # The checks of the source, which knows the file as the second of two.
    args = JsonlArgs(path=str(path.parent), sequences_file=path.name)
    new = read_sequences(path, args, catalog)
    if (new.timestamps_I is None) != (old.timestamps_I is None):
        have = "none" if new.timestamps_I is None else "timestamps"
        raise InputError(
            f"interactions: {path.name} has {have}, unlike the interactions of the model; "
            + ("add" if new.timestamps_I is None else "leave out")
            + " `timestamps` on every line"
        )
    sequence_A = np.repeat(_sequences_of(new.users, old.users), np.diff(new.indptr_S1))
    num_sequences = max(old.num_sequences, int(sequence_A.max()) + 1)
    num_old_S = np.zeros(num_sequences, dtype=np.int64)
    num_old_S[: old.num_sequences] = np.diff(old.indptr_S1)
    lengths_S = num_old_S + np.bincount(sequence_A, minlength=num_sequences)
    # A stable sort by sequence leaves the old ones in front and both in their order.
    sequence_I = np.concatenate([np.repeat(np.arange(old.num_sequences), np.diff(old.indptr_S1)), sequence_A])
    order = np.argsort(sequence_I, kind="stable")
    indptr_S1 = np.concatenate([[0], np.cumsum(lengths_S)]).astype(np.int64)
    stamps_I = None
    if old.timestamps_I is not None and new.timestamps_I is not None:
        stamps_I = np.concatenate([old.timestamps_I, new.timestamps_I])[order]
        _check_times(stamps_I, indptr_S1, path)
    newcomers = new.users.filter(pc.invert(pc.is_in(new.users, old.users))).unique()
    whole = Interactions(
        users=pa.concat_arrays([old.users, newcomers]),
        indptr_S1=indptr_S1,
        items_I=np.concatenate([old.items_I, new.items_I])[order].astype(np.int32),
        timestamps_I=stamps_I,
        features_I={
            name: np.concatenate([values, new.features_I.get(name, _unknown(new))])[order]
            for name, values in old.features_I.items()
        },
        **leave_one_out(lengths_S),
    )
    return JoinedInteractions(whole, num_old_S)


def _unknown(new: Interactions) -> np.ndarray:
    return np.full(new.num_interactions, np.nan, dtype=np.float32)


def _check_old(old: Interactions) -> None:
    if len(old.users.unique()) != old.num_sequences:
        raise InputError(
            "interactions: the model's have several sequences of one user (pre-split rows), so new ones have "
            "no place to go; build the SIDs from whole sequences"
        )
    expected = leave_one_out(np.diff(old.indptr_S1))
    for split in SPLITS:
        if any(
            not np.array_equal(bound_S, expected[f"{split}_{end}_S"])
            for end, bound_S in zip(("lo", "hi"), old.bounds_of(split), strict=True)
        ):
            raise InputError(
                f"interactions: the model's {split} is not split leave-one-out, which refreshing goes on "
                "with; build the SIDs with split: leave_one_out"
            )


def _without_unknown(old: Interactions) -> Interactions:
    """Without the valid and test targets that are in no catalogue (-1): train cannot hold them."""
    known_I = old.items_I >= 0
    if known_I.all():
        return old
    sequence_I = np.repeat(np.arange(old.num_sequences), np.diff(old.indptr_S1))[known_I]
    lengths_S = np.bincount(sequence_I, minlength=old.num_sequences)
    return dataclasses.replace(
        old,
        indptr_S1=np.concatenate([[0], np.cumsum(lengths_S)]).astype(np.int64),
        items_I=old.items_I[known_I],
        timestamps_I=None if old.timestamps_I is None else old.timestamps_I[known_I],
        features_I={name: values[known_I] for name, values in old.features_I.items()},
        **leave_one_out(lengths_S),
    )


def _sequences_of(new_users: pa.Array, old_users: pa.Array) -> np.ndarray:
    """Sequence of each of the new lines, int64: the old user's, or the next free one for a new user."""
    known = pc.index_in(new_users, value_set=old_users)
    newcomers = new_users.filter(pc.is_null(known)).unique()
    fresh = pc.add(pc.index_in(new_users, value_set=newcomers), len(old_users))
    return pc.coalesce(known, fresh).to_numpy(zero_copy_only=False).astype(np.int64)


def _check_times(stamps_I: np.ndarray, indptr_S1: np.ndarray, path: Path) -> None:
    back = np.diff(stamps_I) < 0
    back[indptr_S1[1:-1] - 1] = False  # from one user's last to the next one's first
    if back.any():
        at = int(np.argmax(back)) + 1
        raise InputError(
            f"interactions: {path.name} has timestamp {stamps_I[at]} behind {stamps_I[at - 1]} of the same "
            "user; give only what came after the interactions of the model, oldest first"
        )
