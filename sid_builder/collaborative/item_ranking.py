"""Ranks over the whole catalogue from dense scores: the best items, and the NDCG that chooses an epoch.

Legend: C cases, b rows of one batch, N items, K items listed.
"""

from collections.abc import Callable, Sequence

import numpy as np

from sid_builder.errors import InputError
from sid_builder.interactions import Histories

_BATCH_FLOATS = 1 << 24  # dense scores held at once: 64 MiB of float32
_CUTOFF = 10

ScoreBatch = Callable[[Histories], np.ndarray]


def top_items(
    scores_bN: np.ndarray, k: int, exclude: Sequence[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of each row: score descending, then item_index ascending.

    Args:
        scores_bN: float32; left as it is.
        exclude: per row the items to leave out.

    Returns:
        Items int32 [b, K] and scores float32 [b, K]; a row with fewer than k items left ends in -1 and -inf.

    Raises:
        InputError: if k is below 1 or above the number of items.
    """
    num_items = scores_bN.shape[1]
    if not 1 <= k <= num_items:
        raise InputError(f"k: {k} is outside 1..{num_items}, the items there are")
    if exclude is not None:
        scores_bN = scores_bN.copy()
        _strike(scores_bN, exclude)
    border_b1 = np.partition(scores_bN, num_items - k, axis=1)[:, num_items - k, None]
    # In row order and by item_index; more than k in a row where its k-th best score is shared.
    rows, items = np.nonzero(scores_bN >= border_b1)
    order = np.lexsort((items, -scores_bN[rows, items], rows))
    counts = np.bincount(rows, minlength=len(scores_bN))
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = order[place < k].reshape(len(scores_bN), k)
    best_bK = scores_bN[rows[chosen], items[chosen]]
    return np.where(best_bK > -np.inf, items[chosen], -1).astype(np.int32), best_bK


def ndcg_at_10(score: ScoreBatch, cases: Histories, num_items: int) -> float:
    """Mean of 1 / log2(rank + 1) over cases whose target is among the first 10, 0 for the others.

    Full catalogue, ties by item_index; items of the whole given history are left out if the data has no
    repeats (the protocol's convention). A target outside the catalogue is a miss. `score` gives float32
    [b, N], which is written to.
    """
    exclude = not cases.interactions.has_repeats
    step = max(1, _BATCH_FLOATS // num_items)
    total = 0.0
    for first in range(0, len(cases), step):
        batch = cases.take(np.arange(first, min(first + step, len(cases))))
        scores_bN = score(batch)
        if exclude:
            _strike(scores_bN, [batch.history(case) for case in range(len(batch))])
        targets_b1 = batch.targets_C.astype(np.int64)[:, None]
        own_b1 = np.take_along_axis(scores_bN, np.maximum(targets_b1, 0), axis=1)
        rank_b = 1 + np.count_nonzero(scores_bN > own_b1, axis=1)
        rank_b += np.count_nonzero((scores_bN == own_b1) & (np.arange(num_items) < targets_b1), axis=1)
        listed_b = (targets_b1[:, 0] >= 0) & (own_b1[:, 0] > -np.inf) & (rank_b <= _CUTOFF)
        total += float((listed_b / np.log2(rank_b + 1.0)).sum())
    return total / len(cases)


def _strike(scores_bN: np.ndarray, items: Sequence[np.ndarray]) -> None:
    """Set the scores of the given items of each row to -inf, in place."""
    rows = np.repeat(np.arange(len(items)), [len(row) for row in items])
    scores_bN[rows, np.concatenate([*items, np.empty(0, np.int64)]).astype(np.int64)] = -np.inf
