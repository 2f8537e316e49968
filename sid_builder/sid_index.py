"""The item side of a model directory: catalogue, semantic IDs, trie and train counts in one artefact."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sid_builder.artifact import open_artifact, write_json, writing
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Histories
from sid_builder.semantic_ids import SemanticIds
from sid_builder.trie import SidTrie

KIND = "sid_index"
FORMAT = 2  # 1 had no removed items


@dataclass(frozen=True)
class SidIndex:
    """What decoding needs to know about items. `train_counts_N` int64 orders the items of a collided SID.

    `removed_N` bool marks items taken off the shelf (None: there are none). They keep their row and their
    SID, so that histories can still name them, but are not in the trie: nothing decodes to them.
    """

    catalog: Catalog
    semantic_ids: SemanticIds
    train_counts_N: np.ndarray
    stored_trie: SidTrie | None = None
    removed_N: np.ndarray | None = None

    def __post_init__(self) -> None:
        sizes = {self.catalog.num_items, self.semantic_ids.num_items, len(self.train_counts_N)}
        assert self.removed_N is None or len(self.removed_N) == self.catalog.num_items
        if len(sizes) != 1:
            raise InputError(
                f"sid_index: catalogue has {self.catalog.num_items} items, codes "
                f"{self.semantic_ids.num_items}, "
                f"train counts {len(self.train_counts_N)}; build the SIDs from this catalogue"
            )

    @cached_property
    def trie(self) -> SidTrie:
        return self.stored_trie or SidTrie.build(
            self.semantic_ids.codes_NL, self.train_counts_N, self.removed_N
        )

    @cached_property
    def live_N(self) -> np.ndarray:
        """Which items are on the shelf, bool."""
        return np.ones(self.catalog.num_items, dtype=bool) if self.removed_N is None else ~self.removed_N

    def reachable(self, cases: Histories) -> Histories:
        """The cases a decoder can get right: their target is known and on the shelf."""
        targets_C = cases.targets_C
        kept_C = (targets_C >= 0) & self.live_N[targets_C]
        return cases if kept_C.all() else cases.take(np.flatnonzero(kept_C))

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Write as an artefact of kind "sid_index"."""
        ids = self.semantic_ids
        with writing(directory, KIND, FORMAT, overwrite=overwrite) as artifact:
            self.catalog.save(artifact.path / "catalog.parquet")
            np.save(artifact.path / "codes.npy", ids.codes_NL)
            np.save(artifact.path / "train_counts.npy", self.train_counts_N.astype(np.int64))
            np.save(artifact.path / "removed.npy", ~self.live_N)
            self.trie.save(artifact.path / "trie")
            write_json(artifact.path / "sids.json", {"level_sizes": ids.level_sizes, "pattern": ids.pattern})
            artifact.summary.update(
                num_items=ids.num_items,
                num_live=self.trie.num_live,
                depth=ids.depth,
                collision_rate=1.0 - self.trie.num_leaves / self.trie.num_live,
            )

    @staticmethod
    def load(directory: str | Path) -> "SidIndex":
        """Open; the trie and codes are memory-mapped. InputError when incomplete or truncated."""
        artifact = open_artifact(directory, KIND, FORMAT)
        path = artifact.path
        spelled = json.loads((path / "sids.json").read_text(encoding="utf-8"))
        codes = np.load(path / "codes.npy", mmap_mode="r", allow_pickle=False)
        removed = None
        if artifact.manifest["format"] > 1:
            removed = np.load(path / "removed.npy", allow_pickle=False)
        return SidIndex(
            catalog=Catalog.load(path / "catalog.parquet"),
            semantic_ids=SemanticIds(codes, tuple(spelled["level_sizes"]), spelled["pattern"]),
            train_counts_N=np.load(path / "train_counts.npy", allow_pickle=False),
            stored_trie=SidTrie.load(path / "trie"),
            removed_N=removed,
        )
