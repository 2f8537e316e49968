"""Where a level's codes start: k-means of the residuals that enter it.

Legend: M rows, E latent dimensions, K codes.
"""

import torch
from torch.nn import functional

from sid_builder.quantizers.kmeans import kmeans


def kmeans_codes(
    residual_ME: torch.Tensor, num_codes: int, seed: int, by_angle: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes float32 [K, E], mean length of what they leave), on the residuals' device.

    Args:
        by_angle: cluster directions; a code then is its direction times its rows' mean projection on it, for
            a direction has no length of its own.
    """
    points_ME = functional.normalize(residual_ME) if by_angle else residual_ME
    found = kmeans(points_ME, num_codes, seed=seed)
    codes_M = torch.from_numpy(found.codes_M).to(residual_ME.device)
    codes_KE = torch.from_numpy(found.centroids_KD).to(residual_ME.device)
    if by_angle:
        codes_KE = functional.normalize(codes_KE)
        along_M = (residual_ME * codes_KE[codes_M]).sum(dim=1)
        counts_K = torch.bincount(codes_M, minlength=num_codes).clamp_min(1)
        codes_KE = codes_KE * (torch.bincount(codes_M, along_M, num_codes) / counts_K)[:, None]
    return codes_KE, (residual_ME - codes_KE[codes_M]).norm(dim=1).mean()
