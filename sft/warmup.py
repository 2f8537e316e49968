"""The first steps of a training run, in which the SID tokens' rows move alone.

New rows mean nothing yet, and adapters that learn beside them spend their first steps on making up for that.
So for `new_tokens.warmup_steps` optimizer steps only the rows learn (the field's "embeddings only" stage);
then everything that is trainable joins, under the learning-rate schedule that has been running since step 0.

Gradients are computed for all parameters throughout, and dropped before the optimizer sees them: no parameter
is unused for DDP, a parameter that has not joined has no moments and no decay, and whether a step belongs to
the warm-up depends on its number alone, so a resumed run goes on as the whole one. The norm that
`max_grad_norm` clips is that of all gradients, as it will be afterwards.
"""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import TrainerCallback

from sft.arguments import TrainingOptions
from sft.launch import sharding_of
from sid_builder.errors import InputError


def check_warmup(args: TrainingOptions, config: Any) -> None:
    """Refuse what cannot hold parameters back; `config` is TRL's.

    Raises:
        InputError: under DeepSpeed, which steps inside its backward pass; and where whole embeddings are
        trained, under FSDP (rows of a sharded matrix) and weight decay (which would shrink the old rows).
    """
    if not args.new_tokens.warmup_steps:
        return
    sharding = sharding_of()
    if sharding.startswith("zero"):
        raise InputError(
            f"new_tokens.warmup_steps: {args.new_tokens.warmup_steps} cannot be kept under DeepSpeed; use "
            "configs/accelerate/ddp.yaml, or leave the warm-up out"
        )
    if args.training == "lora" and args.new_tokens.train == "rows":
        return
    if sharding.startswith("fsdp"):
        raise InputError(
            f"new_tokens.warmup_steps: {args.new_tokens.warmup_steps} with whole embeddings cannot be kept "
            "under FSDP; set training: lora with new_tokens.train: rows, or leave the warm-up out"
        )
    if config.weight_decay:
        raise InputError(
            f"weight_decay: {config.weight_decay} would shrink the old rows of whole embeddings during "
            "new_tokens.warmup_steps; set it to 0, or train rows alone (new_tokens.train: rows)"
        )


class RowWarmup(TrainerCallback):
    """Holds back all but the SID rows for the first `steps` optimizer steps.

    Of whole embeddings (training: full, or new_tokens.train: full) the gradients of all other rows are set to
    zero, on which Adam does not move them.
    """

    def __init__(self, token_ids: Iterable[int], steps: int) -> None:
        self.token_ids = torch.tensor(list(token_ids))
        self.steps = steps

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.steps:
            return
        model = kwargs["model"]
        embeddings = _whole_embeddings(model)
        for name, parameter in model.named_parameters():
            if parameter.grad is None or "trainable_tokens_delta" in name:
                continue
            if id(parameter) in embeddings:
                rows = self.token_ids.to(parameter.device)
                kept = parameter.grad[rows]
                parameter.grad.zero_()
                parameter.grad[rows] = kept
            else:
                parameter.grad = None


def _whole_embeddings(model: Any) -> set[int]:
    """Identities of trainable matrices of the input embedding and the head."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return {id(parameter) for layer in layers for parameter in layer.parameters()}
