"""Floating-point operations of a planned run, by formula.

A multiply-add counts as two. With C computed tokens (padding included) of which Y are scored by the head, A
attended pairs (rows x width^2 under a mask), N weights in the linear layers, M in LoRA's adapters, V the
vocabulary and h the hidden size:

    forward    2 N C + 2 M C + 4 A heads head_dim layers + 2 V h Y
    backward   2 N C (inputs' gradients), 4 M C, 8 A heads head_dim layers, 4 V h Y (TRL's head computes its
               logits again), and the gradients of what learns: 2 N C in full training, 2 V h Y for the head

So full training costs 6 N and LoRA 4 N a token, next to attention and head. Gradient checkpointing runs the
layers' forward pass once more. DoRA with dropout runs the frozen layers twice. Norms, activations, the
optimizer and the recomputation of scores inside fused attention kernels are left out.
"""

from dataclasses import dataclass

from sft.plan_model import ModelShape


@dataclass(frozen=True)
class Batch:
    """What one device computes in one pass; a mean over batches may be fractional.

    Attributes:
        rows, width: the shape of input_ids.
        cells: rows x width, or the tokens alone where there is no padding.
        pairs: (query, key) pairs that attention computes.
        labelled: positions that carry loss.
    """

    rows: float
    width: float
    cells: float
    pairs: float
    labelled: float

    @staticmethod
    def of(rows: float, width: float, labelled: float) -> "Batch":
        """A padded rectangle under a 4-D mask."""
        return Batch(rows, width, rows * width, rows * width**2, labelled)


def forward_flops(shape: ModelShape, batch: Batch, scored: float) -> float:
    """One pass that scores `scored` positions."""
    return layers_flops(shape, batch) + 2 * shape.embedding * scored


def layers_flops(shape: ModelShape, batch: Batch) -> float:
    """The forward pass without the head."""
    linear = 2 * (shape.base_passes * shape.linear + shape.adapters) * batch.cells
    return linear + 2 * shape.identity + 4 * batch.pairs * _attention(shape)


def training_flops(shape: ModelShape, batch: Batch, scored: float, checkpointing: bool) -> float:
    """Forward and backward of one batch on one device."""
    base = shape.base_passes * shape.linear
    backward = (2 * base + 4 * shape.adapters) * batch.cells + 8 * batch.pairs * _attention(shape)
    backward += 2 * shape.linear * batch.cells if shape.base_learns else 0
    backward += (6 if shape.head_learns else 4) * shape.embedding * scored
    again = layers_flops(shape, batch) if checkpointing else 0
    return forward_flops(shape, batch, scored) + backward + again


def beam_flops(shape: ModelShape, prompt_tokens: float, num_beams: int, depth: int) -> float:
    """One constrained beam search (`serve.decoding.tree_beam`): the prompt once, then each beam's tokens."""
    grown = num_beams * (depth - 1)
    tokens = prompt_tokens + grown
    pairs = prompt_tokens**2 + grown * (prompt_tokens + grown / 2)
    return forward_flops(shape, Batch(1, tokens, tokens, pairs, 0), 1 + grown)


def _attention(shape: ModelShape) -> int:
    return shape.heads * shape.head_dim * shape.layers
