"""Signals: a second thing a trained quantizer listens to beside the vectors (who is clicked with whom, tags).

A signal is two parts. `Thing(config, seed)` checks its options and, in `prepare`, learns what it needs from
catalogue and train interactions, without torch. What `prepare` returns is a `torch.nn.Module` with its own
parameters and buffers, which are trained and kept in checkpoints with the quantizer's:

- `rows(rng, batch_B)`: the rows the quantizer shall run for it at this step, int64, drawn from `rng` alone
  (it depends on seed and step). `batch_B` are the rows of the reconstruction batch; giving that very array
  back reuses its pass.
- `forward(batch: SignalBatch)`: a scalar, added to the loss times `signal_weight`. In the warm-up the latents
  are not quantized yet, and `batch.quantized` has no levels.

Legend: M rows of `fit`, B rows of a pass, D input dimensions, E latent dimensions.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sid_builder.quantizers import FitContext

if TYPE_CHECKING:  # torch is imported when training starts
    import torch

    from sid_builder.quantizers.neural.codebooks import Quantized


@dataclass
class SignalBatch:
    """What the quantizer made of some rows; tensors carry gradient."""

    rows_B: np.ndarray  # int64, rows of `fit`'s matrix
    x_BD: "torch.Tensor"  # prepared input
    latents_BE: "torch.Tensor"  # encoder output
    quantized: "Quantized"  # codes, residuals and chosen codes per level
    quantized_BE: "torch.Tensor"  # sum of codes, gradient passed on to the latents
    reconstruction_BD: "torch.Tensor"  # decoder output


class Signal(Protocol):
    """Built as `Thing(config, seed)`, where the annotation of `config` is the dataclass its YAML is checked
    against."""

    def prepare(self, context: FitContext) -> "torch.nn.Module":
        """The module described above. Of the interactions only train may be used.

        Raises:
            InputError: if the data has nothing to learn from.
        """
