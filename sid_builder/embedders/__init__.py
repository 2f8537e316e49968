"""Embedders turn items into vectors: from their texts, their pictures, or who interacted with them.

An embedder is a class built as `Thing(config, seed)` with `encode(items: ItemData) -> float32 [N, d]`;
the annotation of `config` is the dataclass its YAML options are checked against. `embed_items` is how the
build calls one. Those that run a model go through `sid_builder.embedding_store`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.item_text import DEFAULT_TEMPLATE, item_texts
from sid_builder.quantizers.row_hash import num_distinct

BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class ItemData:
    """What an embedder may look at. Of `interactions` only train may be learnt from.

    `data_dir` is where relative paths in the catalogue (pictures) start from. `work_dir` is where long work
    keeps what it needs to go on after an interruption, and where large matrices are put together; None: it
    starts over, and matrices are in memory.
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
    """What the build relies on.

    The result may be a read-only memory map. An embedder may also have `notes`, a dict of figures about
    the last `encode` that the report shows.
    """

    def encode(self, items: ItemData) -> np.ndarray: ...


def embed_items(embedder: Embedder, items: ItemData, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Vectors of all items, checked, and figures about them for the report.

    Every process of a launch must call this: model-based embedders share the work out, the others do it
    all in each.

    Args:
        name: what the user calls the embedder, for messages.

    Returns:
        float32 [N, d], perhaps a read-only memory map, and figures: the embedder's own `notes`, `dim`, and
        `duplicate_vectors`, the number of items whose vector an earlier item has as well (identical texts).

    Raises:
        InputError: what the embedder raises, and unusable vectors (`check_embeddings`).
    """
    embeddings_ND = check_embeddings(embedder.encode(items), items.catalog.num_items, name)
    notes = {
        **getattr(embedder, "notes", {}),
        "dim": embeddings_ND.shape[1],
        "duplicate_vectors": len(embeddings_ND) - num_distinct(embeddings_ND),
    }
    return embeddings_ND, notes


def check_positive(**options: int | None) -> None:
    """InputError for an option in `embedder_args` below 1; None is an option not given."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise InputError(f"embedder_args.{name}: {value} is below 1; give a whole number of at least 1")


def check_embeddings(embeddings_ND: np.ndarray, num_items: int, embedder: str) -> np.ndarray:
    """Return float32 [N, d] embeddings a quantizer can use.

    They are read in blocks of `BLOCK_BYTES`; float32 comes back as it is, a memory map included, other
    numbers are converted in memory.

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
        embeddings_ND = np.require(embeddings_ND, dtype=np.float32, requirements="C")
    num_bad, first_bad, all_alike = 0, -1, True
    for low, block in row_blocks(embeddings_ND):
        bad = ~np.isfinite(block).all(axis=1)
        if bad.any() and num_bad == 0:
            first_bad = low + int(np.argmax(bad))
        num_bad += int(bad.sum())
        all_alike = all_alike and bool((block == embeddings_ND[0]).all())
    if num_bad:
        raise InputError(
            f"{field} gave NaN or infinite values for {num_bad} of {num_items} items, "
            f"first for item_index {first_bad}; check that item and the model's dtype"
        )
    if num_items > 1 and all_alike:
        raise InputError(
            f"{field} gave the same vector for all {num_items} items; "
            "choose a text_template whose fields tell items apart"
        )
    return embeddings_ND


def row_blocks(matrix_ND: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of at most `BLOCK_BYTES`, so that a memory-mapped matrix is never in memory as a
    whole.
    """
    rows = max(1, BLOCK_BYTES // (matrix_ND.shape[1] * matrix_ND.itemsize))
    for low in range(0, len(matrix_ND), rows):
        yield low, matrix_ND[low : low + rows]
