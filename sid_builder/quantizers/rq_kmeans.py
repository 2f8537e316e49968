"""Residual k-means on L2-normalised residuals: one `faiss.Kmeans` per level.

Normalising each level's residual keeps a few far items from claiming most codes: on Beauty (MiniLM, 3x256)
the second level's perplexity is 228 instead of 79, at a lower error, and all codes are used where public
RQ-VAE indices use 48-197 of 256. This is RK-Means of GRID (https://github.com/snap-research/GRID). Not
`faiss.ResidualQuantizer`, whose codes changed with the thread count (seen on faiss 1.15).

Legend: N items, D dimensions, L levels, K codes of a level.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from sid_builder.artifact import write_json
from sid_builder.errors import InputError
from sid_builder.quantizers import FitContext

# Above this many points per centroid faiss would train on a random subset; a catalogue is small enough for
# all of it.
_ALL_POINTS = 1 << 30


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
    iterations: int = field(default=25, metadata={"help": "Lloyd iterations per level."})
    restarts: int = field(default=1, metadata={"help": "Runs of k-means per level; the best one is kept."})


class RQKMeans:
    """Residual k-means; deterministic by seed, independent of the thread count."""

    def __init__(self, config: RQKMeansConfig, seed: int = 0) -> None:
        sizes = config.codes_per_level
        self.level_sizes = tuple(sizes if isinstance(sizes, list) else [sizes] * config.levels)
        if len(self.level_sizes) != config.levels or config.levels < 1:
            raise InputError(
                f"quantizer_args.codes_per_level: {sizes} does not fit levels={config.levels}; "
                "give one number or one per level"
            )
        if min(self.level_sizes) < 1 or config.iterations < 1 or config.restarts < 1:
            raise InputError("quantizer_args: codes_per_level, iterations and restarts must be at least 1")
        self.config = config
        self.seed = seed
        self.centroids: list[np.ndarray] = []  # per level float32 [K, D]
        self.scales: list[float] = []  # mean length of the residual that entered a level, 1 for the first

    def fit(self, embeddings_ND: np.ndarray, context: FitContext | None = None) -> None:
        """Learn the codebooks from float32 [N, D].

        Raises:
            InputError: if a level has more codes than there are distinct vectors; codebooks are never shrunk
            silently.
        """
        distinct = len(np.unique(embeddings_ND, axis=0))
        if distinct < max(self.level_sizes):
            raise InputError(
                f"quantizer_args.codes_per_level: {max(self.level_sizes)} codes for "
                f"{len(embeddings_ND)} items with {distinct} distinct embeddings; give at most {distinct}"
            )
        self.centroids, self.scales = [], [1.0]
        residual_ND = self.prepare(embeddings_ND)
        for level, size in enumerate(tqdm(self.level_sizes, desc="k-means levels", unit="level")):
            kmeans = faiss.Kmeans(
                residual_ND.shape[1],
                size,
                niter=self.config.iterations,
                nredo=self.config.restarts,
                seed=self.seed + level,
                min_points_per_centroid=1,
                max_points_per_centroid=_ALL_POINTS,
            )
            kmeans.train(residual_ND)
            self.centroids.append(np.ascontiguousarray(kmeans.centroids, dtype=np.float32))
            rest_ND = residual_ND - self.centroids[level][self._nearest(residual_ND, level)]
            # Restores the length that normalisation takes off, on average, so that codes can be turned into
            # vectors.
            self.scales.append(
                float(np.linalg.norm(rest_ND, axis=1).mean()) if self.config.normalize == "residuals" else 1.0
            )
            residual_ND = self._entering(rest_ND)

    def prepare(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """Vectors as the first level sees them: L2-normalised unless `normalize` is none."""
        embeddings_ND = np.ascontiguousarray(embeddings_ND, dtype=np.float32)
        return embeddings_ND if self.config.normalize == "none" else _unit(embeddings_ND)

    def encode(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """Codes int32 [N, L]: the nearest centroid at every level, the lower code on a tie."""
        residual_ND = self.prepare(embeddings_ND)
        codes_NL = np.empty((len(residual_ND), len(self.level_sizes)), dtype=np.int32)
        for level in range(len(self.level_sizes)):
            codes_NL[:, level] = self._nearest(residual_ND, level)
            residual_ND = self._entering(residual_ND - self.centroids[level][codes_NL[:, level]])
        return codes_NL

    def reconstruct(self, codes_NL: np.ndarray, levels: int | None = None) -> np.ndarray:
        """Float32 [N, D] in the space of `prepare`, from the first `levels` codes."""
        sum_ND = np.zeros((len(codes_NL), self.centroids[0].shape[1]), dtype=np.float32)
        scale = 1.0
        for level in range(len(self.level_sizes) if levels is None else levels):
            scale *= self.scales[level]
            sum_ND += scale * self.centroids[level][codes_NL[:, level]]
        return sum_ND

    def last_level_distances(self, embeddings_ND: np.ndarray, codes_NL: np.ndarray) -> np.ndarray:
        """Squared distance of what all but the last code leave to every last centroid, float32 [N, K]."""
        residual_ND = self.prepare(embeddings_ND)
        last = len(self.level_sizes) - 1
        for level in range(last):
            residual_ND = self._entering(residual_ND - self.centroids[level][codes_NL[:, level]])
        return faiss.pairwise_distances(residual_ND, self.centroids[last])

    def save(self, directory: Path) -> None:
        """Write `centroids.safetensors` and `quantizer.json` into an existing directory."""
        tensors = {f"level_{level}": centroids for level, centroids in enumerate(self.centroids)}
        save_file(tensors, directory / "centroids.safetensors")
        state = {
            "type": "rq_kmeans",
            "config": dataclasses.asdict(self.config),
            "seed": self.seed,
            "scales": self.scales,
        }
        write_json(directory / "quantizer.json", state)

    @classmethod
    def load(cls, directory: Path) -> "RQKMeans":
        state = json.loads((directory / "quantizer.json").read_text(encoding="utf-8"))
        quantizer = cls(RQKMeansConfig(**state["config"]), state["seed"])
        tensors = load_file(directory / "centroids.safetensors")
        quantizer.centroids = [tensors[f"level_{level}"] for level in range(len(quantizer.level_sizes))]
        quantizer.scales = state["scales"]
        return quantizer

    def _entering(self, residual_ND: np.ndarray) -> np.ndarray:
        return _unit(residual_ND) if self.config.normalize == "residuals" else residual_ND

    def _nearest(self, residual_ND: np.ndarray, level: int) -> np.ndarray:
        return faiss.knn(residual_ND, self.centroids[level], 1)[1][:, 0]


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Rows divided by their length; a zero row (an item that is its centroid, or has no text) stays zero."""
    length_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors_ND / np.where(length_N1 > 1e-12, length_N1, 1.0), dtype=np.float32)
