"""Quantizers turn embeddings into codes; `Quantizer` is what the build and the conformance tests rely on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sid_builder.catalog import Catalog
from sid_builder.interactions import Interactions
from sid_builder.registry import resolve


@dataclass(frozen=True)
class FitContext:
    """What a quantizer may learn from beside vectors. Of `interactions` only train may be learnt from.

    Row m of what `fit` is given belongs to item `items_M[m]`. `work_dir` is where long training keeps what it
    needs to go on after an interruption; None: it starts over.
    """

    catalog: Catalog
    interactions: Interactions
    items_M: np.ndarray
    work_dir: Path | None = None


class Quantizer(Protocol):
    """Built as `Thing(config, seed)`, where the annotation of `config` is the dataclass its YAML is checked
    against.

    Legend: N items, D dimensions, L levels, K codes of the last level.
    """

    level_sizes: tuple[int, ...]

    def fit(self, embeddings_MD: np.ndarray, context: FitContext | None = None) -> None:
        """Learn from all items or a sample of them, float32 [M, D]."""

    def encode(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """Codes int32 [N, L]; the same for the same vectors, whatever the thread count or the rows around.

        Rows of SIDs shorter than L are padded with -1, and no SID is the prefix of another.
        """

    def reconstruct(self, codes_NL: np.ndarray, levels: int | None = None) -> np.ndarray:
        """Vectors float32 [N, D] the first `levels` codes stand for, in the space of `prepare`.

        Also for codes that no item has.
        """

    def prepare(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """Float32 [N, D] as it is quantized (normalised, say): what `reconstruct` approximates."""

    def last_level_distances(self, embeddings_ND: np.ndarray, codes_NL: np.ndarray) -> np.ndarray:
        """Squared distance of residuals to the last level's centroids, float32 [N, K]; used by repair."""

    def save(self, directory: Path) -> None:
        """Write `quantizer.json` (its `type` is a registered name or a dotted path) and arrays beside it."""

    @classmethod
    def load(cls, directory: Path) -> "Quantizer": ...


def load_quantizer(directory: Path) -> Quantizer:
    """The fitted quantizer in a directory, whatever its type."""
    # Imported here: the registry is in the package that imports this one.
    from sid_builder import QUANTIZERS

    name = json.loads((directory / "quantizer.json").read_text(encoding="utf-8"))["type"]
    return resolve(QUANTIZERS, name, "quantizer").load(directory)
