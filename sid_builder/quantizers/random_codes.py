"""Random codes, the control: whatever a recommender gains over them is what the codes mean.

The codes of a vector are a hash of its bytes and the seed, uniform and independent from level to level. So
they need no table, any subset of rows gets the codes it gets in the whole, and neighbours have nothing in
common. Identical vectors share their codes; of N different ones about N^2 / (2 K^L) pairs do, which a repair
policy ends (12,101 items under 3 x 256: 4 pairs).

Legend: N items, M items fitted on, D dimensions, L levels, K codes of the last level.
"""

from dataclasses import dataclass, field

import numpy as np

from sid_builder.quantizers import FitContext
from sid_builder.quantizers.chunked import FittedQuantizer, shape_of
from sid_builder.quantizers.row_chunks import check_all_finite, check_finite, check_matrix, ranges
from sid_builder.quantizers.row_hash import mix, row_hashes

_ROWS = 65536
_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment: one stream of numbers per level


@dataclass(frozen=True)
class RandomCodesConfig:
    """Shape of the codes."""

    levels: int = field(default=3, metadata={"help": "Codes per SID."})
    codes_per_level: int | list[int] = field(
        default=256, metadata={"help": "Codebook size, one number or one per level."}
    )


class RandomCodes(FittedQuantizer):
    """Codes that say nothing about the item; deterministic by seed."""

    type_name = "random"

    def __init__(self, config: RandomCodesConfig, seed: int = 0) -> None:
        self.level_sizes = shape_of(config.levels, config.codes_per_level)
        self.config = config
        self.seed = seed
        self.mean_D: np.ndarray = np.zeros(0, dtype=np.float32)

    def fit(self, embeddings_MD: np.ndarray, context: FitContext | None = None) -> None:
        """Take the mean of [M, D]; InputError on NaN or infinite values."""
        check_matrix(embeddings_MD)
        check_all_finite(embeddings_MD)
        self.mean_D = np.asarray(embeddings_MD.mean(axis=0, dtype=np.float64), dtype=np.float32)

    def encode(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """Codes int32 [N, L] from the bytes of each row as float32."""
        check_matrix(embeddings_ND, self.num_dims)
        codes_NL = np.empty((len(embeddings_ND), len(self.level_sizes)), dtype=np.int32)
        for low, high in ranges(len(embeddings_ND), _ROWS):
            check_finite(embeddings_ND[low:high], low)
            hashes = row_hashes(embeddings_ND[low:high], self.seed)
            for level, size in enumerate(self.level_sizes):
                offset = np.uint64((level + 1) * _GOLDEN % (1 << 64))
                codes_NL[low:high, level] = ((mix(hashes + offset) >> 32) * np.uint64(size)) >> 32
        return codes_NL

    def prepare(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """The vectors as they are."""
        return np.ascontiguousarray(embeddings_ND, dtype=np.float32)

    def reconstruct(self, codes_NL: np.ndarray, levels: int | None = None) -> np.ndarray:
        """The mean of the fitted vectors, float32 [N, D]: all that codes which say nothing stand for."""
        return np.tile(self.mean_D, (len(codes_NL), 1))

    def last_level_distances(self, embeddings_ND: np.ndarray, codes_NL: np.ndarray) -> np.ndarray:
        """Zero, float32 [N, K]: no last code is nearer than another."""
        return np.zeros((len(codes_NL), self.level_sizes[-1]), dtype=np.float32)

    @property
    def num_dims(self) -> int:
        return len(self.mean_D)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean_D}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.mean_D = arrays["mean"]
