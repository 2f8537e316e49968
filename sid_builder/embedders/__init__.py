"""Embedders turn items into vectors: from their texts, their pictures, or who interacted with them.

An embedder is a class built as `Thing(config, seed)` with `encode(items: ItemData) -> float32 [N, d]`; the
annotation of `config` is the dataclass its YAML options are checked against.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.item_text import DEFAULT_TEMPLATE, item_texts


@dataclass(frozen=True)
class ItemData:
    """What an embedder may look at. Of `interactions` only train may be learnt from.

    `data_dir` is where relative paths in the catalogue (pictures) start from. `work_dir` is where long work
    keeps what it needs to go on after an interruption; None: it starts over.
    """

    catalog: Catalog
    interactions: Interactions
    text_template: str = DEFAULT_TEMPLATE
    data_dir: Path | None = None
    work_dir: Path | None = None

    @cached_property
    def texts(self) -> list[str]:
        """One text per item, in catalogue order."""
        return item_texts(self.catalog, self.text_template)


class Embedder(Protocol):
    """What the build relies on."""

    def encode(self, items: ItemData) -> np.ndarray: ...


def check_embeddings(embeddings_ND: np.ndarray, num_items: int, embedder: str) -> np.ndarray:
    """Return float32 [N, d] embeddings a quantizer can use.

    Raises:
        InputError: on a wrong shape, NaN or infinite values, or vectors that are all alike; the first bad row
        is named.
    """
    field = f"embedder: {embedder!r}"
    if embeddings_ND.ndim != 2 or len(embeddings_ND) != num_items or embeddings_ND.shape[1] == 0:
        raise InputError(
            f"{field} gave shape {embeddings_ND.shape} for {num_items} items; expected one row per item"
        )
    with np.errstate(over="ignore"):  # a float64 value beyond float32 becomes infinite and is reported below
        embeddings_ND = np.ascontiguousarray(embeddings_ND, dtype=np.float32)
    finite_N = np.isfinite(embeddings_ND).all(axis=1)
    if not finite_N.all():
        row = int(np.argmin(finite_N))
        raise InputError(
            f"{field} gave NaN or infinite values for {int((~finite_N).sum())} of {num_items} items, "
            f"first for item_index {row}; check that item's text and the model's dtype"
        )
    if num_items > 1 and np.ptp(embeddings_ND, axis=0).max() == 0:
        raise InputError(
            f"{field} gave the same vector for all {num_items} items; "
            "choose a text_template whose fields tell items apart"
        )
    return embeddings_ND
