"""The policy as one plain module on every process, for rollouts, rankings and the model directory.

Under DDP every process has it. Under FSDP2 a second copy is kept beside the shards, and what trains is
gathered into it, parameter by parameter: the tree of a search calls parts of the model, as often as a
process's own prompts need, which modules that gather themselves with the others cannot take.
"""

import copy
from typing import Any

import torch
from torch.distributed.tensor import DTensor


class WholePolicy:
    """Made from a trainer before it shares the model out."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._copy = copy.deepcopy(trainer.model) if trainer.is_fsdp_enabled else None

    @torch.no_grad()
    def __call__(self) -> Any:
        """The policy as it is now. All processes have to ask together."""
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        if self._copy is None:
            return model
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            self._copy.get_parameter(name).copy_(whole)
        return self._copy
