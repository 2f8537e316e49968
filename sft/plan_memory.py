"""Memory of one device in a planned run, part by part.

Peaks of training: what stays (weights, gradients, optimizer) and the larger of what a training step and a
rollout hold at once. Everything is what the tensors take: allocators add some, so a plan fits when it leaves
room (`plan_hardware.FITS`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sft.plan_flops import Batch
from sft.plan_hardware import GIB, Launch
from sft.plan_model import ModelShape

CONTEXT_GIB = 1.0  # CUDA context, libraries' workspaces; on CPU the interpreter with torch in it
_TILE = 4096 * 32_768  # the largest tile of logits that TRL 1.16's head holds: positions x vocabulary
_ZERO_BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in elements


@dataclass(frozen=True)
class Memory:
    """GiB a device by what holds it; `step` and `rollout` are alternatives in time, the rest stays."""

    resident: Mapping[str, float]
    step: Mapping[str, float]
    rollout: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        transient = max(sum(self.step.values()), sum(self.rollout.values()))
        return sum(self.resident.values()) + transient

    def parts(self) -> dict[str, float]:
        """Every part by name, in the order of the report."""
        return {**self.resident, **self.step, **self.rollout}


def resident_memory(
    shape: ModelShape, launch: Launch, optimizer: str, reference_bytes: float = 0.0
) -> dict[str, float]:
    """Weights, gradients and optimizer of one device in GiB.

    ddp: every device has all of it, and buckets with a second copy of the gradients. fsdp2: all of it is
    shared out, trained weights in fp32 under mixed precision (accelerate 1.15, fsdp2_prepare_model), beside
    two gathered layers, embedding and head. zero2: weights stay whole; gradients, and the fp32 copies and
    states of what is trained, are shared out. zero3: weights too.

    Args:
        optimizer: TRL's `optim`.
        reference_bytes: of a frozen second model, kept whole.
    """
    share, half = launch.processes, 2 if launch.mixed else shape.itemsize
    frozen, itemsize = shape.weight_bytes - shape.trainable_bytes, shape.trainable_itemsize
    trained = gradients = float(shape.trainable_bytes)
    states, gathered = shape.trainable * state_bytes(optimizer, itemsize), 0.0
    layers = half * 2 * shape.linear / shape.layers
    if launch.sharding == "ddp":
        gathered = gradients
    elif launch.sharding == "fsdp2":
        itemsize = 4.0 if launch.mixed else itemsize
        frozen, trained = frozen / share, shape.trainable * itemsize / share
        gradients, states = trained, shape.trainable * state_bytes(optimizer, itemsize) / share
        gathered = layers + half * (1 if shape.tied else 2) * shape.embedding
    elif launch.sharding in ("zero2", "zero3"):
        frozen = min(frozen, half * float(shape.total - shape.trainable))
        trained = float(half * shape.trainable)
        gradients = trained / share
        states = shape.trainable * (4 + state_bytes(optimizer, 4.0)) / share
        gathered = float(half * _ZERO_BUCKET)
        if launch.sharding == "zero3":
            frozen, trained = frozen / share, trained / share
            gathered += layers + half * shape.embedding
    parts = {
        "weights": frozen + trained,
        "reference": reference_bytes,
        "gradients": gradients,
        "optimizer": states,
        "communication": gathered,
    }
    return {name: size / GIB for name, size in parts.items() if size} | {"context": CONTEXT_GIB}


def step_memory(
    shape: ModelShape, batch: Batch, kept: float, scored: float, checkpointing: bool
) -> dict[str, float]:
    """What a training step holds beside that, in GiB.

    Args:
        batch: the largest one.
        kept: bytes that autograd keeps of it without checkpointing (`plan_model.saved_bytes`).
        scored: positions that reach the head.
    """
    if checkpointing:  # the input of every layer, and one layer's insides while it is computed again
        kept = kept / shape.layers + shape.layers * batch.cells * shape.hidden * shape.itemsize
    # The backward pass of an MLP holds gradients of its three wide tensors at once.
    activations = kept + 3 * batch.cells * shape.intermediate * shape.itemsize
    tile = min(_TILE, scored * min(shape.vocabulary, 32_768)) * shape.itemsize
    head = tile + 8.0 * scored * shape.hidden
    if shape.head_learns:  # TRL sums the head's gradient in fp32 and casts it
        head += (4 + shape.itemsize) * shape.embedding
    if shape.rows:  # PEFT copies the embedding to put the new rows in
        head += shape.itemsize * shape.embedding
    return {"activations": activations / GIB, "head": head / GIB}


def rollout_memory(
    shape: ModelShape, prompts: float, prompt_tokens: float, num_beams: int, depth: int
) -> dict[str, float]:
    """Key-value cache and working space of a beam over `prompts` prompts at once, in GiB."""
    columns = prompt_tokens + num_beams * (depth - 1)
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * shape.itemsize * prompts * columns
    work = prompts * prompt_tokens * (3 * shape.intermediate + 4 * shape.hidden) * shape.itemsize
    mask = prompts * prompt_tokens**2 * shape.itemsize
    logits = min(2**25, prompts * num_beams * shape.vocabulary) * 8  # tree_beam holds no more at once
    return {"kv cache": cache / GIB, "beam": (work + mask + logits) / GIB}


def state_bytes(optimizer: str, itemsize: float) -> float:
    """Optimizer state a trained parameter of `itemsize` bytes takes; what is not known here counts as AdamW's
    two moments.
    """
    if "8bit" in optimizer:
        return 2.0
    return 0.0 if optimizer in ("sgd", "adafactor") else 2.0 * itemsize
