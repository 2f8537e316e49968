"""What a change did to a model: the same cases before and after, with a paired bootstrap."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from serve.evaluation.metrics import bootstrap_means, interval

# Name -> function of (ranks, cutoff) giving one value per case, and the cutoff.
RankMetrics = Mapping[str, tuple[Callable[[np.ndarray, int], np.ndarray], int]]


def paired_differences(
    before_C: np.ndarray, after_C: np.ndarray, metrics: RankMetrics
) -> dict[str, dict[str, Any]]:
    """`paired_difference` of every metric.

    Args:
        before_C, after_C: int32 ranks [C] of the same targets (0: not in the list); at least one.
    """
    return {
        name: paired_difference(score(before_C, k), score(after_C, k)) for name, (score, k) in metrics.items()
    }


def paired_difference(before_C: np.ndarray, after_C: np.ndarray) -> dict[str, Any]:
    """Means before and after, after - before, and 95 % bootstrap intervals: of the difference, paired by
    case (`interval_95`), and of the two means (`before_95`, `after_95`).

    Args:
        before_C, after_C: one value per case [C], of the same cases; at least one.
    """
    samples_RM = bootstrap_means(np.stack([after_C - before_C, before_C, after_C], axis=1))
    intervals = [interval(samples_RM[:, column]) for column in range(3)]
    return {
        "before": float(before_C.mean()),
        "after": float(after_C.mean()),
        "difference": float((after_C - before_C).mean()),
        **dict(zip(("interval_95", "before_95", "after_95"), intervals, strict=True)),
    }
