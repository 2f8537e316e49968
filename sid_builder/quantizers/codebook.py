"""A codebook that is searched: the nearest centroid of every row of a chunk.

One matrix product and one search: argmin |x - c|^2 is argmax x.c - |c|^2 / 2. A price per centroid may be
added to the squared distance (`balanced`); it then belongs to the codebook.

Legend: D dimensions, C rows of a chunk, K centroids.
"""

from threading import local
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


class Codebook:
    """Centroids on a device, ready to be searched."""

    def __init__(
        self, centroids_KD: np.ndarray, device: "torch.device", prices_K: np.ndarray | None = None
    ) -> None:
        import torch

        wide_KD = centroids_KD.astype(np.float64)
        half_K = np.einsum("kd,kd->k", wide_KD, wide_KD) / 2
        if prices_K is not None:
            half_K += prices_K.astype(np.float64) / 2
        self.centroids_KD = torch.tensor(centroids_KD, device=device)  # a copy, aligned as torch does
        self._half_K = torch.from_numpy(half_K.astype(np.float32)).to(device)
        self._buffers = local()  # one per thread: fresh memory for every chunk costs a tenth of the time

    def scores(self, chunk_CD: "torch.Tensor") -> "torch.Tensor":
        """[C, K], where |x|^2 - 2 score is squared distance plus price; overwritten by this thread's next
        call.
        """
        import torch

        shape = (len(chunk_CD), len(self.centroids_KD))
        if getattr(self._buffers, "scores", None) is None or self._buffers.scores.shape != shape:
            self._buffers.scores = torch.empty(shape, device=chunk_CD.device)
        torch.mm(chunk_CD, self.centroids_KD.T, out=self._buffers.scores)
        return self._buffers.scores.sub_(self._half_K)

    def nearest(self, chunk_CD: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        """(best score [C], its code int64 [C]); the lower code on a tie."""
        best_C, codes_C = self.scores(chunk_CD).max(dim=1)
        return best_C, codes_C


def squared_distances(vectors_ND: np.ndarray, centroids_KD: np.ndarray) -> np.ndarray:
    """Every row of one to every row of the other, float32 [N, K]; for few rows, on CPU."""
    square_N, square_K = (np.einsum("nd,nd->n", rows, rows) for rows in (vectors_ND, centroids_KD))
    distance_NK = square_N[:, None] - 2 * (vectors_ND @ centroids_KD.T) + square_K
    return np.maximum(distance_NK, 0, out=distance_NK)
