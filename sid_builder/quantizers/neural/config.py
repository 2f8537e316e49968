"""Options that all gradient-trained quantizers share, and what contradicts among them."""

from dataclasses import dataclass, field
from typing import Literal

from sid_builder.errors import InputError
from sid_builder.quantizers.chunked import shape_of
from sid_builder.quantizers.row_chunks import Device


@dataclass(frozen=True)
class CodebookConfig:
    """Shape of the codebooks and how they are trained."""

    levels: int = field(default=3, metadata={"help": "Codes per SID; the decoder takes one step per level."})
    codes_per_level: int | list[int] = field(
        default=256, metadata={"help": "Codebook size, one number or one per level."}
    )
    steps: int = field(default=3000, metadata={"help": "Optimizer steps; steps * batch_size / items epochs."})
    batch_size: int = field(default=1024, metadata={"help": "Items per step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "AdamW's, after a short warm-up."})
    schedule: Literal["cosine", "linear", "constant"] = field(
        default="cosine", metadata={"help": "How the learning rate goes on after the warm-up."}
    )
    beta: float = field(default=0.25, metadata={"help": "Weight of the pull of residuals to their codes."})
    kmeans_init: bool = field(
        default=True,
        metadata={"help": "Start each level from k-means of what enters it, instead of at random."},
    )
    revive_below: float = field(
        default=0.025,
        metadata={"help": "A code used by less than this share of an even share is dying; 0: let it."},
    )
    revive_after: int = field(
        default=100, metadata={"help": "Steps after which a dying code moves onto a badly coded residual."}
    )
    balance_weight: float = field(
        default=0.0, metadata={"help": "Weight of KL(use of codes || uniform) at every level; 0: off."}
    )
    balance_temperature: float = field(
        default=1.0,
        metadata={"help": "Softness of that use, in units of the mean distance to the nearest code."},
    )
    sinkhorn: Literal["none", "last", "all"] = field(
        default="none",
        metadata={"help": "Levels whose training codes are spread evenly over the batch (LC-Rec: last)."},
    )
    sinkhorn_epsilon: float = field(
        default=0.003, metadata={"help": "Smaller is closer to the most even assignment."}
    )
    curriculum: bool = field(
        default=False, metadata={"help": "Train level by level, each one joining after a stage (CL-VAE)."}
    )
    stage_share: float = field(default=0.05, metadata={"help": "Length of a stage, as a share of training."})
    device: Device = field(default="auto", metadata={"help": "auto takes CUDA where there is one."})
    cpu_threads: int = field(
        default=1,
        metadata={"help": "Threads that train on CPU. Another number rounds otherwise: other codes."},
    )


@dataclass(frozen=True)
class AutoencoderConfig(CodebookConfig):
    """The same, with an encoder before the codes and a decoder after them."""

    hidden_sizes: list[int] = field(
        default_factory=lambda: [512], metadata={"help": "Widths of the hidden layers."}
    )
    gradient: Literal["ste", "rotation"] = field(
        default="ste",
        metadata={"help": "How it passes the codes: straight through, or turned with them (rotation trick)."},
    )
    weight_decay: float = field(default=0.0, metadata={"help": "Of the matrices; codes have none."})


def check_codebooks(config: CodebookConfig) -> tuple[int, ...]:
    """Level sizes; InputError for options that contradict each other or have no meaning."""
    level_sizes = shape_of(config.levels, config.codes_per_level)
    for name, least in (("steps", 1), ("batch_size", 2), ("revive_after", 1), ("cpu_threads", 1)):
        value = getattr(config, name)
        if value < least:
            raise InputError(f"quantizer_args.{name}: {value} is below {least}; give at least {least}")
    for name in ("learning_rate", "balance_temperature", "sinkhorn_epsilon", "stage_share"):
        if not getattr(config, name) > 0:
            raise InputError(
                f"quantizer_args.{name}: {getattr(config, name)} is not above 0; give a positive number"
            )
    for name in ("beta", "revive_below", "balance_weight"):
        if not getattr(config, name) >= 0:
            raise InputError(f"quantizer_args.{name}: {getattr(config, name)} is negative; give 0 or more")
    if config.curriculum and config.stage_share * (config.levels - 1) >= 1:
        raise InputError(
            f"quantizer_args.stage_share: {config.stage_share} leaves the last of {config.levels} levels no "
            f"training; give less than {1 / (config.levels - 1):.2g}"
        )
    return level_sizes


def check_autoencoder(config: AutoencoderConfig) -> None:
    """InputError for layers or a decay that have no meaning."""
    if not config.hidden_sizes or min(config.hidden_sizes) < 1:
        raise InputError(
            f"quantizer_args.hidden_sizes: {config.hidden_sizes}; give at least one width, all above 0"
        )
    if not config.weight_decay >= 0:
        raise InputError(f"quantizer_args.weight_decay: {config.weight_decay} is negative; give 0 or more")
