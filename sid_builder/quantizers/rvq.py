"""R-VQ: residual codebooks in the input space, trained by gradient without an autoencoder (GRID's R-VQ,
arXiv 2507.22224). Between RQ-KMeans, whose levels are learnt one after the other, and RQ-VAE.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sid_builder.quantizers.neural.config import CodebookConfig
from sid_builder.quantizers.neural.quantizer import GradientTrained

if TYPE_CHECKING:
    from sid_builder.quantizers.neural.codebooks import QuantizedAutoencoder


@dataclass(frozen=True)
class RVQConfig(CodebookConfig):
    """Shape of the codebooks and how they are trained."""

    steps: int = field(default=1000, metadata={"help": "Optimizer steps; steps * batch_size / items epochs."})
    normalize: Literal["residuals", "input", "standardize", "none"] = field(
        default="residuals",
        metadata={"help": "L2-normalise before every level or the first; standardise columns; or neither."},
    )


class RVQ(GradientTrained):
    """Deterministic by seed on CPU, independent of the machine's thread count."""

    type_name = "rvq"

    def __init__(self, config: RVQConfig, seed: int = 0) -> None:
        super().__init__(config, seed)

    def make_network(self, dim: int) -> "QuantizedAutoencoder":
        import torch

        from sid_builder.quantizers.neural.codebooks import QuantizedAutoencoder, ResidualCodebooks

        generator = torch.Generator().manual_seed(self.seed)
        codebooks = ResidualCodebooks(
            self.level_sizes, dim, generator, unit_residuals=self.config.normalize == "residuals"
        )
        return QuantizedAutoencoder(dim, torch.nn.Identity(), codebooks, torch.nn.Identity())
