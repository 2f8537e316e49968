"""Quantizers turn embeddings into codes; `Quantizer` is what the build and the conformance tests rely on."""

from pathlib import Path
from typing import Protocol

import numpy as np


class Quantizer(Protocol):
    """Built as `Thing(config, seed)`, where the annotation of `config` is the dataclass its YAML is checked
    against.

    Legend: N items, D dimensions, L levels, K codes of the last level.
    """

    level_sizes: tuple[int, ...]

    def fit(self, embeddings_ND: np.ndarray) -> None: ...

    def encode(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """Codes int32 [N, L]; the same for the same vectors, whatever the thread count."""

    def reconstruct(self, codes_NL: np.ndarray, levels: int | None = None) -> np.ndarray:
        """Vectors float32 [N, D] the first `levels` codes stand for, in the space of `prepare`."""

    def prepare(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """Float32 [N, D] as it is quantized (normalised, say): what `reconstruct` approximates."""

    def last_level_distances(self, embeddings_ND: np.ndarray, codes_NL: np.ndarray) -> np.ndarray:
        """Squared distance of residuals to the last level's centroids, float32 [N, K]; used by repair."""

    def save(self, directory: Path) -> None: ...

    @classmethod
    def load(cls, directory: Path) -> "Quantizer": ...
