"""Epochs that can be interrupted: early stopping, and one checkpoint file that is always whole."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from sid_builder.artifact import to_json
from sid_builder.errors import InputError
from sid_builder.interactions import Histories, Interactions


@dataclass
class TrainingLog:
    """What happened: one entry per epoch, and which epoch's weights were kept (counted from 1)."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    kept_epoch: int = 0

    @property
    def kept(self) -> dict[str, float]:
        return self.epochs[self.kept_epoch - 1]


class Trainee(Protocol):
    """A model in training, as `train_epochs` drives it."""

    @property
    def model(self) -> torch.nn.Module: ...

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def run_epoch(self, epoch: int) -> float:
        """One pass over train, the same for the same `epoch` (from 0) and weights; returns the mean loss."""

    def valid_ndcg(self) -> float: ...


def train_epochs(
    trainee: Trainee, epochs: int, patience: int | None, seed: int, checkpoint: Path | None, name: str
) -> TrainingLog:
    """Train, and leave the kept weights in `trainee.model`.

    With `patience`, training ends after that many epochs without a better valid NDCG@10, and the best
    epoch's weights are kept; without, all epochs run and the last is kept. `checkpoint` is rewritten after
    every epoch; where it exists, training goes on from it, to the same weights as uninterrupted (bit for bit
    on one machine's CPU with one thread count).

    Raises:
        InputError: when the loss is no longer finite.
    """
    log, best = TrainingLog(), dict[str, torch.Tensor]()
    if checkpoint is not None and checkpoint.exists():
        log, best = _restore(checkpoint, trainee)
    device = next(trainee.model.parameters()).device
    with (
        tqdm(total=epochs, initial=len(log.epochs), desc=name, unit="epoch", mininterval=1.0) as bar,
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        while len(log.epochs) < epochs and not _is_over(log, patience):
            epoch = len(log.epochs)
            # Every epoch has its own seed, so no state of a random generator needs to be kept.
            torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
            trainee.model.train()
            loss = trainee.run_epoch(epoch)
            trainee.model.eval()
            if not np.isfinite(loss):
                raise InputError(
                    f"learning_rate: the loss of {name} is {loss} in epoch {epoch + 1}; choose a smaller one"
                )
            entry = {"loss": loss}
            if patience is not None:
                entry["valid_ndcg@10"] = trainee.valid_ndcg()
            log.epochs.append(entry)
            if patience is None or log.kept_epoch == 0 or entry["valid_ndcg@10"] > log.kept["valid_ndcg@10"]:
                log.kept_epoch = epoch + 1
                best = _weights(trainee.model)
            if checkpoint is not None:
                _save(checkpoint, trainee, log, best)
            bar.set_postfix({key: f"{value:.4f}" for key, value in entry.items()})
            bar.update()
    trainee.model.load_state_dict(best)
    trainee.model.eval()
    return log


def cases_to_choose_by(interactions: Interactions, config: Any, seed: int) -> Histories:
    """Valid cases that decide when to stop: `config.valid_cases` of them, or none without `patience`.

    Raises:
        InputError: if `patience` is set and there are no valid cases.
    """
    if config.patience is None:
        return interactions.histories("valid").take(np.empty(0, dtype=np.int64))
    cases = interactions.histories("valid")
    if len(cases) == 0:
        raise InputError(f"patience: {config.patience} needs valid cases, and there are none; set it to null")
    if not 0 < config.valid_cases < len(cases):
        return cases
    chosen = np.random.default_rng(seed).choice(len(cases), config.valid_cases, replace=False)
    return cases.take(np.sort(chosen))


def checkpoint_path(
    work_dir: Path | None, name: str, config: Any, seed: int, *arrays: np.ndarray
) -> Path | None:
    """Where in `work_dir` the training of these options on this data keeps its checkpoint.

    The file name carries a hash of all of them, so a run never goes on from another one's state.
    """
    if work_dir is None:
        return None
    digest = hashlib.sha256(json.dumps([name, to_json(config), seed], sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return work_dir / f"{name}-{digest.hexdigest()[:16]}.safetensors"


def _is_over(log: TrainingLog, patience: int | None) -> bool:
    return patience is not None and len(log.epochs) - log.kept_epoch >= patience


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _save(checkpoint: Path, trainee: Trainee, log: TrainingLog, best: dict[str, torch.Tensor]) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in trainee.model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for number, state in trainee.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": tensor for key, tensor in state.items()}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(".partial")
    save_file(tensors, partial, metadata={"log": json.dumps(asdict(log))})
    partial.replace(checkpoint)  # an interruption leaves the old file or the new one


def _restore(checkpoint: Path, trainee: Trainee) -> tuple[TrainingLog, dict[str, torch.Tensor]]:
    groups: dict[str, dict[str, torch.Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
    with safe_open(checkpoint, framework="pt") as file:
        log = TrainingLog(**json.loads(file.metadata()["log"]))
        for key in file.keys():  # noqa: SIM118 (the file is no mapping)
            group, _, name = key.partition(".")
            groups[group][name] = file.get_tensor(key)
    trainee.model.load_state_dict(groups["model"])
    state = trainee.optimizer.state_dict()
    for key, tensor in groups["optimizer"].items():
        number, _, name = key.partition(".")
        state["state"].setdefault(int(number), {})[name] = tensor
    trainee.optimizer.load_state_dict(state)
    return log, groups["best"]
