"""SASRec's best next items: how any recommender that scores all items becomes a sparse prior.

Legend: B histories, N items, K best items.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from sid_builder.artifact import open_artifact
from sid_builder.embedders.model_files import DEVICE_HELP
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class SASRecPriorOptions:
    """Which SASRec, and how much of its distribution is kept."""

    sasrec: str = field(
        metadata={"help": "Directory of sid_builder.train_sasrec, on the model's items and interactions."}
    )
    best_items: int = field(default=200, metadata={"help": "Items with mass, the most likely ones."})
    temperature: float = field(default=1.0, metadata={"help": "Divides the scores before the softmax."})
    device: str | None = field(default=None, metadata={"help": DEVICE_HELP})

    def check(self, prefix: str) -> None:
        """InputError for what is no SASRec directory, or keeps nothing."""
        open_artifact(self.sasrec, "sasrec")
        if self.best_items < 1:
            raise InputError(f"{prefix}.best_items: {self.best_items}; give at least 1")
        if self.temperature <= 0:
            raise InputError(f"{prefix}.temperature: {self.temperature}; give more than 0")


class SASRecPrior:
    """mass(y) = softmax over all items of SASRec's scores, of the best items alone."""

    adds = False

    def __init__(self, options: SASRecPriorOptions, index: SidIndex) -> None:
        self.options, self.index = options, index

    def learn(self, train: Interactions) -> None:
        """Opens the model, which has learnt from train before."""
        self._open(Path(self.options.sasrec))

    def _open(self, directory: Path) -> None:
        from sid_builder.collaborative.sasrec import SASRec  # torch: after options were checked

        self.model = SASRec.load(directory, self.index.catalog, self.options.device)

    def masses(self, histories: list[np.ndarray]) -> sp.csr_matrix:
        from sid_builder.collaborative.item_ranking import top_items

        shape = (len(histories), self.model.num_items)
        known_B = np.array([len(history) > 0 for history in histories], dtype=bool)
        if not known_B.any():  # SASRec has nothing to say to nobody
            return sp.csr_matrix(shape)
        scores_BN = self.model.scores([history for history in histories if len(history)])
        scores_BN /= self.options.temperature
        items_BK, best_BK = top_items(scores_BN, min(self.options.best_items, shape[1]))
        total_B1 = np.exp(scores_BN - best_BK[:, :1], dtype=np.float64).sum(axis=1, keepdims=True)
        mass_BK = np.exp(best_BK - best_BK[:, :1], dtype=np.float64) / total_B1
        row_BK = np.broadcast_to(np.flatnonzero(known_B)[:, None], items_BK.shape)
        return sp.coo_matrix((mass_BK.ravel(), (row_BK.ravel(), items_BK.ravel())), shape).tocsr()

    def save(self, directory: Path) -> None:
        """A copy, so that a model directory stays self-contained."""
        self.model.save(directory / "sasrec", self.index.catalog)

    def load(self, directory: Path) -> None:
        self._open(directory / "sasrec")
