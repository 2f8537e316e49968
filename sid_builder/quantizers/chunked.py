"""What the quantizers without gradients share: encoding chunk by chunk, checks, saving and loading.

Legend: N items, M items fitted on, D dimensions, C rows of a chunk, L levels.
"""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from safetensors.numpy import load_file, save_file

from sid_builder import cli
from sid_builder.artifact import write_json
from sid_builder.errors import InputError
from sid_builder.quantizers.row_chunks import (
    check_all_finite,
    check_matrix,
    encode_rows,
    pick_device,
    rows_per_chunk,
)
from sid_builder.quantizers.row_hash import num_distinct
from sid_builder.registry import options_class

if TYPE_CHECKING:
    import torch


class FittedQuantizer(ABC):
    """A quantizer whose fitted state is named arrays."""

    type_name: ClassVar[str]  # as registered
    config: Any
    seed: int
    level_sizes: tuple[int, ...]

    def save(self, directory: Path) -> None:
        """Write `quantizer.json` and `quantizer.safetensors` into an existing directory."""
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays().items()}
        save_file(arrays, directory / "quantizer.safetensors")
        state = {"type": self.type_name, "config": dataclasses.asdict(self.config), "seed": self.seed}
        write_json(directory / "quantizer.json", state)

    @classmethod
    def load(cls, directory: Path) -> Self:
        state = json.loads((directory / "quantizer.json").read_text(encoding="utf-8"))
        config = cli.build_dataclass(options_class(cls), state["config"], "quantizer.json: config")
        quantizer = cls(config, state["seed"])  # type: ignore[call-arg]
        quantizer.restore(load_file(directory / "quantizer.safetensors"))
        return quantizer

    @property
    @abstractmethod
    def num_dims(self) -> int:
        """D of the vectors fitted on."""

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """All that `fit` learnt."""

    @abstractmethod
    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over what `arrays` gave."""


class ChunkedQuantizer(FittedQuantizer):
    """One whose codes come from a chunk of rows at a time; a memory map is never copied whole.

    `config` needs a field `device`.
    """

    def encode(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """Codes int32 [N, L]; a row's codes depend on the row alone.

        Raises:
            InputError: on NaN or infinite values, or vectors of another length than the fitted ones.
        """
        check_matrix(embeddings_ND, self.num_dims)
        device = pick_device(self.config.device)
        encoder, step = self.chunk_encoder(device), self.rows_at_a_time(len(embeddings_ND), device)
        return encode_rows(embeddings_ND, len(self.level_sizes), encoder, device, step)

    def rows_at_a_time(self, num_rows: int, device: "torch.device") -> int:
        """C, which `num_rows` may not change unless codes do not depend on it (see row_chunks)."""
        return rows_per_chunk(device)

    @abstractmethod
    def chunk_encoder(self, device: "torch.device") -> "Callable[[torch.Tensor], torch.Tensor]":
        """A function float32 [C, D] -> integer codes [C, L]; called by several threads at a time."""


def shape_of(
    levels: int, sizes: int | list[int], field: str = "codes_per_level", levels_field: str = "levels"
) -> tuple[int, ...]:
    """Codebook sizes from one number or one per level; InputError where they contradict `levels`."""
    level_sizes = tuple(sizes if isinstance(sizes, list) else [sizes] * levels)
    if len(level_sizes) != levels or levels < 1:
        raise InputError(
            f"quantizer_args.{field}: {sizes} does not fit {levels_field}={levels}; "
            "give one number or one per level"
        )
    if min(level_sizes) < 1:
        raise InputError(f"quantizer_args.{field}: {sizes} holds a size below 1; give at least 1")
    return level_sizes


def check_enough(embeddings_MD: np.ndarray, num_codes: int, field: str = "codes_per_level") -> None:
    """What every fit asks of its vectors, read part by part.

    Raises:
        InputError: on NaN or infinite values, or fewer distinct vectors than codes; codebooks never shrink
        silently.
    """
    check_matrix(embeddings_MD)
    check_all_finite(embeddings_MD)
    distinct = num_distinct(embeddings_MD)
    if distinct < num_codes:
        raise InputError(
            f"quantizer_args.{field}: {num_codes} codes for {len(embeddings_MD)} items with {distinct} "
            f"distinct embeddings; give at most {distinct}"
        )
