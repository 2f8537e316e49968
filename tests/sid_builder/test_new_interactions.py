"""New interactions behind old ones: whose they are, in which order, how they are split, what is refused."""

import dataclasses

import numpy as np
import pytest

from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.new_interactions import join_interactions
from tests.builders import make_index
from tests.sft.grown_shop import write_lines


def sequences(interactions, catalog):
    ids = catalog.item_ids
    return {
        user: [ids[item] for item in interactions.items_I[low:high]]
        for user, low, high in zip(
            interactions.users.to_pylist(),
            interactions.indptr_S1[:-1],
            interactions.indptr_S1[1:],
            strict=True,
        )
    }


def test_new_interactions_follow_the_old_ones(tmp_path):
    rng = np.random.default_rng(0)
    index = make_index(np.arange(40)[:, None], (40,))
    old = Interactions.leave_one_out(
        [f"u{u}" for u in range(50)], [rng.integers(0, 30, rng.integers(1, 9)) for _ in range(50)]
    )
    lines = [
        {"user": f"u{u}", "items": [f"item-{i}" for i in rng.integers(0, 40, rng.integers(1, 4))]}
        for u in rng.permutation(70)[:40]
    ]
    joined = join_interactions(old, write_lines(tmp_path / "new.jsonl", lines), index.catalog)
    expected = sequences(old, index.catalog)
    num_old = {user: len(items) for user, items in expected.items()}
    for line in lines:
        expected[line["user"]] = expected.get(line["user"], []) + line["items"]
    assert sequences(joined.whole, index.catalog) == expected
    assert list(expected) == joined.whole.users.to_pylist(), "new users come behind the old ones"
    assert joined.num_old_S.tolist() == [num_old.get(user, 0) for user in expected]
    assert joined.num_new == sum(len(line["items"]) for line in lines)
    lengths = np.array([len(items) for items in expected.values()])
    assert joined.whole.train_hi_S.tolist() == np.where(lengths >= 3, lengths - 2, lengths).tolist()
    for split, back in (("valid", 2), ("test", 1)):
        new = [u for u, n in enumerate(joined.num_old_S) if lengths[u] >= 3 and lengths[u] - back >= n]
        assert joined.new_cases(split).sequence_C.tolist() == new and new
    joined.whole.check(40)


def test_known_users_on_several_lines_and_users_who_stayed_away(tmp_path):
    index = make_index(np.array([[0], [1], [2], [3]]), (4,))
    old = Interactions.leave_one_out(["a", "b"], [np.array([0, 1, -1]), np.array([1, 2, 0])])
    lines = [
        {"user": user, "items": [f"item-{i}" for i in items]}
        for user, items in (("c", [3]), ("a", [2]), ("a", [3, 0]))
    ]
    joined = join_interactions(old, write_lines(tmp_path / "new.jsonl", lines), index.catalog)
    assert sequences(joined.whole, index.catalog) == {
        "a": ["item-0", "item-1", "item-2", "item-3", "item-0"],  # a target that was unknown is gone
        "b": ["item-1", "item-2", "item-0"],
        "c": ["item-3"],
    }
    assert joined.num_old_S.tolist() == [2, 3, 0] and joined.num_new == 4
    assert joined.new_cases("valid").sequence_C.tolist() == [0]


def test_times_and_features_go_along(tmp_path):
    index = make_index(np.array([[0], [1], [2]]), (3,))
    old = dataclasses.replace(
        Interactions.leave_one_out(["a"], [np.array([0, 1])], [np.array([5, 6])]),
        features_I={"rating": np.array([1.0, 2.0], dtype=np.float32)},
    )
    path = tmp_path / "new.jsonl"
    write_lines(path, [{"user": "a", "items": ["item-2"], "timestamps": [7], "prices": [3.5]}])
    joined = join_interactions(old, path, index.catalog).whole
    assert joined.timestamps_I.tolist() == [5, 6, 7]
    assert list(joined.features_I) == ["rating"]
    np.testing.assert_array_equal(joined.features_I["rating"], np.array([1, 2, np.nan], dtype=np.float32))
    for row, message in (
        ({"timestamps": [4]}, "new.jsonl has timestamp 4 behind 6 of the same user"),
        ({}, "new.jsonl has none, unlike the interactions of the model; add `timestamps`"),
    ):
        write_lines(path, [{"user": "a", "items": ["item-2"], **row}])
        with pytest.raises(InputError, match=message):
            join_interactions(old, path, index.catalog)


def test_old_interactions_that_new_ones_cannot_follow(tmp_path):
    index = make_index(np.array([[0], [1], [2]]), (3,))
    path = write_lines(tmp_path / "new.jsonl", [{"user": "a", "items": ["item-2"]}])
    twice = Interactions.leave_one_out(["a", "a"], [np.array([0, 1]), np.array([1, 2])])
    with pytest.raises(InputError, match="several sequences of one user"):
        join_interactions(twice, path, index.catalog)
    once = Interactions.leave_one_out(["a"], [np.array([0, 1, 2])])
    whole = dataclasses.replace(once, train_hi_S=np.array([3]))
    with pytest.raises(InputError, match="the model's train is not split leave-one-out"):
        join_interactions(whole, path, index.catalog)
