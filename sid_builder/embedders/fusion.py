"""Several embeddings made into one: put side by side, each given its share, reduced and whitened.

Legend: N items, r rows of one block, D dimensions of all parts together, E dimensions of the result.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sid_builder.embedders import BLOCK_BYTES, Embedder, ItemData, check_embeddings
from sid_builder.embedders.parametric_whitening import ParametricWhiteningConfig, learn_whitening
from sid_builder.embedders.principal_axes import PrincipalAxes, mean_of, row_ranges
from sid_builder.errors import InputError
from sid_builder.quantizers import FitContext
from sid_builder.quantizers.signals.cooccurrence import cooccurring_rows


@dataclass(frozen=True)
class PartConfig:
    """One embedding among those to fuse."""

    embedder: str = field(metadata={"help": "A registered embedder or my.module:Thing."})
    args: dict[str, Any] = field(default_factory=dict, metadata={"help": "Its options, a mapping."})
    weight: float = field(default=1.0, metadata={"help": "Its share beside the others, as a factor."})


@dataclass(frozen=True)
class FusionConfig:
    """What is fused, and how."""

    parts: list[PartConfig] = field(metadata={"help": "The embeddings, each {embedder, args, weight}."})
    method: Literal["concat"] = field(default="concat", metadata={"help": "Put the parts side by side."})
    standardize: bool = field(
        default=True,
        metadata={
            "help": "z-score every dimension, then divide a part by the root of its size: whatever its size, "
            "its total variance is its weight squared."
        },
    )
    pca: int | None = field(default=256, metadata={"help": "Keep so many principal axes; null: keep all."})
    whiten: Literal["none", "zca", "pca", "parametric"] = field(
        default="none",
        metadata={
            "help": "pca: unit variance on every axis; zca: the same turned back to the given axes (needs "
            "pca: null); parametric: as pca, then a map learnt from items near each other in train (UniSRec)."
        },
    )
    parametric: ParametricWhiteningConfig = field(
        default_factory=ParametricWhiteningConfig,
        metadata={"help": "Options of whiten: parametric, a mapping."},
    )


class FusionEmbedder:
    """`encode(items)` runs the parts one after another and fuses them.

    Beside the parts and the result, memory is a few blocks of rows and D x D float64.
    """

    def __init__(self, config: FusionConfig, seed: int = 0) -> None:
        # Imported here: the registry is in the package that names this module.
        from sid_builder import EMBEDDERS, cli
        from sid_builder.registry import options_class, resolve

        if not config.parts:
            raise InputError("embedder_args.parts: is empty; list at least one {embedder, args, weight}")
        if config.pca is not None and config.pca < 1:
            raise InputError(
                f"embedder_args.pca: {config.pca} is below 1; give at least 1, or null for no PCA"
            )
        if config.whiten == "zca" and config.pca is not None:
            raise InputError(
                f"embedder_args.pca: {config.pca} leaves zca no axes to turn to; set pca: null or whiten: pca"
            )
        if config.whiten != "parametric" and config.parametric != ParametricWhiteningConfig():
            raise InputError(f"embedder_args.parametric: has no effect with whiten: {config.whiten}; drop it")
        config.parametric.check("embedder_args.parametric")
        self.config, self.seed = config, seed
        self.notes: dict[str, Any] = {}
        self.parts: list[Embedder] = []
        for number, part in enumerate(config.parts):
            where = f"embedder_args.parts[{number}]"
            if not 0 < part.weight < float("inf"):
                raise InputError(f"{where}.weight: {part.weight} is not above 0; give a number such as 1.0")
            made = resolve(EMBEDDERS, part.embedder, f"{where}.embedder")
            self.parts.append(
                made(cli.build_dataclass(options_class(made), part.args, f"{where}.args"), seed)
            )

    def encode(self, items: ItemData) -> np.ndarray:
        """Float32 [N, E].

        Raises:
            InputError: what the parts raise, a dimension without variance where it is to be standardised, and
            more dimensions asked for than the parts span.
        """
        side_by_side = _SideBySide(self._encode_parts(items), self.config)
        self.notes["explained_variance"] = 1.0
        if self.config.pca is None and self.config.whiten == "none":
            return side_by_side.mapped(np.zeros(side_by_side.dim), None)
        asked_by = "pca" if self.config.pca is not None else "whiten"
        axes = PrincipalAxes.of(side_by_side.blocks, self.config.pca, f"embedder_args.{asked_by}")
        self.notes["explained_variance"] = axes.explained
        if self.config.whiten == "none":
            return side_by_side.mapped(axes.mean_D, axes.axes_DE)
        fused_NE = side_by_side.mapped(axes.mean_D, axes.whitening(self.config.whiten == "zca"))
        if self.config.whiten == "parametric":
            self._whiten_by_pairs(fused_NE, items)
        return fused_NE

    def _encode_parts(self, items: ItemData) -> list[np.ndarray]:
        matrices, self.notes = [], {"parts": []}
        for number, (part, embedder) in enumerate(zip(self.config.parts, self.parts, strict=True)):
            # Each part has a directory of its own, so that two of a kind do not mix their files up.
            own_dir = items.work_dir and items.work_dir / f"part_{number}"
            if own_dir is not None:
                own_dir.mkdir(parents=True, exist_ok=True)
            name = f"{part.embedder} (parts[{number}])"
            part_ND = embedder.encode(dataclasses.replace(items, work_dir=own_dir))
            matrices.append(check_embeddings(part_ND, items.catalog.num_items, name))
            told = {"embedder": part.embedder, "dim": matrices[-1].shape[1], **getattr(embedder, "notes", {})}
            self.notes["parts"].append(told)
        return matrices

    def _whiten_by_pairs(self, fused_NE: np.ndarray, items: ItemData) -> None:
        """Learn the map from train's pairs and apply it in place."""
        context = FitContext(items.catalog, items.interactions, np.arange(items.catalog.num_items))
        pairs_P2 = cooccurring_rows(context, self.config.parametric.window)
        if len(pairs_P2) == 0:
            raise InputError(
                "embedder_args.whiten: 'parametric' found no two different items near each other in "
                "train; use whiten: pca"
            )
        weight_EE = learn_whitening(fused_NE, pairs_P2, self.config.parametric, self.seed)
        for rows in row_ranges(len(fused_NE), fused_NE[0].nbytes, BLOCK_BYTES):
            fused_NE[rows] = fused_NE[rows] @ weight_EE.T


class _SideBySide:
    """The parts as one wide matrix of float64 blocks, standardised and weighted; never there as a whole."""

    def __init__(self, matrices: list[np.ndarray], config: FusionConfig) -> None:
        self.matrices = matrices
        sizes = [matrix.shape[1] for matrix in matrices]
        self.dim = sum(sizes)
        self.shift_D, self.scale_D = np.zeros(self.dim), np.ones(self.dim)  # as given, until they are known
        scale_D = np.repeat([part.weight for part in config.parts], sizes)
        if config.standardize:
            mean_D = mean_of(self.blocks())
            deviation_D = np.sqrt(mean_of((block_rD - mean_D) ** 2 for block_rD in self.blocks()))
            self._refuse_constant(deviation_D, config.parts)
            self.shift_D = mean_D
            scale_D = scale_D / (deviation_D * np.sqrt(np.repeat(sizes, sizes)))
        self.scale_D = scale_D

    def blocks(self) -> Iterator[np.ndarray]:
        for rows in row_ranges(len(self.matrices[0]), 8 * self.dim, BLOCK_BYTES):
            yield self._block(rows)

    def mapped(self, mean_D: np.ndarray, matrix_DE: np.ndarray | None) -> np.ndarray:
        """Float32 [N, E]: (rows - mean) @ matrix; None leaves them as they are."""
        num_rows = len(self.matrices[0])
        result_NE = np.empty((num_rows, self.dim if matrix_DE is None else matrix_DE.shape[1]), np.float32)
        for rows in row_ranges(num_rows, 8 * self.dim, BLOCK_BYTES):
            block_rD = self._block(rows) - mean_D
            result_NE[rows] = block_rD if matrix_DE is None else block_rD @ matrix_DE
        return result_NE

    def _block(self, rows: slice) -> np.ndarray:
        raw_rD = np.concatenate([matrix[rows] for matrix in self.matrices], axis=1, dtype=np.float64)
        return (raw_rD - self.shift_D) * self.scale_D

    def _refuse_constant(self, deviation_D: np.ndarray, parts: list[PartConfig]) -> None:
        start = 0
        for number, (matrix, part) in enumerate(zip(self.matrices, parts, strict=True)):
            deviation_d = deviation_D[start : start + matrix.shape[1]]
            # A constant's mean is rounded, so its deviation may be a little above zero.
            dead = np.flatnonzero(deviation_d <= 1e-9 * np.abs(matrix[0]))
            if len(dead):
                raise InputError(
                    f"embedder_args.parts[{number}]: {len(dead)} of {matrix.shape[1]} dimensions of "
                    f"{part.embedder!r} are the same for all items, first {dead[0]}; leave them out, or set "
                    "standardize: false"
                )
            start += matrix.shape[1]
