"""Codebooks of residual quantization as torch parameters, and the autoencoder they sit in.

Legend: B rows of a batch, D input dimensions, E latent dimensions, L levels, K codes of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from sid_builder.quantizers.neural.balance import sinkhorn_assignment


@dataclass
class Quantized:
    """What a pass through the first A levels gives; lists have one entry per level.

    `residuals` carry gradient to the latents and to the codes chosen before, `chosen` to this level's codes.
    """

    codes_BA: torch.Tensor  # int64
    residuals: list[torch.Tensor]  # [B, E] as they enter the level
    chosen: list[torch.Tensor]  # [B, E]
    sum_BE: torch.Tensor  # sum of the chosen codes, each at its level's scale


class ResidualCodebooks(nn.Module):
    """L codebooks; each level codes what the ones before it left.

    Args:
        cosine_levels: that many first levels choose by cosine, the others by Euclidean distance.
        unit_residuals: divide what a level leaves by its length. `scales` keeps the mean length, so that
            codes can be turned into vectors.
    """

    def __init__(
        self,
        level_sizes: Sequence[int],
        dim: int,
        generator: torch.Generator,
        cosine_levels: int = 0,
        unit_residuals: bool = False,
    ) -> None:
        super().__init__()
        self.cosine_levels = cosine_levels
        self.unit_residuals = unit_residuals
        # VQ-VAE's uniform start (1711.00937): small, so that without k-means most codes are never chosen.
        self.codes = nn.ParameterList(
            nn.Parameter((torch.rand(size, dim, generator=generator) * 2 - 1) / size) for size in level_sizes
        )
        self.scales: torch.Tensor
        self.register_buffer("scales", torch.ones(len(level_sizes)))

    def forward(
        self, latents_BE: torch.Tensor, levels: int, even_from: int | None = None, epsilon: float = 0.0
    ) -> Quantized:
        """Quantize with the first `levels` levels, each row by its nearest code.

        Args:
            even_from: from this level on, rows are spread evenly over the codes (Sinkhorn at `epsilon`), so
                that a row's code depends on the others: for training.
        """
        codes, residuals, chosen = [], [], []
        sum_BE = torch.zeros_like(latents_BE)
        residual_BE = latents_BE
        for level in range(levels):
            if level > 0:
                residual_BE = self._entering(residual_BE)
            with torch.no_grad():
                distance_BK = self.distances(residual_BE, level)
                if even_from is not None and level >= even_from:
                    code_B = sinkhorn_assignment(distance_BK, epsilon)
                else:
                    code_B = distance_BK.argmin(dim=1)  # the first, so the lower code on a tie
            chosen_BE = functional.embedding(code_B, self.codes[level])
            codes.append(code_B)
            residuals.append(residual_BE)
            chosen.append(chosen_BE)
            sum_BE = sum_BE + self.scales[: level + 1].prod() * chosen_BE
            residual_BE = residual_BE - chosen_BE
        codes_BA = torch.stack(codes, dim=1) if codes else latents_BE.new_empty(len(latents_BE), 0).long()
        return Quantized(codes_BA, residuals, chosen, sum_BE)

    def distances(self, residual_BE: torch.Tensor, level: int) -> torch.Tensor:
        """To every code of a level, [B, K]: squared Euclidean, or 2 - 2 cos for the first `cosine_levels`."""
        codes_KE = self.codes[level]
        if level < self.cosine_levels:
            residual_BE, codes_KE = functional.normalize(residual_BE), functional.normalize(codes_KE)
        return (
            (residual_BE**2).sum(dim=1, keepdim=True)
            - 2 * residual_BE @ codes_KE.T
            + (codes_KE**2).sum(dim=1)
        )

    def residual(self, latents_BE: torch.Tensor, codes_BL: torch.Tensor, level: int) -> torch.Tensor:
        """What enters `level` when the codes before it are those given, [B, E]."""
        residual_BE = latents_BE
        for before in range(level):
            residual_BE = self._entering(residual_BE - self.codes[before][codes_BL[:, before]])
        return residual_BE

    def lookup(self, codes_BL: torch.Tensor, levels: int) -> torch.Tensor:
        """Sum of the first `levels` codes at their scales, [B, E]."""
        sum_BE = torch.zeros(len(codes_BL), self.codes[0].shape[1], device=codes_BL.device)
        for level in range(levels):
            sum_BE = sum_BE + self.scales[: level + 1].prod() * self.codes[level][codes_BL[:, level]]
        return sum_BE

    def _entering(self, residual_BE: torch.Tensor) -> torch.Tensor:
        return functional.normalize(residual_BE) if self.unit_residuals else residual_BE


class QuantizedAutoencoder(nn.Module):
    """Encoder, codebooks and decoder for inputs of `num_dims` dimensions.

    With `nn.Identity` as encoder and decoder the codes are vectors of the input space.
    """

    def __init__(
        self, num_dims: int, encoder: nn.Module, codebooks: ResidualCodebooks, decoder: nn.Module
    ) -> None:
        super().__init__()
        self.num_dims = num_dims
        self.encoder = encoder
        self.codebooks = codebooks
        self.decoder = decoder


def multilayer(sizes: Sequence[int], generator: torch.Generator, zero_last: bool = False) -> nn.Sequential:
    """Linear layers of the given sizes, input first, with ReLU between them.

    Args:
        zero_last: start with an output of zero, for a branch that is added to its input.
    """
    layers: list[nn.Module] = []
    for entering, leaving in zip(sizes[:-1], sizes[1:], strict=True):
        linear = nn.utils.skip_init(nn.Linear, entering, leaving)
        with torch.no_grad():
            # He's normal start from our own generator: torch's default reads the global one.
            linear.weight.normal_(0, (2 / entering) ** 0.5, generator=generator)
            linear.bias.zero_()
        layers += [linear, nn.ReLU()]
    layers.pop()
    if zero_last:
        nn.init.zeros_(linear.weight)
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        return x_BD + self.branch(x_BD)
