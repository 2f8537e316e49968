"""A training's state in one safetensors file: modules, optimizer and the step it had reached."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


def keep(path: Path, step: int, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Replace the file at `path` in one move, so that an interruption leaves the older state."""
    tensors = {
        f"{name}/{key}": tensor
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": tensor for key, tensor in moments.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(
        {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
        partial,
        metadata={"progress": json.dumps({"step": step})},
    )
    partial.replace(path)


def restore(path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Put a kept state back into modules and optimizer; the step it had reached."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        step = json.loads(file.metadata()["progress"])["step"]
    for name, module in modules.items():
        module.load_state_dict(_under(tensors, f"{name}/"))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in _under(tensors, "optimizer/").items():
        index, _, moment = key.partition("/")
        moments.setdefault(int(index), {})[moment] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return step


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
