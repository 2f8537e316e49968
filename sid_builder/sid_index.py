"""The item side of a model directory: catalogue, semantic IDs, trie and train counts in one artefact."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sid_builder.artifact import open_artifact, write_json, writing
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.semantic_ids import SemanticIds
from sid_builder.trie import SidTrie

KIND = "sid_index"


@dataclass(frozen=True)
class SidIndex:
    """What decoding needs to know about items. `train_counts_N` int64 orders the items of a collided SID."""

    catalog: Catalog
    semantic_ids: SemanticIds
    train_counts_N: np.ndarray
    stored_trie: SidTrie | None = None

    def __post_init__(self) -> None:
        sizes = {self.catalog.num_items, self.semantic_ids.num_items, len(self.train_counts_N)}
        if len(sizes) != 1:
            raise InputError(
                f"sid_index: catalogue has {self.catalog.num_items} items, codes "
                f"{self.semantic_ids.num_items}, "
                f"train counts {len(self.train_counts_N)}; build the SIDs from this catalogue"
            )

    @cached_property
    def trie(self) -> SidTrie:
        return self.stored_trie or SidTrie.build(self.semantic_ids.codes_NL, self.train_counts_N)

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Write as an artefact of kind "sid_index"."""
        ids = self.semantic_ids
        with writing(directory, KIND, overwrite=overwrite) as artifact:
            self.catalog.save(artifact.path / "catalog.parquet")
            np.save(artifact.path / "codes.npy", ids.codes_NL)
            np.save(artifact.path / "train_counts.npy", self.train_counts_N.astype(np.int64))
            self.trie.save(artifact.path / "trie")
            write_json(artifact.path / "sids.json", {"level_sizes": ids.level_sizes, "pattern": ids.pattern})
            artifact.summary.update(
                num_items=ids.num_items, depth=ids.depth, collision_rate=ids.collision_rate
            )

    @staticmethod
    def load(directory: str | Path) -> "SidIndex":
        """Open; the trie and codes are memory-mapped. InputError when incomplete or truncated."""
        path = open_artifact(directory, KIND).path
        spelled = json.loads((path / "sids.json").read_text(encoding="utf-8"))
        codes = np.load(path / "codes.npy", mmap_mode="r", allow_pickle=False)
        return SidIndex(
            catalog=Catalog.load(path / "catalog.parquet"),
            semantic_ids=SemanticIds(codes, tuple(spelled["level_sizes"]), spelled["pattern"]),
            train_counts_N=np.load(path / "train_counts.npy", allow_pickle=False),
            stored_trie=SidTrie.load(path / "trie"),
        )
