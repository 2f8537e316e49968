"""RQ-VAE: an autoencoder whose latents are quantized by residual codebooks, all trained together (TIGER,
arXiv 2305.05065), with what keeps its codes in use.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sid_builder import SIGNALS, cli
from sid_builder.errors import InputError
from sid_builder.quantizers import FitContext
from sid_builder.quantizers.neural.config import AutoencoderConfig, check_autoencoder
from sid_builder.quantizers.neural.quantizer import GradientTrained
from sid_builder.registry import options_class, resolve

if TYPE_CHECKING:
    from sid_builder.quantizers.neural.codebooks import QuantizedAutoencoder
    from sid_builder.quantizers.neural.training import AutoencoderOptions


@dataclass(frozen=True)
class RQVAEConfig(AutoencoderConfig):
    """Shape of codebooks and autoencoder, how they are trained, and what else they listen to."""

    learning_rate: float = field(default=3e-3, metadata={"help": "AdamW's, after a short warm-up."})
    normalize: Literal["input", "standardize", "none"] = field(
        default="input",
        metadata={"help": "Rows of length 1, columns of mean 0 and variance 1, or embeddings as they are."},
    )
    hidden_sizes: list[int] = field(
        default_factory=lambda: [512, 256],
        metadata={"help": "Widths of the encoder's layers, the decoder's in reverse."},
    )
    latent_dim: int = field(default=64, metadata={"help": "Dimensions of latents and codes."})
    cosine_levels: int = field(
        default=0, metadata={"help": "First levels that choose codes by angle; the others by distance."}
    )
    warm_up_share: float = field(
        default=0.1,
        metadata={"help": "Share of training without codes, so that they start on trained latents."},
    )
    signal: str | None = field(
        default=None,
        metadata={"help": f"A second thing to learn: one of {sorted(SIGNALS)} or my.module:Thing."},
    )
    signal_args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of the signal, a mapping."}
    )
    signal_weight: float = field(default=0.1, metadata={"help": "Weight of the signal's loss."})


class RQVAE(GradientTrained):
    """Deterministic by seed on CPU, independent of the machine's thread count."""

    type_name = "rqvae"

    def __init__(self, config: RQVAEConfig, seed: int = 0) -> None:
        super().__init__(config, seed)
        check_autoencoder(config)
        if config.latent_dim < 1:
            raise InputError(f"quantizer_args.latent_dim: {config.latent_dim} is below 1; give at least 1")
        stages = config.stage_share * (config.levels - 1) if config.curriculum else 0.0
        if not 0 <= config.warm_up_share < 1 - stages:
            raise InputError(
                f"quantizer_args.warm_up_share: {config.warm_up_share} leaves the last level no training; "
                f"give 0 or more, below {1 - stages:.2g}"
            )
        if not 0 <= config.cosine_levels < config.levels:
            raise InputError(
                f"quantizer_args.cosine_levels: {config.cosine_levels} of {config.levels} levels; the last "
                f"codes by distance, so give 0 to {config.levels - 1}"
            )
        if config.signal is None and config.signal_args:
            raise InputError(
                f"quantizer_args.signal_args: {config.signal_args} have no effect without a signal; "
                "set signal or drop them"
            )
        if not config.signal_weight > 0:
            raise InputError(
                f"quantizer_args.signal_weight: {config.signal_weight} is not above 0; raise it or drop it"
            )
        self.signal = None
        if config.signal is not None:
            made = resolve(SIGNALS, config.signal, "quantizer_args.signal")
            args = cli.build_dataclass(options_class(made), config.signal_args, "quantizer_args.signal_args")
            self.signal = made(args, seed)

    def make_network(self, dim: int) -> "QuantizedAutoencoder":
        import torch

        from sid_builder.quantizers.neural.codebooks import (
            QuantizedAutoencoder,
            ResidualCodebooks,
            multilayer,
        )

        config, generator = self.config, torch.Generator().manual_seed(self.seed)
        sizes: Sequence[int] = [dim, *config.hidden_sizes, config.latent_dim]
        encoder, decoder = multilayer(sizes, generator), multilayer(sizes[::-1], generator)
        codebooks = ResidualCodebooks(self.level_sizes, config.latent_dim, generator, config.cosine_levels)
        return QuantizedAutoencoder(dim, encoder, codebooks, decoder)

    def training_options(self) -> "AutoencoderOptions":
        from sid_builder.quantizers.neural.training import AutoencoderOptions

        return AutoencoderOptions(
            rotation=self.config.gradient == "rotation",
            weight_decay=self.config.weight_decay,
            warm_up_share=self.config.warm_up_share,
            signal_weight=self.config.signal_weight,
        )

    def make_signal(self, context: FitContext | None) -> Any:
        if self.signal is None:
            return None
        if context is None:
            raise InputError(
                f"quantizer_args.signal: {self.config.signal!r} learns from catalogue and interactions, but "
                "only vectors were given; pass a FitContext to fit, or drop the signal"
            )
        return self.signal.prepare(context)
