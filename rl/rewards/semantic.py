"""`semantic`: how near the completion's items are to the target in a space of item vectors (MiniOneRec's).

    rewards: {rule: 1.0, semantic: 0.3}
    reward_args: {semantic: {embeddings: out/beauty/sids}}

Legend: N items, D dimensions of their vectors, P pairs of a completion and one of its items, p those of a
block.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rl.rewards.completions import Completions
from sid_builder.artifact import artifact_kind, open_artifact
from sid_builder.embedders import BLOCK_BYTES, row_blocks
from sid_builder.embedders.precomputed import ITEM_IDS_FILE, MATRIX_FILE
from sid_builder.embedders.precomputed import KIND as EMBEDDINGS
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex

# Where each kind of artefact says whose vectors its rows are.
_ITEM_IDS = {"sids": "sid_index/catalog.parquet", EMBEDDINGS: ITEM_IDS_FILE}


@dataclass(frozen=True)
class SemanticOptions:
    """Which vectors."""

    embeddings: str = field(
        metadata={
            "help": "A directory of sid_builder.build or sid_builder.embed, or an .npy file [items, d]; its "
            "rows are the catalogue's items in their order. Stays on disk, read where it is needed."
        }
    )

    def check(self, prefix: str) -> None:
        """InputError for what is no such artefact or file."""
        path, name = Path(self.embeddings), f"{prefix}.embeddings"
        if path.is_dir():
            kind = artifact_kind(path)
            if kind not in _ITEM_IDS:
                raise InputError(f"{name}: {path} is no artefact of {' or '.join(map(repr, _ITEM_IDS))}")
            open_artifact(path, kind)
            if not (path / MATRIX_FILE).is_file():
                raise InputError(f"{name}: {path} has no {MATRIX_FILE}; build the SIDs with an embedder")
        elif not path.is_file():
            raise InputError(
                f"{name}: {path} is no file; give an .npy file or a directory with {MATRIX_FILE}"
            )


class SemanticReward:
    """Cosine of the target's vector and those of the completion's items; zeros are like nothing."""

    def __init__(self, options: SemanticOptions, index: SidIndex, train: Interactions) -> None:
        self.vectors_ND = _open(Path(options.embeddings), index)
        self.norm_N = np.empty(len(self.vectors_ND), dtype=np.float64)
        for low, block in row_blocks(self.vectors_ND):
            self.norm_N[low : low + len(block)] = np.linalg.norm(block.astype(np.float64), axis=1)
        if not np.isfinite(self.norm_N).all():
            raise InputError(
                f"reward_args.semantic.embeddings: {options.embeddings} has NaN or infinite values, first "
                f"for item_index {int(np.argmin(np.isfinite(self.norm_N)))}; embed that item again"
            )

    def __call__(self, completions: Completions) -> np.ndarray:
        """Float64 [C] in -1..1, the mean over the items of the SID; -1 for what is no item's SID.

        A hit earns 1, and less if items unlike the target share its SID.
        """
        row_P, item_P = completions.items
        target_P = completions.target_item_C[row_P]
        product_P = np.empty(len(item_P))
        step = max(1, BLOCK_BYTES // (8 * self.vectors_ND.shape[1]))
        for low in range(0, len(item_P), step):
            pairs = slice(low, low + step)
            ours_pD, theirs_pD = (
                self.vectors_ND[items[pairs]].astype(np.float64) for items in (item_P, target_P)
            )
            product_P[pairs] = np.einsum("pd,pd->p", ours_pD, theirs_pD)
        length_P = self.norm_N[item_P] * self.norm_N[target_P]
        cosine_P = np.divide(product_P, length_P, out=np.zeros(len(item_P)), where=length_P > 0)
        return completions.mean_of_items(cosine_P.clip(-1, 1), otherwise=-1.0)


def _open(path: Path, index: SidIndex) -> np.ndarray:
    """Vectors [N, D] of any number type, memory-mapped; InputError when they are not these items'."""
    name, num_items = "reward_args.semantic.embeddings", index.catalog.num_items
    if path.is_dir():
        stored = pq.read_table(path / _ITEM_IDS[str(artifact_kind(path))], columns=["item_id"])
        if not stored.column("item_id").equals(index.catalog.table.column("item_id")):
            raise InputError(
                f"{name}: {path} holds vectors of {stored.num_rows} items that are not the model's "
                f"{num_items} in their order; give the directory of the model's SIDs, or embed this catalogue"
            )
        path = path / MATRIX_FILE
    try:
        vectors_ND = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{name}: {path} is no readable .npy file ({error})") from error
    if not isinstance(vectors_ND, np.ndarray) or vectors_ND.dtype.kind not in "fiu":
        raise InputError(f"{name}: {path} holds no numbers; save float32 [items, d] with numpy.save")
    if vectors_ND.ndim != 2 or len(vectors_ND) != num_items:
        raise InputError(
            f"{name}: {path} has shape {vectors_ND.shape} for {num_items} items; give one row per item, in "
            "catalogue order"
        )
    return vectors_ND
