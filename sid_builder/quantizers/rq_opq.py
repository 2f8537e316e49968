"""Residual k-means with a tail of parallel digits: what its levels leave is coded by `opq` (OneSearch).

The levels say what an item is; the tail, whose digits do not refine each other, tells apart what shares a
prefix. OneSearch (https://github.com/benchen4395/onesearch-family) uses 3 x 1024 and 2 x 256.

Legend: N items, M items fitted on, D dimensions, C rows of a chunk, L levels and digits, K codes of the last.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sid_builder.quantizers import FitContext
from sid_builder.quantizers.chunked import ChunkedQuantizer, check_enough
from sid_builder.quantizers.opq import OPQ, OPQConfig
from sid_builder.quantizers.rq_kmeans import RQKMeans, RQKMeansConfig

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RQOPQConfig(RQKMeansConfig):
    """Shape of levels and tail and how they are learnt; what `rq_kmeans` has goes for the levels."""

    tail_digits: int = field(default=2, metadata={"help": "Digits of the tail, further codes of the SID."})
    tail_codes: int = field(default=256, metadata={"help": "Codebook size of a digit."})
    rotations: int = field(default=10, metadata={"help": "Times the tail's rotation is fitted."})


class RQOPQ(ChunkedQuantizer):
    """`rq_kmeans` and an `opq` of its residual; deterministic by seed, independent of the thread count."""

    type_name = "rq_opq"

    def __init__(self, config: RQOPQConfig, seed: int = 0) -> None:
        self.config = config
        self.seed = seed
        self.head = RQKMeans(config, seed)
        self.tail = OPQ(
            OPQConfig(
                levels=config.tail_digits,
                codes_per_level=config.tail_codes,
                normalize="none",
                rotations=config.rotations,
                iterations=config.iterations,
                device=config.device,
            ),
            seed + config.levels,
        )
        self.level_sizes = self.head.level_sizes + self.tail.level_sizes

    def fit(self, embeddings_MD: np.ndarray, context: FitContext | None = None) -> None:
        """Learn the levels, then the tail, from [M, D]; holds two float32 copies of it.

        Raises:
            InputError: if there are fewer distinct vectors than codes of a level or digit, or a value is not
            finite.
        """
        if self.config.tail_codes > max(self.head.level_sizes):  # else the levels' own check says more
            check_enough(embeddings_MD, self.config.tail_codes, "tail_codes")
        self.tail.fit_rows(self.head.fit_residual(embeddings_MD))

    def prepare(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """Vectors as the first level sees them."""
        return self.head.prepare(embeddings_ND)

    @property
    def num_dims(self) -> int:
        return self.head.num_dims

    def chunk_encoder(self, device: "torch.device") -> Callable[["torch.Tensor"], "torch.Tensor"]:
        import torch

        walk, digits = self.head.residual_encoder(device), self.tail.digit_encoder(device)

        def encode(chunk_CD: "torch.Tensor") -> "torch.Tensor":
            codes_CL, residual_CD = walk(chunk_CD)
            return torch.cat([codes_CL, digits(residual_CD)], dim=1)

        return encode

    def reconstruct(self, codes_NL: np.ndarray, levels: int | None = None) -> np.ndarray:
        """Float32 [N, D] in the space of `prepare`, from the first `levels` codes, those of the tail last."""
        levels = len(self.level_sizes) if levels is None else levels
        depth = self.config.levels
        sum_ND = self.head.reconstruct(codes_NL, min(levels, depth))
        if levels > depth:
            scale = np.float32(np.prod(self.head.scales))
            sum_ND += scale * self.tail.reconstruct(codes_NL[:, depth:], levels - depth)
        return sum_ND

    def last_level_distances(self, embeddings_ND: np.ndarray, codes_NL: np.ndarray) -> np.ndarray:
        """Squared distance of the residual's last sub-vector to every centroid of the last digit,
        float32 [N, K].
        """
        residual_ND = self.head.residuals(embeddings_ND, codes_NL[:, : self.config.levels])
        return self.tail.last_digit_distances(residual_ND)

    def arrays(self) -> dict[str, np.ndarray]:
        head = {f"head.{name}": array for name, array in self.head.arrays().items()}
        return head | {f"tail.{name}": array for name, array in self.tail.arrays().items()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        for part, prefix in ((self.head, "head."), (self.tail, "tail.")):
            part.restore({n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)})
