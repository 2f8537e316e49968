"""The trie against brute force over the code rows it was built from."""

import numpy as np
import pytest

from sid_builder.errors import InputError
from sid_builder.trie import END, SidTrie


def random_codes(seed: int, num_items: int = 400, sizes=(5, 9, 7), short: bool = False) -> np.ndarray:
    """Code rows with many collisions; with `short`, rows under some first codes end early (prefix-free)."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, size, num_items) for size in sizes], axis=1).astype(np.int32)
    if short:
        codes[codes[:, 0] == 1, 1:] = -1
        codes[(codes[:, 0] >= 2) & (codes[:, 1] % 2 == 0), 2:] = -1
    return codes


def paths_of(codes: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(code for code in row if code >= 0) for row in codes.tolist()]


CASES = [
    random_codes(0),
    random_codes(1, short=True),
    random_codes(2, 1, (3, 3, 3)),
    random_codes(3, 60, (64,)),
]


@pytest.mark.parametrize("codes", CASES, ids=["fixed", "variable", "one item", "one level"])
def test_children_and_nodes_match_a_set_of_prefixes(codes):
    trie, paths = SidTrie.build(codes), set(paths_of(codes))
    prefixes = {path[:length] for path in paths for length in range(len(path) + 1)}
    for prefix in prefixes:
        node = trie.node_of(prefix)
        assert node is not None
        if prefix in paths:
            if len(prefix) < trie.depth:  # a finished short SID continues with END alone
                assert trie.children(node, len(prefix))[0].tolist() == [END]
            continue
        expected = sorted({path[len(prefix)] for path in paths if path[: len(prefix)] == prefix})
        row, children = trie.children(node, len(prefix))
        assert row.tolist() == expected
        assert [trie.node_of((*prefix, code)) for code in expected] == children.tolist()
    assert trie.node_of((99,)) is None
    assert trie.node_of((*next(iter(paths)), 0, 0, 0, 0)) is None


@pytest.mark.parametrize("codes", CASES, ids=["fixed", "variable", "one item", "one level"])
def test_many_sids_are_found_at_once(codes):
    trie = SidTrie.build(codes, np.arange(len(codes)))
    rng = np.random.default_rng(0)
    wrong = codes[rng.integers(0, len(codes), 200)].copy()
    wrong[np.arange(200), rng.integers(0, trie.depth, 200)] = rng.integers(-1, 12, 200)
    asked = np.concatenate([codes, wrong, np.full((1, trie.depth), -1)])
    leaves = trie.leaves_of(asked)
    by_path = {path: trie.leaf_of(path) for path in paths_of(codes)}
    whole = [tuple(row[row >= 0]) if (np.sort(row < 0) == (row < 0)).all() else None for row in asked]
    assert leaves.tolist() == [by_path.get(path, -1) for path in whole]
    assert trie.leaves_of(asked[:0]).shape == (0,)
    chosen = rng.permutation(trie.num_leaves)
    rows, items = trie.items_of_leaves(chosen)
    expected = [(row, item) for row, leaf in enumerate(chosen) for item in trie.items_of_leaf(leaf).tolist()]
    assert list(zip(rows.tolist(), items.tolist(), strict=True)) == expected


@pytest.mark.parametrize("codes", CASES, ids=["fixed", "variable", "one item", "one level"])
def test_leaves_hold_exactly_the_items_below_a_node(codes):
    trie, paths = SidTrie.build(codes), paths_of(codes)
    for prefix in {path[:length] for path in paths for length in range(trie.depth + 1)}:
        node = trie.node_of(prefix)
        (low,), (high,) = trie.leaf_ranges(np.array([node]), len(prefix))
        below = {int(item) for leaf in range(low, high) for item in trie.items_of_leaf(leaf)}
        assert below == {item for item, path in enumerate(paths) if path[: len(prefix)] == prefix}


@pytest.mark.parametrize("codes", CASES, ids=["fixed", "variable", "one item", "one level"])
def test_leaf_maps_agree(codes):
    trie = SidTrie.build(codes)
    assert trie.num_leaves == len(set(paths_of(codes)))
    assert np.array_equal(trie.codes_ML[trie.leaf_of_item_N], codes)
    assert sorted(trie.leaf_items_V.tolist()) == list(range(len(codes)))
    for leaf in range(trie.num_leaves):
        items = trie.items_of_leaf(leaf)
        assert len(items) == trie.leaf_size_M[leaf]
        assert (trie.leaf_of_item_N[items] == leaf).all()
    assert [tuple(row) for row in trie.codes_ML.tolist()] == sorted(
        tuple(row) for row in set(map(tuple, codes.tolist()))
    )


@pytest.mark.parametrize("extra", [0, 3, 4, 6], ids=["keys with places", "same", "keys alone", "lexsort"])
def test_items_of_a_collision_come_most_frequent_first(extra):
    """However wide the rows: sorted as 64-bit keys with their places, as keys, or column by column."""
    codes = random_codes(5)
    codes = np.concatenate([codes, np.full((len(codes), extra), 16_000, dtype=np.int32)], axis=1)
    counts = np.random.default_rng(0).integers(0, 4, len(codes))
    trie = SidTrie.build(codes, counts)
    for leaf in np.flatnonzero(trie.leaf_size_M > 1):
        items = trie.items_of_leaf(int(leaf)).tolist()
        assert items == sorted(items, key=lambda item: (-counts[item], item))
    without = SidTrie.build(codes)
    for leaf in np.flatnonzero(without.leaf_size_M > 1):
        assert (np.diff(without.items_of_leaf(int(leaf))) > 0).all()


@pytest.mark.parametrize("short", [False, True], ids=["fixed", "variable"])
def test_removed_items_are_not_in_the_tree(short, tmp_path):
    rng = np.random.default_rng(3)
    codes, counts = random_codes(6, short=short), rng.integers(0, 4, 400)
    removed = rng.random(400) < 0.3
    live = np.flatnonzero(~removed)
    trie, alone = SidTrie.build(codes, counts, removed), SidTrie.build(codes[live], counts[live])
    assert trie.num_items == 400 and trie.num_live == len(live) and (trie.leaf_of_item_N[removed] == -1).all()
    np.testing.assert_array_equal(trie.codes_ML, alone.codes_ML)
    np.testing.assert_array_equal(trie.leaf_items_V, live[alone.leaf_items_V])
    paths = paths_of(codes)
    for path in set(paths):
        leaf = trie.leaf_of(path)
        expected = [item for item in live if paths[item] == path]
        assert (leaf is None) == (not expected)
        if leaf is not None:
            assert sorted(trie.items_of_leaf(leaf).tolist()) == expected
            assert (trie.leaf_of_item_N[expected] == leaf).all()
    trie.save(tmp_path / "trie")
    np.testing.assert_array_equal(SidTrie.load(tmp_path / "trie").leaf_of_item_N, trie.leaf_of_item_N)
    assert trie.nbytes_with_items <= SidTrie.build(codes, counts).nbytes_with_items
    with pytest.raises(InputError, match="no items"):
        SidTrie.build(codes, counts, np.ones(400, dtype=bool))


def test_save_and_load_are_memory_mapped_and_equal(tmp_path):
    trie = SidTrie.build(random_codes(1, short=True), np.arange(400))
    trie.save(tmp_path / "trie")
    again = SidTrie.load(tmp_path / "trie")
    assert all(isinstance(array, np.memmap) for array in (*again.tok, *again.indptr, again.leaf_items_V))
    for mine, theirs in zip((*trie.tok, *trie.indptr), (*again.tok, *again.indptr), strict=True):
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs)
    assert np.array_equal(trie.leaf_items_V, again.leaf_items_V) and np.array_equal(
        trie.extra_X, again.extra_X
    )
    assert {array.dtype for array in again.tok} == {np.dtype("<u2")}
    assert {array.dtype for array in again.indptr} == {np.dtype("<u4")}


@pytest.mark.parametrize(
    "codes, words",
    [
        (np.empty((0, 3), dtype=np.int32), "no items"),
        (np.array([[1, -1, -1], [1, 2, 3]], dtype=np.int32), "prefix of a longer one"),
        (np.array([[1, 2, -1], [0, 0, 0], [1, 2, 3]], dtype=np.int32), "prefix of a longer one"),
        (np.array([[END, 0]], dtype=np.int32), "too large"),
    ],
)
def test_codes_that_no_trie_can_hold(codes, words):
    with pytest.raises(InputError, match=words):
        SidTrie.build(codes)


def test_bytes_per_item_of_a_million_items_at_three_levels():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2048, (100_000, 3)).astype(np.int32)
    trie = SidTrie.build(codes)
    # 6 bytes a leaf and at most 6 bytes a level-2 node; random codes of 100,000 items barely share prefixes.
    assert trie.nbytes <= 12.2 * trie.num_items
    assert trie.nbytes_with_items == trie.nbytes + trie.leaf_items_V.nbytes + trie.extra_X.nbytes
