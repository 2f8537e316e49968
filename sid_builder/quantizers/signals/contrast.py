"""Contrast of pairs of rows under an autoencoder; the torch part of the co-occurrence signal.

Legend: P pairs of a step, D input dimensions.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sid_builder.quantizers.signals import SignalBatch

# CLIP's start and bound of a learned inverse temperature, which FORGE takes over.
_START = math.log(1 / 0.07)
_LARGEST = math.log(100)


class PairContrast(nn.Module):
    """FORGE's loss (arXiv 2509.20904) over pairs (i, j), with x an input and x^ its reconstruction:

        1/3 [CE(x^_i . x^_j) + CE(x^_i . x_j) + CE(x^_i . x_i)]

    Every term is the mean over i and j in exchanged roles, of unit vectors, with a learned temperature of its
    own; the other pairs of the step are the negatives, except where they hold the same item.
    """

    def __init__(self, pairs_P2: np.ndarray, pairs_per_step: int) -> None:
        super().__init__()
        self.pairs_P2 = pairs_P2
        self.pairs_per_step = pairs_per_step
        self.log_scales = nn.Parameter(torch.full((3,), _START))

    def rows(self, rng: np.random.Generator, batch_B: np.ndarray) -> np.ndarray:
        """All i and then all j of the drawn pairs, int64 [2P]."""
        return self.pairs_P2[rng.integers(len(self.pairs_P2), size=self.pairs_per_step)].T.reshape(-1)

    def forward(self, batch: SignalBatch) -> torch.Tensor:
        first_PD, second_PD = functional.normalize(batch.x_BD).chunk(2)
        decoded_first_PD, decoded_second_PD = functional.normalize(batch.reconstruction_BD).chunk(2)
        item_B = torch.from_numpy(batch.rows_B).to(first_PD.device)
        item_first_P, item_second_P = item_B.chunk(2)
        scales = self.log_scales.clamp_max(_LARGEST).exp()
        terms = (
            (decoded_first_PD, decoded_second_PD, item_second_P),
            (decoded_second_PD, decoded_first_PD, item_first_P),
            (decoded_first_PD, second_PD, item_second_P),
            (decoded_second_PD, first_PD, item_first_P),
            (decoded_first_PD, first_PD, item_first_P),
            (decoded_second_PD, second_PD, item_second_P),
        )
        losses = [
            _cross_entropy(scales[index // 2] * queries_PD @ keys_PD.T, items_P)
            for index, (queries_PD, keys_PD, items_P) in enumerate(terms)
        ]
        return torch.stack(losses).mean()


def _cross_entropy(logits_PP: torch.Tensor, items_P: torch.Tensor) -> torch.Tensor:
    """Row p shall pick column p; other columns of the same item are no negatives."""
    same_PP = items_P[:, None] == items_P[None, :]
    same_PP.fill_diagonal_(False)
    return functional.cross_entropy(
        logits_PP.masked_fill(same_PP, -math.inf), torch.arange(len(logits_PP), device=logits_PP.device)
    )
