"""Quantizers turn embeddings into codes; `Quantizer` is what the build command and the conformance tests rely on."""

from pathlib import Path
from typing import Protocol

import numpy as np


class Quantizer(Protocol):
    """Built as `Thing(config, seed)`, where the annotation of `config` is the dataclass its YAML is checked against.

    Legend: N items, D dimensions, L levels, K codes of the last level.
    """

    level_sizes: tuple[int, ...]

    def fit(self, embeddings_ND: np.ndarray) -> None: ...

    def encode(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """Codes int32 [N, L]; the same for the same vectors, whatever the thread count."""

    def reconstruct(self, codes_NL: np.ndarray, levels: int | None = None) -> np.ndarray:
        """Vectors float32 [N, D] the first `levels` codes stand for, in the space of `prepare`."""

    def prepare(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """The vectors as they are quantized (normalised, say), float32 [N, D]: what `reconstruct` approximates."""

    def last_level_distances(self, embeddings_ND: np.ndarray, codes_NL: np.ndarray) -> np.ndarray:
        """Squared distance of each residual to every centroid of the last level, float32 [N, K]; used by repair."""

    def save(self, directory: Path) -> None: ...

    @classmethod
    def load(cls, directory: Path) -> "Quantizer": ...
