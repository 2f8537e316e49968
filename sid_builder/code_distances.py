"""How far items are from the codes of a fitted quantizer, level by level: where an item that needs another
place fits best.

Legend: N items, D dimensions, G items of one call, K codes of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sid_builder.quantizers import Quantizer
from sid_builder.quantizers.codebook import squared_distances


@dataclass(frozen=True)
class CodeDistances:
    """Distances of the items behind `embeddings_ND` (float32, may be memory-mapped)."""

    quantizer: Quantizer
    embeddings_ND: np.ndarray

    def __call__(self, items_G: np.ndarray, prefix: Sequence[int]) -> np.ndarray:
        """Squared distance of each item to what `prefix` and every code of the next level stand for, [G, K].

        The last level's are `last_level_distances`, in the space of residuals; further up they are between
        prepared vectors and reconstructions. Only distances of one call can be compared.
        """
        level, sizes = len(prefix), self.quantizer.level_sizes
        assert level < len(sizes)
        embeddings_GD = np.ascontiguousarray(self.embeddings_ND[items_G], dtype=np.float32)
        if level == len(sizes) - 1:
            codes_GL = np.tile(np.array([*prefix, 0], dtype=np.int32), (len(items_G), 1))
            return self.quantizer.last_level_distances(embeddings_GD, codes_GL)
        codes_KL = np.zeros((sizes[level], len(sizes)), dtype=np.int32)
        codes_KL[:, :level] = prefix
        codes_KL[:, level] = np.arange(sizes[level])
        centres_KD = self.quantizer.reconstruct(codes_KL, level + 1)
        return squared_distances(self.quantizer.prepare(embeddings_GD), centres_KD)
