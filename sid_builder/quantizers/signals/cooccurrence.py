"""Co-occurrence contrast (FORGE): what users take together shall be reconstructed alike.

Legend: P pairs, C cases (a train item and what came before it), M rows of `fit`.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sid_builder.errors import InputError
from sid_builder.quantizers import FitContext

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CooccurrenceConfig:
    """Which items are pairs, and how many of them a step sees."""

    window: int = field(
        default=3, metadata={"help": "Items at most this many places apart in a train sequence are a pair."}
    )
    pairs_per_step: int = field(
        default=256, metadata={"help": "Pairs per step; the others of a step are each one's negatives."}
    )


class Cooccurrence:
    """A signal: see `sid_builder.quantizers.signals`."""

    def __init__(self, config: CooccurrenceConfig, seed: int = 0) -> None:
        for name, least in (("window", 1), ("pairs_per_step", 2)):
            value = getattr(config, name)
            if value < least:
                raise InputError(
                    f"quantizer_args.signal_args.{name}: {value} is below {least}; give at least {least}"
                )
        self.config = config

    def prepare(self, context: FitContext) -> "torch.nn.Module":
        pairs_P2 = cooccurring_rows(context, self.config.window)
        if len(pairs_P2) == 0:
            raise InputError(
                "quantizer_args.signal: 'cooccurrence' found no two different items near each other in train "
                "sequences; give longer sequences or a larger window, or drop the signal"
            )
        # Imported here: pairs are counted, and their lack reported, without torch.
        from sid_builder.quantizers.signals.contrast import PairContrast

        return PairContrast(pairs_P2, self.config.pairs_per_step)


def cooccurring_rows(context: FitContext, window: int) -> np.ndarray:
    """Rows of `fit` whose items are at most `window` places apart in train, int64 [P, 2]; once per time seen.

    Only cases of train are read: a train position and what came before it.
    """
    interactions = context.interactions
    cases = interactions.histories("train")
    last_C = interactions.indptr_S1[cases.sequence_C] + cases.position_C
    row_N = np.full(context.catalog.num_items + 1, -1, dtype=np.int64)  # the last entry serves item -1
    row_N[context.items_M] = np.arange(len(context.items_M))
    parts = []
    for distance in range(1, window + 1):
        inside_C = last_C[cases.position_C >= distance]
        pairs_P2 = row_N[
            np.stack([interactions.items_I[inside_C - distance], interactions.items_I[inside_C]], axis=1)
        ]
        parts.append(pairs_P2[(pairs_P2 >= 0).all(axis=1) & (pairs_P2[:, 0] != pairs_P2[:, 1])])
    return np.concatenate(parts)
