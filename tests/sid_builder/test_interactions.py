"""Splits, histories and what may be unknown."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from sid_builder.errors import InputError
from sid_builder.interactions import Interactions


def small() -> Interactions:
    """Sequences of 5, 2, 3 and 1 items."""
    rows = [np.array([0, 1, 2, 3, 4]), np.array([5, 6]), np.array([7, 8, 9]), np.array([3])]
    return Interactions.leave_one_out(list("abcd"), rows)


def cases(interactions: Interactions, split) -> list[tuple[list[int], int]]:
    histories = interactions.histories(split)
    return [(histories.history(c).tolist(), int(histories.targets_C[c])) for c in range(len(histories))]


def test_leave_one_out():
    interactions = small()
    assert cases(interactions, "train") == [([0], 1), ([0, 1], 2), ([5], 6)]
    assert cases(interactions, "valid") == [([0, 1, 2], 3), ([7], 8)]
    assert cases(interactions, "test") == [([0, 1, 2, 3], 4), ([7, 8], 9)]
    assert interactions.train_counts(10).tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 0, 0]
    assert interactions.histories("test").history(0, max_history=2).tolist() == [2, 3]
    taken = interactions.histories("test").take(np.array([1]))
    assert len(taken) == 1 and taken.targets_C.tolist() == [9]
    with pytest.raises(InputError, match="split: 'dev'"):
        interactions.histories("dev")


def test_only_train_leaves_nothing_of_valid_and_test():
    rows = [np.array([0, 1, 2, 3, 4]), np.array([5, 6]), np.array([7, 8, 9])]
    full = Interactions.from_csr(
        pa.array(["a", "b", "c"]),
        np.array([0, 5, 7, 10]),
        np.concatenate(rows).astype(np.int32),
        timestamps_I=np.arange(10) * 100,
        features_I={"rating": np.arange(10, dtype=np.float32)},
    )
    train = full.only_train()
    assert train.items_I.tolist() == [0, 1, 2, 5, 6, 7]
    assert train.timestamps_I.tolist() == [0, 100, 200, 500, 600, 700]
    assert train.features_I["rating"].tolist() == [0, 1, 2, 5, 6, 7]
    assert cases(train, "train") == cases(full, "train")
    assert len(train.histories("valid")) == len(train.histories("test")) == 0
    assert train.train_counts(10).tolist() == full.train_counts(10).tolist()
    # Rows that were split before they came: a valid row goes as a whole, its history included.
    presplit = dataclasses.replace(full, train_lo_S=np.array([4, 0, 2]), train_hi_S=np.array([5, 0, 3]))
    train = presplit.only_train()
    assert train.users.to_pylist() == ["a", "c"]
    assert train.items_I.tolist() == [0, 1, 2, 3, 4, 7, 8, 9]


def test_repeats_count_within_a_sequence_only():
    assert not small().has_repeats  # item 3 occurs in two sequences
    assert Interactions.leave_one_out(["a"], [np.array([1, 2, 1])]).has_repeats


def test_only_valid_and_test_targets_may_be_unknown():
    interactions = small()
    interactions.items_I[3] = -1  # valid target of the first sequence
    interactions.check(10)
    assert cases(interactions, "valid")[0] == ([0, 1, 2], -1)
    assert cases(interactions, "test")[0] == ([0, 1, 2], 4)  # and left out of the history behind it
    interactions.items_I[0] = -1
    with pytest.raises(InputError, match="not in the catalogue"):
        interactions.check(10)
    with pytest.raises(InputError, match="item_index 9 is outside the catalogue of 9 items"):
        small().check(9)


def test_no_interactions_are_an_error():
    with pytest.raises(InputError, match="there are none"):
        Interactions.leave_one_out([], [])


def test_round_trip(tmp_path):
    interactions = small()
    interactions.save(tmp_path)
    again = Interactions.load(tmp_path)
    for split in ("train", "valid", "test"):
        assert cases(again, split) == cases(interactions, split)
    assert again.users.to_pylist() == list("abcd") and again.timestamps_I is None


def test_last_train_interaction_is_held_out():
    sequences = [np.array([4, 1, 3, 0, 2]), np.array([1, 2, 3])]
    full = Interactions.leave_one_out(["a", "b"], sequences)
    held = full.without_last_train()
    assert held.histories("train").targets_C.tolist() == [1]
    assert full.histories("train").targets_C.tolist() == [1, 3]
    for split in ("valid", "test"):
        assert held.histories(split).targets_C.tolist() == full.histories(split).targets_C.tolist()
    with pytest.raises(InputError, match="hold_out_last: no sequence has two train interactions"):
        Interactions.leave_one_out(["b"], [np.array([1, 2, 3])]).without_last_train()
