"""What a change did to a model: ranks of the same targets before and after, with a paired bootstrap."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from serve.evaluation.metrics import bootstrap_means, interval

# Name -> function of (ranks, cutoff) giving one value per case, and the cutoff.
RankMetrics = Mapping[str, tuple[Callable[[np.ndarray, int], np.ndarray], int]]


def paired_differences(
    before_C: np.ndarray, after_C: np.ndarray, metrics: RankMetrics
) -> dict[str, dict[str, Any]]:
    """Per metric: before, after, after - before and its paired 95 % bootstrap interval.

    Args:
        before_C, after_C: int32 ranks [C] of the same targets (0: not in the list); at least one.
    """
    pairs = {name: (score(before_C, k), score(after_C, k)) for name, (score, k) in metrics.items()}
    samples_RM = bootstrap_means(np.stack([after - before for before, after in pairs.values()], axis=1))
    return {
        name: {
            "before": float(before.mean()),
            "after": float(after.mean()),
            "difference": float((after - before).mean()),
            "interval_95": interval(samples_RM[:, column]),
        }
        for column, (name, (before, after)) in enumerate(pairs.items())
    }
