"""Embeddings made elsewhere, read from an .npy file with one row per item in catalogue order."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sid_builder.embedders import ItemData
from sid_builder.errors import InputError


@dataclass(frozen=True)
class PrecomputedConfig:
    """Which file."""

    file: str = field(metadata={"help": "An .npy file, float [num_items, d]."})


class Precomputed:
    """`encode(items)` returns the file's rows."""

    def __init__(self, config: PrecomputedConfig, seed: int = 0) -> None:
        if not Path(config.file).is_file():
            raise InputError(f"embedder_args.file: {config.file} is no file; give the path of an .npy file")
        self.path = Path(config.file)

    def encode(self, items: ItemData) -> np.ndarray:
        """The file's array; InputError if it is no plain numeric .npy with one row per item."""
        try:
            embeddings_ND = np.load(self.path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"embedder_args.file: {self.path} is no readable .npy file ({error})") from error
        if not isinstance(embeddings_ND, np.ndarray) or embeddings_ND.dtype.kind not in "fiu":
            raise InputError(
                f"embedder_args.file: {self.path} holds no numbers; save float32 [items, d] with numpy.save"
            )
        if len(embeddings_ND.shape) != 2 or len(embeddings_ND) != items.catalog.num_items:
            raise InputError(
                f"embedder_args.file: {self.path} has shape {embeddings_ND.shape} "
                f"for {items.catalog.num_items} items; give one row per item, in catalogue order"
            )
        return embeddings_ND
