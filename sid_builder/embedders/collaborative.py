"""Item vectors of models of who interacts with what: SASRec and LightGCN, learnt from train alone."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sid_builder.collaborative import LightGCNConfig, SASRecConfig
from sid_builder.embedders import ItemData
from sid_builder.errors import InputError
from sid_builder.processes import Processes


class SasrecEmbedder:
    """`encode(items)` trains SASRec and returns its item vectors; items not in train get their mean."""

    def __init__(self, config: SASRecConfig, seed: int = 0) -> None:
        config.check("embedder_args")
        self.config, self.seed = config, seed
        self.notes: dict[str, Any] = {}

    def encode(self, items: ItemData) -> np.ndarray:
        """Float32 [N, dim]; raises what `train_sasrec` does. Texts are not looked at."""
        # Imported here: torch takes seconds, options are checked before.
        from sid_builder.collaborative.sasrec_training import train_sasrec

        vectors_ND, self.notes = _trained(train_sasrec, items, self.config, self.seed)
        return vectors_ND


class LightgcnEmbedder:
    """`encode(items)` trains LightGCN and returns its item vectors; items not in train get their mean."""

    def __init__(self, config: LightGCNConfig, seed: int = 0) -> None:
        config.check("embedder_args")
        self.config, self.seed = config, seed
        self.notes: dict[str, Any] = {}

    def encode(self, items: ItemData) -> np.ndarray:
        """Float32 [N, dim]; raises what `train_lightgcn` does. Texts are not looked at."""
        from sid_builder.collaborative.lightgcn import train_lightgcn

        vectors_ND, self.notes = _trained(train_lightgcn, items, self.config, self.seed)
        return vectors_ND


def _trained(
    train: Callable[..., Any], items: ItemData, config: Any, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Vectors and notes. Of several processes the main one trains; the others then read its checkpoint."""
    processes = Processes.current()
    if processes.world_size > 1 and items.work_dir is None:
        raise InputError("embedder: collaborative ones need a work_dir to share when several processes run")
    if not processes.is_main:
        processes.wait()
    model, log = train(items.interactions, items.catalog.num_items, config, seed, items.work_dir)
    if processes.is_main:
        processes.wait()
    notes = {"epochs": len(log.epochs), "kept_epoch": log.kept_epoch, **log.kept}
    return model.item_vectors(), notes
