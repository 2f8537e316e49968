"""RQ-KMeans+ (GPR, and MiniOneRec's `rqkmeans_plus`): RQ-KMeans codebooks that go on learning, together with
an encoder Z = X + MLP(X) that starts as the identity.

The decoder is Q + MLP(Q), the identity too at first, so training starts at RQ-KMeans' own reconstruction
(MiniOneRec's is an untrained MLP).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sid_builder.errors import InputError
from sid_builder.quantizers.neural.config import AutoencoderConfig, check_autoencoder
from sid_builder.quantizers.neural.quantizer import GradientTrained

if TYPE_CHECKING:
    from sid_builder.quantizers.neural.codebooks import QuantizedAutoencoder
    from sid_builder.quantizers.neural.training import AutoencoderOptions


@dataclass(frozen=True)
class RQKMeansPlusConfig(AutoencoderConfig):
    """Shape of the codebooks, how they are trained, and the width of what is added to RQ-KMeans."""

    learning_rate: float = field(
        default=1e-4, metadata={"help": "AdamW's, after a short warm-up; small, for a good start is given."}
    )
    normalize: Literal["residuals", "input", "standardize", "none"] = field(
        default="residuals",
        metadata={"help": "L2-normalise before every level or the first; standardise columns; or neither."},
    )


class RQKMeansPlus(GradientTrained):
    """Deterministic by seed on CPU, independent of the machine's thread count."""

    type_name = "rq_kmeans_plus"

    def __init__(self, config: RQKMeansPlusConfig, seed: int = 0) -> None:
        super().__init__(config, seed)
        check_autoencoder(config)
        if not config.kmeans_init:
            raise InputError(
                "quantizer_args.kmeans_init: false contradicts rq_kmeans_plus, whose start is RQ-KMeans; "
                "drop it, or use quantizer: rqvae"
            )

    def make_network(self, dim: int) -> "QuantizedAutoencoder":
        import torch

        from sid_builder.quantizers.neural.codebooks import (
            QuantizedAutoencoder,
            Residual,
            ResidualCodebooks,
            multilayer,
        )

        config, generator = self.config, torch.Generator().manual_seed(self.seed)
        sizes = [dim, *config.hidden_sizes, dim]
        encoder, decoder = (
            Residual(multilayer(layers, generator, zero_last=True)) for layers in (sizes, sizes[::-1])
        )
        codebooks = ResidualCodebooks(
            self.level_sizes, dim, generator, unit_residuals=config.normalize == "residuals"
        )
        return QuantizedAutoencoder(dim, encoder, codebooks, decoder)

    def training_options(self) -> "AutoencoderOptions":
        from sid_builder.quantizers.neural.training import AutoencoderOptions

        return AutoencoderOptions(
            rotation=self.config.gradient == "rotation", weight_decay=self.config.weight_decay
        )
