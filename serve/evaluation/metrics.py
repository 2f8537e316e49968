"""Ranking metrics over the ranks of targets: pure numpy, the definitions of PROTOCOL.md.

Rank 1 is the best, 0 means that the target is not in the list. One target per case, full catalogue.

Legend: C cases, N items, M metrics, R bootstrap resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CUTOFFS = (1, 3, 5, 10, 20, 50)
COVERAGE_CUTOFF = 10
HEAD_SHARE = 0.2


@dataclass(frozen=True)
class RankedCases:
    """Where one system put the targets of a set of cases.

    Attributes:
        item_rank_C, sid_rank_C: int32 rank of the target item, and of its SID among the distinct SIDs listed.
        covered_N: bool; items that appear in any top 10.
        num_beams, invalid_beams, duplicate_beams: totals over all cases; zero for systems without a beam.
        seconds: time spent ranking.
        num_removed: items that are off the shelf, which nothing can cover.
    """

    item_rank_C: np.ndarray
    sid_rank_C: np.ndarray
    covered_N: np.ndarray
    num_beams: int = 0
    invalid_beams: int = 0
    duplicate_beams: int = 0
    seconds: float = 0.0
    num_removed: int = 0

    @property
    def coverage(self) -> float:
        """Share of the items on the shelf in any top 10."""
        return float(self.covered_N.sum() / (len(self.covered_N) - self.num_removed))

    @property
    def invalid_rate(self) -> float:
        return self.invalid_beams / self.num_beams if self.num_beams else 0.0

    @property
    def duplicate_rate(self) -> float:
        return self.duplicate_beams / self.num_beams if self.num_beams else 0.0


def hits(rank_C: np.ndarray, cutoff: int) -> np.ndarray:
    """1.0 where the target is among the first `cutoff`, float64 [C]; its mean is HR@K."""
    return ((rank_C >= 1) & (rank_C <= cutoff)).astype(np.float64)


def gains(rank_C: np.ndarray, cutoff: int) -> np.ndarray:
    """1 / log2(rank + 1) where the target is among the first `cutoff`, float64 [C]; its mean is NDCG@K."""
    return hits(rank_C, cutoff) / np.log2(np.maximum(rank_C, 1) + 1.0)


def metrics_of_ranks(rank_C: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """`{"hr@1": ..., "ndcg@1": ..., ...}`, each the mean over cases; empty when there are no cases."""
    if len(rank_C) == 0:
        return {}
    result = {}
    for cutoff in cutoffs:
        result[f"hr@{cutoff}"] = float(hits(rank_C, cutoff).mean())
        result[f"ndcg@{cutoff}"] = float(gains(rank_C, cutoff).mean())
    return result


def head_items(train_counts_N: np.ndarray, share: float = HEAD_SHARE) -> np.ndarray:
    """Bool [N]: the `share` of the catalogue (rounded up) most frequent in train, ties by item_index."""
    head = np.zeros(len(train_counts_N), dtype=bool)
    order = np.argsort(-train_counts_N.astype(np.int64), kind="stable")
    head[order[: int(np.ceil(share * len(order)))]] = True
    return head & (train_counts_N > 0)


def slices_of(targets_C: np.ndarray, train_counts_N: np.ndarray) -> dict[str, np.ndarray]:
    """Named bool masks over cases, by the train count of the target.

    cold: never in train, or not in the catalogue at all (-1); warm: the others; head: the 20 % of the
        catalogue
    seen most often in train; tail: warm and not head.
    """
    known = targets_C >= 0
    safe = np.where(known, targets_C, 0)
    warm = known & (train_counts_N[safe] > 0)
    head = warm & head_items(train_counts_N)[safe]
    return {"cold": ~warm, "warm": warm, "head": head, "tail": warm & ~head}


def bootstrap_means(values_CM: np.ndarray, seed: int = 0, resamples: int = 1000) -> np.ndarray:
    """Means of M per-case values over resampled cases, float64 [R, M].

    All columns share each resample, so the difference of two columns is a paired bootstrap.
    """
    rng = np.random.default_rng(seed)
    num_cases = len(values_CM)
    means = np.empty((resamples, values_CM.shape[1]))
    for row in range(resamples):
        weights_C = np.bincount(rng.integers(0, num_cases, num_cases), minlength=num_cases)
        means[row] = weights_C @ values_CM
    return means / num_cases


def interval(samples_R: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The central `level` of bootstrap samples (percentile method)."""
    low, high = np.quantile(samples_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
