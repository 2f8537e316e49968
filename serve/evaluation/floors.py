"""Popularity and weighted one-hop transition counts: the floors that every table shows.

Both learn from train's cases alone: each train target counts once, and so do the transitions into it.

Legend: C cases, b cases of one batch, N items, M leaves of the trie (distinct SIDs).
"""

import time
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch

from serve.evaluation.metrics import COVERAGE_CUTOFF, RankedCases
from sid_builder.interactions import Histories, Interactions
from sid_builder.priors.transitions import TransitionCounts
from sid_builder.trie import SidTrie

HOP_WEIGHTS = (1.0, 0.5, 0.25, 0.12)
SMOOTHING = 5.0
POPULAR_ITEMS, POPULAR_WEIGHT = 300, 0.5
_BATCH_FLOATS = 1 << 23  # dense scores held at once: 64 MiB

ScoreBatch = Callable[[Histories], np.ndarray]


def popularity(interactions: Interactions, num_items: int) -> ScoreBatch:
    """Items by train count, the same list for everybody."""
    counts_N = interactions.train_counts(num_items).astype(np.float64)

    def score(batch: Histories) -> np.ndarray:
        return np.tile(counts_N, (len(batch), 1))

    return score


def transition_counts(interactions: Interactions, num_items: int) -> sp.csr_matrix:
    """C[x, y] [N, N]: weight w_d for every train target y that has x at distance d = 1..4 before it."""
    counts = TransitionCounts.count(interactions, num_items, len(HOP_WEIGHTS))
    weighted_P = counts.counts_PD @ np.array(HOP_WEIGHTS)
    return sp.csr_matrix((weighted_P, counts.targets_P, counts.indptr_N1), (num_items, num_items))


def one_hop(interactions: Interactions, num_items: int) -> ScoreBatch:
    """Transitions from the last four items, smoothed, plus a popularity prior.

    score(y) = sum_d w_d C[x_d, y] / (sum_y C[x_d, y] + 5) + 0.5 * train share of y (300 most popular only).
    """
    counts = transition_counts(interactions, num_items)
    totals_N = np.asarray(counts.sum(axis=1)).ravel()
    rates = (sp.diags(1.0 / (totals_N + SMOOTHING)) @ counts).tocsr()
    popular_N = interactions.train_counts(num_items).astype(np.float64)
    order = np.argsort(-popular_N, kind="stable")
    prior_N = np.zeros(num_items)
    prior_N[order[:POPULAR_ITEMS]] = (
        POPULAR_WEIGHT * popular_N[order[:POPULAR_ITEMS]] / max(popular_N.sum(), 1.0)
    )

    def score(batch: Histories) -> np.ndarray:
        target_at = interactions.indptr_S1[batch.sequence_C] + batch.position_C
        rows, columns, weights = [], [], []
        for distance, weight in enumerate(HOP_WEIGHTS, start=1):
            row = np.flatnonzero(batch.position_C >= distance)
            item = interactions.items_I[target_at[row] - distance]
            rows.append(row[item >= 0])
            columns.append(item[item >= 0])
            weights.append(np.full(len(rows[-1]), weight))
        pairs = (np.concatenate(rows), np.concatenate(columns))
        recent = sp.coo_matrix((np.concatenate(weights), pairs), (len(batch), num_items)).tocsr()
        return (recent @ rates).toarray() + prior_N

    return score


def rank_floor(score: ScoreBatch, histories: Histories, trie: SidTrie, exclude_history: bool) -> RankedCases:
    """Exact ranks over the full catalogue, ties by item_index; removed items are never listed.

    An SID ranks where its best item does. With `exclude_history` the items of the whole given history are
    left out.
    """
    started = time.monotonic()
    num_items = trie.num_items
    item_rank_C, sid_rank_C = (np.zeros(len(histories), dtype=np.int32) for _ in range(2))
    covered_N = np.zeros(num_items, dtype=bool)
    removed = np.flatnonzero(trie.leaf_of_item_N < 0)
    step = max(1, _BATCH_FLOATS // num_items)
    for first in range(0, len(histories), step):
        cases = np.arange(first, min(first + step, len(histories)))
        batch = histories.take(cases)
        scores_bN = score(batch)
        scores_bN[:, removed] = -np.inf
        if exclude_history:
            scores_bN[_given_items(batch)] = -np.inf
        targets = batch.targets_C.astype(np.int64)
        item_rank_C[cases] = _item_ranks(scores_bN, targets)
        sid_rank_C[cases] = _sid_ranks(scores_bN, targets, trie, item_rank_C[cases])
        covered_N |= _in_top(scores_bN, COVERAGE_CUTOFF)
    seconds = time.monotonic() - started
    return RankedCases(item_rank_C, sid_rank_C, covered_N, seconds=seconds, num_removed=len(removed))


def _given_items(batch: Histories) -> tuple[np.ndarray, np.ndarray]:
    """(row, item) of every known history item of a batch."""
    lengths = batch.position_C
    starts = batch.interactions.indptr_S1[batch.sequence_C]
    rows = np.repeat(np.arange(len(batch)), lengths)
    offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    items = batch.interactions.items_I[np.repeat(starts, lengths) + offsets]
    return rows[items >= 0], items[items >= 0]


def _item_ranks(scores_bN: np.ndarray, targets_b: np.ndarray) -> np.ndarray:
    rows = np.arange(len(targets_b))
    own = scores_bN[rows, np.maximum(targets_b, 0)][:, None]
    before = np.arange(scores_bN.shape[1])[None, :] < targets_b[:, None]
    rank = 1 + (scores_bN > own).sum(axis=1) + ((scores_bN == own) & before).sum(axis=1)
    return np.where((targets_b >= 0) & (own[:, 0] > -np.inf), rank, 0)


def _sid_ranks(
    scores_bN: np.ndarray, targets_b: np.ndarray, trie: SidTrie, item_ranks_b: np.ndarray
) -> np.ndarray:
    """Rank of the target's SID among distinct SIDs, each placed by its best item (score, item_index)."""
    if trie.num_leaves == trie.num_live:
        return item_ranks_b
    order = np.lexsort((np.arange(trie.num_items), trie.leaf_of_item_N))  # leaf by leaf, item_index ascending
    order = order[trie.num_items - trie.num_live :]  # removed items, of leaf -1, come first
    starts = np.searchsorted(trie.leaf_of_item_N[order], np.arange(trie.num_leaves))
    by_leaf = scores_bN[:, order]
    best_bM = np.maximum.reduceat(by_leaf, starts, axis=1)
    is_best = by_leaf == np.repeat(best_bM, trie.leaf_size_M, axis=1)
    first_bM = np.minimum.reduceat(np.where(is_best, order, trie.num_items), starts, axis=1)
    rows = np.arange(len(targets_b))
    leaf = trie.leaf_of_item_N[np.maximum(targets_b, 0)]
    own, own_first = best_bM[rows, leaf][:, None], first_bM[rows, leaf][:, None]
    rank = 1 + (best_bM > own).sum(axis=1) + ((best_bM == own) & (first_bM < own_first)).sum(axis=1)
    return np.where((targets_b >= 0) & (leaf >= 0) & (own[:, 0] > -np.inf), rank, 0)


def _in_top(scores_bN: np.ndarray, cutoff: int) -> np.ndarray:
    """Bool [N]: items in the first `cutoff` of any row, ties by item_index."""
    cutoff = min(cutoff, scores_bN.shape[1])
    # torch's topk is ten times faster than numpy's partition here.
    border = torch.from_numpy(scores_bN).topk(cutoff, dim=1).values[:, -1:].numpy()
    above, tied = scores_bN > border, (scores_bN == border) & (scores_bN > -np.inf)
    room = cutoff - above.sum(axis=1)
    crowded = np.flatnonzero(tied.sum(axis=1) > room)
    tied[crowded] &= np.cumsum(tied[crowded], axis=1) <= room[crowded, None]
    return (above | tied).any(axis=0)
