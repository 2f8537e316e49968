"""Filters and the choice of beams against brute force over leaves."""

import numpy as np
import pytest
import torch

from prompts.vocabulary import SidVocabulary
from serve.decoding.ranking import ItemFilter, Ranking
from serve.decoding.trie_step import DeviceTrie, LeafFilters, select_beams
from sid_builder.trie import SidTrie


def device_trie(seed: int, short: bool) -> DeviceTrie:
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, size, 300) for size in (4, 8, 8)], axis=1).astype(np.int32)
    if short:
        codes[codes[:, 0] == 1, 1:] = -1
        codes[(codes[:, 0] == 2) & (codes[:, 1] % 2 == 0), 2:] = -1
    vocabulary = SidVocabulary(tuple(np.arange(size) + 100 * level for level, size in enumerate((4, 8, 8))))
    return DeviceTrie(SidTrie.build(codes, rng.integers(0, 5, 300)), vocabulary)


def random_filter(rng: np.random.Generator) -> ItemFilter | None:
    kind = rng.integers(0, 5)
    exclude = rng.choice(300, rng.integers(0, 250), replace=bool(rng.integers(0, 2)))
    allow = rng.choice(300, rng.integers(1, 40), replace=False)
    options = [
        None,
        ItemFilter(exclude),
        ItemFilter(allow=allow),
        ItemFilter(exclude, allow),
        ItemFilter(allow, allow),
    ]
    return options[kind]


@pytest.mark.parametrize("short", [False, True], ids=["fixed", "variable"])
@pytest.mark.parametrize("seed", range(6))
def test_filters_are_exact_at_every_level_and_leave_no_dead_ends(seed, short):
    """Walking all legal children from the root reaches exactly the leaves that hold a kept item."""
    trie, rng = device_trie(seed, short), np.random.default_rng(seed)
    filters = [random_filter(rng) for _ in range(5)]
    leaf_filters = LeafFilters(trie, filters)
    for request, item_filter in enumerate(filters):
        kept = np.ones(300, bool) if item_filter is None else item_filter.keeps(np.arange(300))
        expected = set(trie.trie.leaf_of_item_N[kept].tolist())
        nodes = torch.zeros(1, dtype=torch.long)
        for level in range(trie.depth):
            candidates = trie.children(nodes, level)
            owner = torch.full_like(candidates.row_E, request)
            kept_candidates = leaf_filters.keep(candidates, owner, level)
            if expected:  # every node that was kept has a legal child
                assert set(kept_candidates.row_E.tolist()) == set(range(len(nodes)))
            nodes = kept_candidates.child_E
        assert set(nodes.tolist()) == expected


def test_children_name_the_tokens_of_their_level():
    trie = device_trie(0, short=True)
    for level in range(trie.depth):
        num_nodes = len(trie.trie.indptr[level]) - 1
        candidates = trie.children(torch.arange(num_nodes), level)
        assert len(candidates.child_E) == len(trie.trie.tok[level])
        codes = trie.trie.tok[level][candidates.child_E.numpy()].astype(np.int64)
        expected = np.where(codes == 0xFFFF, -1, codes + 100 * level)
        assert candidates.token_E.tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_selection_matches_a_sort_and_breaks_ties_by_child(seed):
    rng = np.random.default_rng(seed)
    request = np.sort(rng.integers(0, 4, 90))
    request[request == 2] = 1  # a request without candidates
    score = np.round(rng.normal(size=90), 1).astype(np.float32)
    score[rng.integers(0, 90, 9)] = -np.inf
    child = rng.permutation(90)
    chosen, best = select_beams(*map(torch.from_numpy, (score, request, child)), num_requests=4, num_beams=12)
    for row in range(4):
        own = [i for i in np.flatnonzero(request == row) if score[i] > -np.inf]
        own = sorted(own, key=lambda i: (-score[i], child[i]))[:12]
        padding = chosen.shape[1] - len(own)
        assert chosen[row].tolist() == [*own, *[-1] * padding]
        assert best[row].tolist() == [*(float(score[i]) for i in own), *[-np.inf] * padding]


def test_leaves_expand_to_items_in_order():
    trie = device_trie(0, short=False).trie
    leaves = np.random.default_rng(0).permutation(trie.num_leaves)[:20]
    scores = -np.arange(20, dtype=np.float32)
    ranking = Ranking.from_leaves(trie, leaves, scores)
    expected = [
        (int(item), score)
        for leaf, score in zip(leaves, scores, strict=True)
        for item in trie.items_of_leaf(leaf)
    ]
    assert list(zip(ranking.items_K.tolist(), ranking.scores_K.tolist(), strict=True)) == expected
    dropped = ItemFilter(exclude=ranking.items_K[::2])
    assert (
        Ranking.from_leaves(trie, leaves, scores, dropped).items_K.tolist() == ranking.items_K[1::2].tolist()
    )
    assert len(Ranking.from_leaves(trie, leaves[:0], scores[:0]).items_K) == 0
