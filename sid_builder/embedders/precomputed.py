"""Embeddings made elsewhere: an .npy file in catalogue order, or what `python -m sid_builder.embed` wrote."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sid_builder.artifact import open_artifact
from sid_builder.embedders import ItemData
from sid_builder.errors import InputError

# The artefact of `python -m sid_builder.embed`: its kind and its two files.
KIND = "embeddings"
MATRIX_FILE = "embeddings.npy"
ITEM_IDS_FILE = "item_ids.parquet"


@dataclass(frozen=True)
class PrecomputedConfig:
    """Which file."""

    file: str = field(
        metadata={
            "help": "An .npy file, [num_items, d] in catalogue order, or a directory of sid_builder.embed, "
            "whose rows are found by item_id. float32 stays on disk, other numbers are converted in memory."
        }
    )


class Precomputed:
    """`encode(items)` returns the file's rows, memory-mapped."""

    def __init__(self, config: PrecomputedConfig, seed: int = 0) -> None:
        self.path = Path(config.file)
        if self.path.is_dir():
            open_artifact(self.path, KIND)
        elif not self.path.is_file():
            raise InputError(
                f"embedder_args.file: {config.file} is no file; give the path of an .npy file, or of a "
                "directory that sid_builder.embed wrote"
            )

    def encode(self, items: ItemData) -> np.ndarray:
        """One row per item, in catalogue order.

        Raises:
            InputError: if it is no plain numeric .npy with one row per item, or lacks an item_id.
        """
        if self.path.is_dir():
            return self._rows_of(items)
        return _read_matrix(self.path, items.catalog.num_items)

    def _rows_of(self, items: ItemData) -> np.ndarray:
        """The rows of the catalogue's items: the whole map when they are the same in the same order, else
        a copy of those wanted.
        """
        stored = pq.read_table(self.path / ITEM_IDS_FILE).column("item_id").combine_chunks()
        embeddings_ND = _read_matrix(self.path / MATRIX_FILE, len(stored))
        wanted: pa.ChunkedArray = items.catalog.table.column("item_id")
        found = pc.index_in(wanted, value_set=stored)
        if found.null_count:
            first = wanted.filter(pc.is_null(found))[0].as_py()
            raise InputError(
                f"embedder_args.file: {self.path} lacks {found.null_count} of {len(wanted)} items, first "
                f"item_id {first!r}; run sid_builder.embed on this catalogue"
            )
        row_N = found.to_numpy()
        if len(row_N) == len(embeddings_ND) and np.array_equal(row_N, np.arange(len(row_N))):
            return embeddings_ND
        return embeddings_ND[row_N]


def _read_matrix(path: Path, num_items: int) -> np.ndarray:
    try:
        matrix_ND = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"embedder_args.file: {path} is no readable .npy file ({error})") from error
    if not isinstance(matrix_ND, np.ndarray) or matrix_ND.dtype.kind not in "fiu":
        raise InputError(
            f"embedder_args.file: {path} holds no numbers; save float32 [items, d] with numpy.save"
        )
    if matrix_ND.ndim != 2 or len(matrix_ND) != num_items:
        raise InputError(
            f"embedder_args.file: {path} has shape {matrix_ND.shape} for {num_items} items; "
            "give one row per item, in catalogue order"
        )
    return matrix_ND
