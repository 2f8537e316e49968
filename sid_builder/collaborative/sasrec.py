"""SASRec: the next item from the order of a history; scores of all items, and the item vectors behind them.

Legend: B histories, b rows of one forward pass, T positions, D dimensions, H heads, N items, K items listed.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from sid_builder.artifact import open_artifact, to_json, write_json, writing
from sid_builder.catalog import Catalog
from sid_builder.collaborative import SASRecConfig
from sid_builder.collaborative.item_ranking import top_items
from sid_builder.embedders.model_files import choose_device
from sid_builder.errors import InputError
from sid_builder.interactions import Histories

KIND = "sasrec"
_BATCH_HISTORIES = 512  # per forward pass; the scores of all are returned at once


class SASRec(nn.Module):
    """Causal transformer over item vectors (Kang and McAuley 2018), LayerNorm before each branch.

    Item vectors are tied: the same ones are read as input and scored against. Positions count from the start
    of what is read, so a training window's position t is exactly what a history of t + 1 items gives. Padding
    is on the right, where causal attention never looks.
    """

    seen_N: torch.Tensor  # bool; items that occur in train

    def __init__(self, config: SASRecConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(num_items, config.dim)
        self.positions = nn.Embedding(config.max_history, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config.layers)])
        self.last_norm = nn.LayerNorm(config.dim)
        self.register_buffer("seen_N", torch.zeros(num_items, dtype=torch.bool))
        for embedding in (self.items, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    @property
    def num_items(self) -> int:
        return self.items.num_embeddings

    def forward(self, inputs_bT: torch.Tensor) -> torch.Tensor:
        """Hidden states float32 [b, T, D] from item indices int64 [b, T], T <= max_history."""
        items_bTD = self.items(inputs_bT) * self.config.dim**0.5  # as in the paper's code
        hidden_bTD = items_bTD + self.positions.weight[: inputs_bT.shape[1]]
        hidden_bTD = self.dropout(hidden_bTD)
        for block in self.blocks:
            hidden_bTD = block(hidden_bTD)
        return self.last_norm(hidden_bTD)

    def comparable(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [..., D] and item vectors [N, D] whose products are the scores (logits)."""
        if self.config.head == "dot":
            return hidden, self.items.weight
        # Split evenly, so that neither side's gradient is much larger than the other's.
        scale = self.config.temperature**-0.5
        return F.normalize(hidden, dim=-1) * scale, F.normalize(self.items.weight, dim=-1) * scale

    @torch.inference_mode()
    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Scores float32 [B, N] of every item as the next one; only their softmax and order mean something.

        Args:
            histories: item indices, oldest first; the newest `max_history` are read.

        Raises:
            InputError: on an empty history or an index outside the catalogue.
        """
        rows = [np.asarray(history, dtype=np.int64) for history in histories]
        for number, row in enumerate(rows):
            if len(row) == 0:
                raise InputError(f"histories[{number}]: is empty; give at least one item")
            if row.min() < 0 or row.max() >= self.num_items:
                raise InputError(f"histories[{number}]: has an item_index outside 0..{self.num_items - 1}")
        training = self.training
        self.eval()
        scores_BN = np.empty((len(rows), self.num_items), dtype=np.float32)
        for start in range(0, len(rows), _BATCH_HISTORIES):
            batch = [row[-self.config.max_history :] for row in rows[start : start + _BATCH_HISTORIES]]
            last_b = torch.tensor([len(row) - 1 for row in batch])
            inputs_bT = torch.zeros((len(batch), int(last_b.max()) + 1), dtype=torch.int64)
            for number, row in enumerate(batch):
                inputs_bT[number, : len(row)] = torch.from_numpy(row)
            hidden_bTD = self(inputs_bT.to(self.seen_N.device))
            hidden_bD, items_ND = self.comparable(hidden_bTD[torch.arange(len(batch)), last_b])
            scores_BN[start : start + len(batch)] = (hidden_bD @ items_ND.T).cpu().numpy()
        self.train(training)
        return scores_BN

    def score_cases(self, cases: Histories) -> np.ndarray:
        """`scores` of the cases' histories, float32 [B, N]."""
        return self.scores([cases.history(case, self.config.max_history) for case in range(len(cases))])

    def rank(
        self, histories: Sequence[np.ndarray], k: int, exclude_history: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best next items: int32 [B, K] and their scores float32 [B, K], ties by item_index.

        With `exclude_history` the items of the whole given history are left out; where fewer than k remain, a
        row ends in -1 and -inf. Raises as `scores` and `top_items` do.
        """
        return top_items(self.scores(histories), k, histories if exclude_history else None)

    @torch.inference_mode()
    def item_vectors(self) -> np.ndarray:
        """Float32 [N, D]: the vectors items are scored by (of length 1 with the cosine head).

        An item that is not in train has learnt nothing but to be unlikely, the same for all of them; it gets
        the mean of the others' vectors, which says just that it is unknown (zero once centred).
        """
        vectors_ND = self.items.weight
        if self.config.head == "cosine":
            vectors_ND = F.normalize(vectors_ND, dim=-1)
        mean_D = vectors_ND[self.seen_N].mean(dim=0)
        return torch.where(self.seen_N[:, None], vectors_ND, mean_D).cpu().numpy()

    def save(
        self,
        directory: str | Path,
        catalog: Catalog,
        inputs: dict[str, str | Path] | None = None,
        seeds: dict[str, int] | None = None,
        summary: dict[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write as an artefact of kind "sasrec": weights, options and a hash of the catalogue's keys.

        `inputs`, `seeds` and `summary` go into its manifest.
        """
        described = {"config": self.config, "num_items": self.num_items, "item_ids": _hash_of(catalog)}
        with writing(directory, KIND, 1, to_json(self.config), inputs, seeds, overwrite) as artifact:
            save_file(self.state_dict(), artifact.path / "model.safetensors")
            write_json(artifact.path / "sasrec.json", described)
            artifact.summary.update(summary or {}, num_items=self.num_items)

    @staticmethod
    def load(directory: str | Path, catalog: Catalog, device: str | None = None) -> "SASRec":
        """Open for scoring `catalog`'s items.

        Raises:
            InputError: if the artefact is incomplete, or was trained on other items or another order of them.
        """
        path = open_artifact(directory, KIND).path
        described = json.loads((path / "sasrec.json").read_text(encoding="utf-8"))
        if described["item_ids"] != _hash_of(catalog):
            raise InputError(
                f"{path}: was trained on {described['num_items']} items that are not this catalogue's "
                f"{catalog.num_items} in this order; train it again on this catalogue"
            )
        model = SASRec(SASRecConfig(**described["config"]), described["num_items"])
        model.load_state_dict(load_file(path / "model.safetensors"))
        return model.to(choose_device(device)).eval()


def _hash_of(catalog: Catalog) -> str:
    return hashlib.sha256(json.dumps(catalog.item_ids).encode()).hexdigest()


class _Block(nn.Module):
    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.heads, self.dropout_share = config.heads, config.dropout
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.queries_keys_values = nn.Linear(config.dim, 3 * config.dim)
        self.attention_out = nn.Linear(config.dim, config.dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.dim, config.dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.dim, config.dim),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_bTD: torch.Tensor) -> torch.Tensor:
        rows, positions, dim = hidden_bTD.shape
        packed = self.queries_keys_values(self.attention_norm(hidden_bTD))
        query_bHTE, key_bHTE, value_bHTE = packed.view(rows, positions, 3, self.heads, -1).permute(
            2, 0, 3, 1, 4
        )
        attended_bHTE = F.scaled_dot_product_attention(
            query_bHTE,
            key_bHTE,
            value_bHTE,
            is_causal=True,
            dropout_p=self.dropout_share if self.training else 0.0,
        )
        attended_bTD = attended_bHTE.transpose(1, 2).reshape(rows, positions, dim)
        hidden_bTD = hidden_bTD + self.dropout(self.attention_out(attended_bTD))
        return hidden_bTD + self.dropout(self.feed_forward(self.feed_forward_norm(hidden_bTD)))
