"""Models of who interacts with what: SASRec and LightGCN, learnt from train's cases alone.

A train case shows its history and its target, so train is what stands before `train_hi_S` in every sequence
that has a train position; nothing later is ever looked at, but for valid targets, which choose the epoch.

This file imports no torch: options are checked before anything heavy is loaded.
"""

from dataclasses import dataclass, field
from typing import Literal

from sid_builder.embedders.model_files import DEVICE_HELP
from sid_builder.errors import InputError

_PATIENCE_HELP = "End after so many epochs without a better valid NDCG@10, keep the best; null: run all."
_VALID_HELP = "Valid cases ranked after each epoch, drawn by the seed; 0: all of them."


@dataclass(frozen=True)
class SASRecConfig:
    """Self-attentive sequential recommendation (Kang and McAuley 2018) with the softmax over all items.

    Head and learning rate were chosen on Amazon 2014 Beauty, one seed, by NDCG@10 of 4,000 valid cases: after
    6 epochs .0597 with scaled inputs and 3e-3, .0765 after 20 (at 1e-3 and unscaled .0246 with the cosine
    and .0215 with the dot product, on all of valid). Dropout, blocks and max_history are the paper's for such
    data; the rest was not searched.
    """

    dim: int = field(default=64, metadata={"help": "Size of item vectors and hidden states."})
    layers: int = field(default=2, metadata={"help": "Transformer blocks."})
    heads: int = field(default=2, metadata={"help": "Attention heads; divides dim."})
    dropout: float = field(default=0.5, metadata={"help": "On inputs, attention and branches."})
    max_history: int = field(default=50, metadata={"help": "Newest items of a history that are read."})
    head: Literal["dot", "cosine"] = field(
        default="cosine",
        metadata={"help": "An item's score: its product with the hidden state, or cosine / temperature."},
    )
    temperature: float = field(default=0.07, metadata={"help": "Divides the cosine; not used by `dot`."})
    learning_rate: float = field(default=3e-3, metadata={"help": "Of AdamW, constant."})
    weight_decay: float = field(default=0.0, metadata={"help": "Of AdamW."})
    batch_targets: int = field(default=1024, metadata={"help": "Positions per step, padding included."})
    epochs: int = field(default=100, metadata={"help": "Passes over train, at most."})
    patience: int | None = field(default=4, metadata={"help": _PATIENCE_HELP})
    valid_cases: int = field(default=4_000, metadata={"help": _VALID_HELP})
    device: str | None = field(default=None, metadata={"help": DEVICE_HELP})

    def check(self, prefix: str) -> None:
        """InputError for a value no model can be made of; `prefix` names the mapping it stands in."""
        _check_common(self, prefix, ("dim", "layers", "heads", "max_history", "batch_targets"))
        if self.dim % self.heads:
            raise InputError(f"{prefix}.heads: {self.heads} does not divide dim {self.dim}; give 1 or 2, say")
        if not 0 <= self.dropout < 1:
            raise InputError(f"{prefix}.dropout: {self.dropout} is outside 0..1; give 0.5, say")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"{prefix}.temperature: {self.temperature} is not above 0; give 0.07, say")


@dataclass(frozen=True)
class LightGCNConfig:
    """LightGCN (He et al. 2020): averaged neighbours on the user-item graph, learnt by BPR.

    Learning rate and batch were chosen by valid NDCG@10 on Amazon 2014 Beauty, one seed: .0352 after 14
    epochs, against .0331 after 25 with 5e-3 and 8,192 (popularity .0069). The rest is the paper's.
    """

    dim: int = field(default=64, metadata={"help": "Size of user and item vectors."})
    layers: int = field(default=3, metadata={"help": "Steps along the graph; 0 is matrix factorisation."})
    learning_rate: float = field(default=1e-2, metadata={"help": "Of Adam, constant."})
    l2: float = field(default=1e-4, metadata={"help": "Weight of the squared vectors of a batch (layer 0)."})
    batch_pairs: int = field(default=4096, metadata={"help": "User-item pairs per step."})
    epochs: int = field(default=100, metadata={"help": "Passes over train, at most."})
    patience: int | None = field(default=4, metadata={"help": _PATIENCE_HELP})
    valid_cases: int = field(default=4_000, metadata={"help": _VALID_HELP})
    device: str | None = field(default=None, metadata={"help": DEVICE_HELP})

    def check(self, prefix: str) -> None:
        """InputError for a value no model can be made of; `prefix` names the mapping it stands in."""
        _check_common(self, prefix, ("dim", "batch_pairs"))
        if self.layers < 0:
            raise InputError(f"{prefix}.layers: {self.layers} is below 0; give 3, say")
        if not 0 <= self.l2 < float("inf"):
            raise InputError(f"{prefix}.l2: {self.l2} is below 0; give 1e-4, say")


def _check_common(config: SASRecConfig | LightGCNConfig, prefix: str, sizes: tuple[str, ...]) -> None:
    for name in (*sizes, "epochs"):
        if getattr(config, name) < 1:
            raise InputError(f"{prefix}.{name}: {getattr(config, name)} is below 1; give at least 1")
    if not 0 < config.learning_rate < float("inf"):
        raise InputError(f"{prefix}.learning_rate: {config.learning_rate} is not above 0; give 1e-3, say")
    if config.patience is not None and config.patience < 1:
        raise InputError(f"{prefix}.patience: {config.patience} is below 1; give at least 1, or null")
    if config.valid_cases < 0:
        raise InputError(f"{prefix}.valid_cases: {config.valid_cases} is below 0; 0 ranks all of them")
