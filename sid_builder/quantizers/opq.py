"""Optimised product quantization: a learnt rotation, cut into sub-vectors with a codebook each.

Codes are parallel digits: none refines another, as RPG, VQ-Rec and ActionPiece use them. After Ge, He, Ke and
Sun, Optimized Product Quantization (CVPR 2013): the rotation starts from principal axes dealt out so that
sub-vectors have equal products of variances, then codebooks and rotation are fitted in turn, the rotation as
an orthogonal Procrustes problem.

Legend: N items, M items fitted on, D dimensions, C rows of a chunk, L digits, K codes of a digit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from sid_builder.errors import InputError
from sid_builder.quantizers import FitContext
from sid_builder.quantizers.chunked import ChunkedQuantizer, check_enough, shape_of
from sid_builder.quantizers.codebook import Codebook, squared_distances
from sid_builder.quantizers.kmeans import column_means, kmeans
from sid_builder.quantizers.row_chunks import (
    Device,
    in_order,
    pick_device,
    ranges,
    read_chunk,
    read_rows,
    rows_per_chunk,
    unit_rows_,
)

if TYPE_CHECKING:
    import torch

_ITERATIONS_PER_ROTATION = 4  # codebooks follow the rotation, they need not come to rest in between


@dataclass(frozen=True)
class OPQConfig:
    """Number and size of the digits and how they are learnt."""

    levels: int = field(default=4, metadata={"help": "Digits per SID, each from one sub-vector."})
    codes_per_level: int | list[int] = field(
        default=256, metadata={"help": "Codebook size, one number or one per digit."}
    )
    normalize: Literal["input", "none"] = field(
        default="input", metadata={"help": "L2-normalise the embeddings or take them as they are."}
    )
    rotations: int = field(
        default=10, metadata={"help": "Times the rotation is fitted; 0: principal axes, dealt out evenly."}
    )
    iterations: int = field(default=25, metadata={"help": "Lloyd iterations per digit at the end."})
    device: Device = field(
        default="auto", metadata={"help": "Where distances are computed; auto: CUDA if there is one."}
    )


class OPQ(ChunkedQuantizer):
    """Product quantization under a rotation; deterministic by seed, independent of the thread count."""

    type_name = "opq"

    def __init__(self, config: OPQConfig, seed: int = 0) -> None:
        self.level_sizes = shape_of(config.levels, config.codes_per_level)
        if config.rotations < 0 or config.iterations < 1:
            raise InputError("quantizer_args: rotations must be at least 0, iterations at least 1")
        self.config = config
        self.seed = seed
        self.mean_D = np.zeros(0, dtype=np.float32)
        self.rotation_DD = np.zeros((0, 0), dtype=np.float32)
        self.centroids: list[np.ndarray] = []  # per digit float32 [K, its part of D]

    def fit(self, embeddings_MD: np.ndarray, context: FitContext | None = None) -> None:
        """Learn rotation and codebooks from [M, D]; holds two float32 copies of it.

        Raises:
            InputError: if a digit has more codes than there are distinct vectors, if there are more digits
            than dimensions, or a value is not finite.
        """
        check_enough(embeddings_MD, max(self.level_sizes))
        self.fit_rows(read_rows(embeddings_MD, self._first, pick_device(self.config.device)))

    def fit_rows(self, points_MD: "torch.Tensor") -> None:
        """`fit` on prepared vectors, which are overwritten."""
        import torch

        device, num_dims = points_MD.device, points_MD.shape[1]
        if num_dims < len(self.level_sizes):
            raise InputError(
                f"quantizer_args.levels: {len(self.level_sizes)} digits for embeddings of {num_dims} "
                "dimensions; give at most one digit per dimension"
            )
        self.mean_D = column_means(points_MD)
        points_MD -= torch.from_numpy(self.mean_D).to(device)
        covariance_DD = _product(points_MD, lambda low, high: points_MD[low:high])
        variances_D, axes_DD = _alone(torch.linalg.eigh, covariance_DD)
        self.rotation_DD = _dealt_axes(variances_D.numpy(), axes_DD.numpy(), self._bounds(num_dims))
        rotated_MD = torch.empty_like(points_MD)
        self.centroids = []
        for _ in tqdm(range(self.config.rotations), desc="fitting the rotation", unit="round"):
            codes_LM = self._fit_digits(points_MD, rotated_MD, _ITERATIONS_PER_ROTATION)
            centroids = [torch.from_numpy(centroids_KD).to(device) for centroids_KD in self.centroids]

            def decoded(low: int, high: int, codes_LM=codes_LM, centroids=centroids) -> "torch.Tensor":
                parts = [table[codes_M[low:high]] for table, codes_M in zip(centroids, codes_LM, strict=True)]
                return torch.cat(parts, dim=1)

            self.rotation_DD = _alone(_nearest_rotation, _product(points_MD, decoded))
        self._fit_digits(points_MD, rotated_MD, self.config.iterations)

    def prepare(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """Vectors as they are quantized: L2-normalised unless `normalize` is none."""
        return read_rows(embeddings_ND, self._first, pick_device("cpu")).numpy()

    @property
    def num_dims(self) -> int:
        return len(self.mean_D)

    def chunk_encoder(self, device: "torch.device") -> Callable[["torch.Tensor"], "torch.Tensor"]:
        digits = self.digit_encoder(device)
        return lambda chunk_CD: digits(self._first(chunk_CD))

    def digit_encoder(self, device: "torch.device") -> Callable[["torch.Tensor"], "torch.Tensor"]:
        """A function from prepared vectors float32 [C, D] to codes int64 [C, L]."""
        import torch

        mean_D = torch.tensor(self.mean_D, device=device)
        rotation_DD = torch.tensor(self.rotation_DD, device=device)
        codebooks = [Codebook(centroids_KD, device) for centroids_KD in self.centroids]
        bounds = self._bounds(self.num_dims)

        def search(chunk_CD: "torch.Tensor") -> "torch.Tensor":
            rotated_CD = (chunk_CD - mean_D) @ rotation_DD
            parts = [rotated_CD[:, low:high].contiguous() for low, high in bounds]
            codes = [codebook.nearest(part)[1] for codebook, part in zip(codebooks, parts, strict=True)]
            return torch.stack(codes, dim=1)

        return search

    def reconstruct(self, codes_NL: np.ndarray, levels: int | None = None) -> np.ndarray:
        """Float32 [N, D] in the space of `prepare`; digits after the first `levels` count as their mean."""
        rotated_ND = np.zeros((len(codes_NL), self.num_dims), dtype=np.float32)
        for digit, (low, high) in list(enumerate(self._bounds(self.num_dims)))[:levels]:
            rotated_ND[:, low:high] = self.centroids[digit][codes_NL[:, digit]]
        return rotated_ND @ self.rotation_DD.T + self.mean_D

    def last_level_distances(self, embeddings_ND: np.ndarray, codes_NL: np.ndarray) -> np.ndarray:
        """Squared distance of the last sub-vector to every centroid of the last digit, float32 [N, K]."""
        return self.last_digit_distances(self.prepare(embeddings_ND))

    def last_digit_distances(self, prepared_ND: np.ndarray) -> np.ndarray:
        low, high = self._bounds(self.num_dims)[-1]
        rotated_ND = (prepared_ND - self.mean_D) @ self.rotation_DD[:, low:high]
        return squared_distances(rotated_ND, self.centroids[-1])

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = {f"centroids_{digit}": centroids for digit, centroids in enumerate(self.centroids)}
        return arrays | {"mean": self.mean_D, "rotation": self.rotation_DD}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.mean_D, self.rotation_DD = arrays["mean"], arrays["rotation"]
        self.centroids = [arrays[f"centroids_{digit}"] for digit in range(len(self.level_sizes))]

    def _first(self, chunk_CD: "torch.Tensor") -> "torch.Tensor":
        return unit_rows_(chunk_CD) if self.config.normalize == "input" else chunk_CD

    def _bounds(self, num_dims: int) -> list[tuple[int, int]]:
        """Columns [low, high) of each sub-vector; their sizes differ by one at most."""
        digits = len(self.level_sizes)
        return [(num_dims * digit // digits, num_dims * (digit + 1) // digits) for digit in range(digits)]

    def _fit_digits(
        self, points_MD: "torch.Tensor", rotated_MD: "torch.Tensor", iterations: int
    ) -> list["torch.Tensor"]:
        """Rotate into `rotated_MD` and go on with every digit's k-means; codes int64 [M] of each digit."""
        import torch

        device = points_MD.device
        rotation_DD, step = torch.tensor(self.rotation_DD, device=device), rows_per_chunk(device)

        def rotate(part: tuple[int, int]) -> None:
            low, high = part
            chunk_CD = read_chunk(points_MD, low, high, step, device)
            rotated_MD[low:high] = (chunk_CD @ rotation_DD)[: high - low]

        for _ in in_order(rotate, ranges(len(points_MD), step), device):
            pass
        found = [
            kmeans(
                rotated_MD[:, low:high].contiguous(),
                self.level_sizes[digit],
                iterations,
                seed=self.seed + digit,
                start_KD=self.centroids[digit] if self.centroids else None,
            )
            for digit, (low, high) in enumerate(self._bounds(points_MD.shape[1]))
        ]
        self.centroids = [clustering.centroids_KD for clustering in found]
        return [torch.from_numpy(clustering.codes_M).to(device) for clustering in found]


def _product(points_MD: "torch.Tensor", other: Callable[[int, int], "torch.Tensor"]) -> "torch.Tensor":
    """X^T Y float64 [D, D] on CPU, where `other` gives rows [low, high) of Y; summed in order of chunks."""
    import torch

    device = points_MD.device

    def multiply(part: tuple[int, int]) -> "torch.Tensor":
        return points_MD[part[0] : part[1]].T @ other(*part)

    total_DD = torch.zeros((points_MD.shape[1], points_MD.shape[1]), dtype=torch.float64)
    for product_DD in in_order(multiply, ranges(len(points_MD), rows_per_chunk(device)), device):
        total_DD += product_DD.cpu()
    return total_DD


def _alone(function: Callable[["torch.Tensor"], Any], matrix_DD: "torch.Tensor") -> Any:
    """A decomposition on one thread: its last bits would depend on their number."""
    (result,) = in_order(function, [matrix_DD], matrix_DD.device)
    return result


def _nearest_rotation(product_DD: "torch.Tensor") -> np.ndarray:
    """The orthogonal R float32 [D, D] that minimises |X R - Y|, of X^T Y = U S V^T: U V^T."""
    import torch

    left_DD, _, right_DD = torch.linalg.svd(product_DD)
    return (left_DD @ right_DD).float().numpy()


def _dealt_axes(variances_D: np.ndarray, axes_DD: np.ndarray, bounds: list[tuple[int, int]]) -> np.ndarray:
    """Principal axes as columns, float32 [D, D], each dealt to the sub-vector with room whose product of
    variances is smallest so far, largest variance first. Given in ascending order.
    """
    logs_D = np.log(np.maximum(variances_D, variances_D[-1] * 1e-12 + 1e-300))
    logs_D -= logs_D.min()  # positive, so that a sub-vector's sum grows with every axis
    columns: list[list[int]] = [[] for _ in bounds]
    for axis in range(len(logs_D) - 1, -1, -1):
        room = [digit for digit, (low, high) in enumerate(bounds) if len(columns[digit]) < high - low]
        columns[min(room, key=lambda digit: logs_D[columns[digit]].sum())].append(axis)
    return np.ascontiguousarray(axes_DD[:, sum(columns, [])], dtype=np.float32)
