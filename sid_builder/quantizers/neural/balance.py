"""What keeps codes in use: balanced assignment, a pull to uniform use, and new lives for dead codes.

Legend: B rows of a batch, E latent dimensions, L levels, K codes of a level.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

# Rounds of row and column scaling, as LC-Rec's.
_SINKHORN_ROUNDS = 50
_SMALLEST = 1e-300
# Weight of the past in the running mean of a code's share, per step.
_USAGE_DECAY = 0.99


def sinkhorn_assignment(distance_BK: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Codes int64 [B] that use all of a level about equally: the largest entry per row of the transport plan.

    Distances are divided by half their range, so `epsilon` does not depend on their unit (LC-Rec, arXiv
    2311.09049, uses .003). In float64: exp(-2 / .003) is below float32. Rows and columns are scaled by
    factors, which costs two products of matrix and vector a round.
    """
    distance_BK = distance_BK.double()
    half_range = ((distance_BK.max() - distance_BK.min()) / 2).clamp_min(1e-12)
    nearest_B1 = distance_BK.min(dim=1, keepdim=True).values
    kernel_BK = torch.exp((nearest_B1 - distance_BK) / (half_range * epsilon))
    column_K = torch.ones_like(kernel_BK[0])
    for _ in range(_SINKHORN_ROUNDS):
        row_B = 1 / (kernel_BK @ column_K).clamp_min(_SMALLEST)
        column_K = len(row_B) / len(column_K) / (row_B @ kernel_BK).clamp_min(_SMALLEST)
    return (kernel_BK * column_K).argmax(dim=1)


def kl_to_uniform(distance_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(mean over the batch of softmax(-distance / T) || uniform) >= 0, a scalar; 0 when use is even.

    T is `temperature` times the mean distance to the nearest code, so it needs no retuning as the latents
    grow. Minimised (weight > 0), this raises the entropy of use; the reverse sign would collapse it.
    """
    unit = distance_BK.detach().min(dim=1).values.mean().clamp_min(1e-12)
    share_K = torch.softmax(-distance_BK / (temperature * unit), dim=1).mean(dim=0)
    return torch.log(share_K.clamp_min(1e-12) * len(share_K)) @ share_K


class CodeUsage(nn.Module):
    """Running share of rows per code, and for how many steps each code has been all but unused.

    A module so that a checkpoint takes it along; it has no parameters.
    """

    def __init__(self, level_sizes: Sequence[int]) -> None:
        super().__init__()
        for level, size in enumerate(level_sizes):
            self.register_buffer(f"share_{level}", torch.full((size,), 1 / size))
            self.register_buffer(f"starved_{level}", torch.zeros(size, dtype=torch.int64))

    def share(self, level: int) -> torch.Tensor:
        """Running share of rows per code, float32 [K]."""
        return self.get_buffer(f"share_{level}")

    def update(self, codes_B: torch.Tensor, level: int, low: float) -> None:
        """Count a batch; a code is starved while its share is below `low` times an even share."""
        share_K, starved_K = self.share(level), self.get_buffer(f"starved_{level}")
        counts_K = torch.bincount(codes_B, minlength=len(share_K))
        share_K.lerp_(counts_K / len(codes_B), 1 - _USAGE_DECAY)
        starved_K.add_(1).mul_(share_K < low / len(share_K))

    def dead(self, level: int, steps: int) -> torch.Tensor:
        """Codes starved for `steps` steps, int64."""
        return torch.nonzero(self.get_buffer(f"starved_{level}") >= steps)[:, 0]

    def restart(self, codes: torch.Tensor, level: int) -> None:
        """Treat codes as evenly used from here on."""
        share_K = self.share(level)
        share_K[codes] = 1 / len(share_K)
        self.get_buffer(f"starved_{level}")[codes] = 0

    def perplexity(self, level: int) -> float:
        share_K = self.share(level) / self.share(level).sum()
        return float(torch.exp(-torch.xlogy(share_K, share_K).sum()))


def high_error_rows(error_B: torch.Tensor, wanted: int, rng: np.random.Generator) -> torch.Tensor:
    """Up to `wanted` different rows drawn in proportion to their squared error, int64; those with none never.

    In proportion, as k-means++ does it, since the very worst rows are outliers that would keep a code each.
    """
    weight_B = error_B.double().cpu().numpy()
    candidates = int((weight_B > 0).sum())
    if candidates == 0:
        return torch.empty(0, dtype=torch.int64, device=error_B.device)
    rows = rng.choice(len(weight_B), min(wanted, candidates), replace=False, p=weight_B / weight_B.sum())
    return torch.from_numpy(rows).to(error_B.device)
