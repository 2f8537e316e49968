"""A codebook that is searched: the nearest centroid of every row of a chunk.

One matrix product and one search: argmin |x - c|^2 is argmax x.c - |c|^2 / 2. A price per centroid may be
added to the squared distance (`balanced`); it then belongs to the codebook.

Legend: D dimensions, C rows of a chunk, K centroids.
"""

from typing import TYPE_CHECKING

import numpy as np

from sid_builder.quantizers.row_chunks import Buffers

if TYPE_CHECKING:
    import torch


class Codebook:
    """Centroids on a device, ready to be searched."""

    def __init__(
        self,
        centroids_KD: np.ndarray,
        device: "torch.device",
        prices_K: np.ndarray | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        import torch

        wide_KD = centroids_KD.astype(np.float64)
        half_K = np.einsum("kd,kd->k", wide_KD, wide_KD) / 2
        if prices_K is not None:
            half_K += prices_K.astype(np.float64) / 2
        self.centroids_KD = torch.tensor(centroids_KD, device=device)  # a copy, aligned as torch does
        self._half_K = torch.from_numpy(half_K.astype(np.float32)).to(device)
        self._buffers = buffers or Buffers()  # shared by codebooks used in turn, they stay in cache

    def scores(self, chunk_CD: "torch.Tensor") -> "torch.Tensor":
        """[C, K], where |x|^2 - 2 score is squared distance plus price; overwritten by this thread's next
        call.
        """
        import torch

        shape = (len(chunk_CD), len(self.centroids_KD))
        scores_CK = self._buffers.get("scores", shape, chunk_CD.device)
        return torch.mm(chunk_CD, self.centroids_KD.T, out=scores_CK).sub_(self._half_K)

    def nearest(self, chunk_CD: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        """(scores [C, K], code of each row's best int64 [C]); the lower code on a tie."""
        import torch

        scores_CK = self.scores(chunk_CD)
        if scores_CK.device.type == "cpu":  # numpy's search takes a quarter of the time of torch's (2.13)
            return scores_CK, torch.from_numpy(scores_CK.numpy().argmax(axis=1))
        return scores_CK, scores_CK.argmax(dim=1)

    def subtract_(self, chunk_CD: "torch.Tensor", codes_C: "torch.Tensor") -> "torch.Tensor":
        """Each row less its code's centroid, in place."""
        import torch

        shape = (len(chunk_CD), self.centroids_KD.shape[1])
        centroids_CD = self._buffers.get("centroids", shape, chunk_CD.device)
        return chunk_CD.sub_(torch.index_select(self.centroids_KD, 0, codes_C, out=centroids_CD))


def squared_distances(vectors_ND: np.ndarray, centroids_KD: np.ndarray) -> np.ndarray:
    """Every row of one to every row of the other, float32 [N, K]; for few rows, on CPU."""
    square_N, square_K = (np.einsum("nd,nd->n", rows, rows) for rows in (vectors_ND, centroids_KD))
    distance_NK = square_N[:, None] - 2 * (vectors_ND @ centroids_KD.T) + square_K
    return np.maximum(distance_NK, 0, out=distance_NK)
