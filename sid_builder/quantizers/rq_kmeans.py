"""Residual k-means on L2-normalised residuals.

Normalising each level's residual keeps a few far items from claiming most codes: on Beauty (MiniLM, 3x256)
the second level's perplexity is 228 instead of 79, at a lower error, and all codes are used where public
RQ-VAE indices use 48-197 of 256. This is RK-Means of GRID (https://github.com/snap-research/GRID). `balanced`
gives every code of a level about as many items (OneRec, https://arxiv.org/abs/2502.18965).

Legend: N items, M items fitted on, D dimensions, C rows of a chunk, L levels, K codes of a level.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from sid_builder.errors import InputError
from sid_builder.quantizers import FitContext
from sid_builder.quantizers.chunked import ChunkedQuantizer, check_enough, shape_of
from sid_builder.quantizers.codebook import Codebook, squared_distances
from sid_builder.quantizers.kmeans import kmeans
from sid_builder.quantizers.row_chunks import (
    Buffers,
    Device,
    in_order,
    pick_device,
    ranges,
    read_rows,
    rows_per_chunk,
    unit_rows_,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RQKMeansConfig:
    """Shape of the codebooks and how they are learnt."""

    levels: int = field(default=3, metadata={"help": "Codes per SID; the decoder takes one step per level."})
    codes_per_level: int | list[int] = field(
        default=256, metadata={"help": "Codebook size, one number or one per level."}
    )
    normalize: Literal["residuals", "input", "none"] = field(
        default="residuals",
        metadata={"help": "L2-normalise before every level, before the first only, or never."},
    )
    balanced: bool = field(
        default=False,
        metadata={"help": "Let no code of a level hold more than 1.05 times the mean (or the mean + 1)."},
    )
    iterations: int = field(default=25, metadata={"help": "Lloyd iterations per level."})
    restarts: int = field(default=1, metadata={"help": "Runs of k-means per level; the best one is kept."})
    device: Device = field(
        default="auto", metadata={"help": "Where distances are computed; auto: CUDA if there is one."}
    )


class RQKMeans(ChunkedQuantizer):
    """Residual k-means; deterministic by seed, independent of the thread count (on CPU)."""

    type_name = "rq_kmeans"

    def __init__(self, config: RQKMeansConfig, seed: int = 0) -> None:
        self.level_sizes = shape_of(config.levels, config.codes_per_level)
        if config.iterations < 1 or config.restarts < 1:
            raise InputError("quantizer_args: iterations and restarts must be at least 1")
        self.config = config
        self.seed = seed
        self.centroids: list[np.ndarray] = []  # per level float32 [K, D]
        self.prices: list[np.ndarray | None] = []  # per level float32 [K], added to distances; balanced only
        # Mean length of the residual that entered a level, 1 for the first; the last is what all levels left.
        self.scales: list[float] = []

    def fit(self, embeddings_MD: np.ndarray, context: FitContext | None = None) -> None:
        """Learn the codebooks from [M, D]; holds one float32 copy of it.

        Raises:
            InputError: if a level has more codes than there are distinct vectors, or a value is not finite.
        """
        self.fit_residual(embeddings_MD)

    def fit_residual(self, embeddings_MD: np.ndarray) -> "torch.Tensor":
        """`fit`; returns what the levels leave of each vector, float32 [M, D], scaled as a next level would
        see it.
        """
        check_enough(embeddings_MD, max(self.level_sizes))
        device = pick_device(self.config.device)
        self.centroids, self.prices, self.scales = [], [], [1.0]
        residual_MD = read_rows(embeddings_MD, self._first, device)
        for level, size in enumerate(self.level_sizes):
            found = kmeans(
                residual_MD,
                size,
                self.config.iterations,
                self.config.restarts,
                seed=self.seed + level,
                balanced=self.config.balanced,
                description=f"k-means, level {level + 1} of {len(self.level_sizes)}",
            )
            self.centroids.append(found.centroids_KD)
            self.prices.append(found.prices_K)
            self.scales.append(self._subtract(residual_MD, found.centroids_KD, found.codes_M))
        return residual_MD

    def prepare(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """Vectors as the first level sees them: L2-normalised unless `normalize` is none."""
        return read_rows(embeddings_ND, self._first, pick_device("cpu")).numpy()

    @property
    def num_dims(self) -> int:
        return self.centroids[0].shape[1]

    def chunk_encoder(self, device: "torch.device") -> Callable[["torch.Tensor"], "torch.Tensor"]:
        walk = self.residual_encoder(device)
        return lambda chunk_CD: walk(chunk_CD)[0]

    def residual_encoder(
        self, device: "torch.device"
    ) -> Callable[["torch.Tensor"], tuple["torch.Tensor", "torch.Tensor"]]:
        """A function float32 [C, D] -> (codes int64 [C, L], what the levels leave, as `fit_residual`);
        overwrites what it is given.
        """
        import torch

        buffers = Buffers()
        codebooks = [
            Codebook(centroids_KD, device, prices_K, buffers)
            for centroids_KD, prices_K in zip(self.centroids, self.prices, strict=True)
        ]

        def walk(chunk_CD: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
            residual_CD, codes = self._first(chunk_CD), []
            for codebook in codebooks:
                codes.append(codebook.nearest(residual_CD)[1])
                residual_CD = self._entering(codebook.subtract_(residual_CD, codes[-1]))
            return torch.stack(codes, dim=1), residual_CD

        return walk

    def reconstruct(self, codes_NL: np.ndarray, levels: int | None = None) -> np.ndarray:
        """Float32 [N, D] in the space of `prepare`, from the first `levels` codes."""
        sum_ND = np.zeros((len(codes_NL), self.num_dims), dtype=np.float32)
        scale = 1.0
        for level in range(len(self.level_sizes) if levels is None else levels):
            scale *= self.scales[level]
            sum_ND += np.float32(scale) * self.centroids[level][codes_NL[:, level]]
        return sum_ND

    def last_level_distances(self, embeddings_ND: np.ndarray, codes_NL: np.ndarray) -> np.ndarray:
        """Squared distance of what all but the last code leave to every last centroid, float32 [N, K];
        without prices.
        """
        return squared_distances(self.residuals(embeddings_ND, codes_NL[:, :-1]), self.centroids[-1])

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = {f"centroids_{level}": centroids for level, centroids in enumerate(self.centroids)}
        arrays |= {
            f"prices_{level}": prices for level, prices in enumerate(self.prices) if prices is not None
        }
        return arrays | {"scales": np.array(self.scales, dtype=np.float64)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        levels = range(len(self.level_sizes))
        self.centroids = [arrays[f"centroids_{level}"] for level in levels]
        self.prices = [arrays.get(f"prices_{level}") for level in levels]
        self.scales = arrays["scales"].tolist()

    def residuals(self, embeddings_ND: np.ndarray, codes_NL: np.ndarray) -> np.ndarray:
        """What the first l codes of int [N, l] leave of each vector, as level l sees it, float32 [N, D]."""
        import torch

        residual_ND = torch.from_numpy(self.prepare(embeddings_ND))
        for level, codes_N in enumerate(codes_NL.T):
            residual_ND = self._entering(residual_ND - torch.from_numpy(self.centroids[level][codes_N]))
        return residual_ND.numpy()

    def _first(self, chunk_CD: "torch.Tensor") -> "torch.Tensor":
        return chunk_CD if self.config.normalize == "none" else unit_rows_(chunk_CD)

    def _entering(self, residual_CD: "torch.Tensor") -> "torch.Tensor":
        return unit_rows_(residual_CD) if self.config.normalize == "residuals" else residual_CD

    def _subtract(self, residual_MD: "torch.Tensor", centroids_KD: np.ndarray, codes_M: np.ndarray) -> float:
        """Turn the residual that entered a level into the one that enters the next, in place.

        Returns the length that normalisation takes off, on average (1 without it): codes are turned into
        vectors with it.
        """
        import torch

        device = residual_MD.device
        centroids, codes = torch.from_numpy(centroids_KD).to(device), torch.from_numpy(codes_M).to(device)

        def subtract(part: tuple[int, int]) -> float:
            low, high = part
            rest_CD = residual_MD[low:high].sub_(centroids[codes[low:high]])
            length = float(rest_CD.norm(dim=1).double().sum())
            self._entering(rest_CD)
            return length

        parts = ranges(len(residual_MD), rows_per_chunk(device))
        length = sum(in_order(subtract, parts, device)) / len(residual_MD)
        return length if self.config.normalize == "residuals" else 1.0
