"""How a gradient passes the choice of a code, which has none of its own.

Legend: B rows of a batch, E latent dimensions.
"""

import torch
from torch.nn import functional


def straight_through(latents_BE: torch.Tensor, quantized_BE: torch.Tensor) -> torch.Tensor:
    """`quantized_BE` forward; backward the gradient reaches `latents_BE` unchanged (VQ-VAE, 1711.00937)."""
    return latents_BE + (quantized_BE - latents_BE).detach()


def rotate(latents_BE: torch.Tensor, quantized_BE: torch.Tensor) -> torch.Tensor:
    """`quantized_BE` forward, as a fixed rotation and rescaling of `latents_BE` (arXiv 2410.06424, eq. 4).

    Backward, the gradient keeps its angle to the code it was taken at. With unit vectors z, q and
    r = (z + q) / |z + q|, the rotation of z onto q is I - 2 r r' + 2 q z'. A zero vector has no direction
    and gets no gradient.
    """
    with torch.no_grad():
        from_BE = functional.normalize(latents_BE)
        to_BE = functional.normalize(quantized_BE)
        middle_BE = functional.normalize(from_BE + to_BE)
        scale_B1 = quantized_BE.norm(dim=1, keepdim=True) / latents_BE.norm(dim=1, keepdim=True).clamp_min(
            1e-12
        )
    along_middle_B1 = (latents_BE * middle_BE).sum(dim=1, keepdim=True)
    along_from_B1 = (latents_BE * from_BE).sum(dim=1, keepdim=True)
    rotated_BE = scale_B1 * (latents_BE - 2 * along_middle_B1 * middle_BE + 2 * along_from_B1 * to_BE)
    return rotated_BE + (quantized_BE - rotated_BE).detach()  # exactly what will be decoded
