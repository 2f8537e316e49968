"""Training of SASRec: cross-entropy over all items at every train position.

Legend: b windows of one batch, T positions, t targets of one batch, D dimensions.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from sid_builder.collaborative import SASRecConfig
from sid_builder.collaborative.epochs import TrainingLog, cases_to_choose_by, checkpoint_path, train_epochs
from sid_builder.collaborative.full_softmax import FullSoftmaxLoss
from sid_builder.collaborative.item_ranking import ndcg_at_10
from sid_builder.collaborative.sasrec import SASRec
from sid_builder.collaborative.windows import NO_TARGET, TrainWindows
from sid_builder.embedders.model_files import choose_device
from sid_builder.errors import InputError
from sid_builder.interactions import Histories, Interactions


def train_sasrec(
    interactions: Interactions,
    num_items: int,
    config: SASRecConfig,
    seed: int = 0,
    work_dir: Path | None = None,
) -> tuple[SASRec, TrainingLog]:
    """A model trained on `interactions`' train cases; valid targets do no more than choose the epoch.

    Deterministic by seed on one machine's CPU with one thread count (on a GPU, sums of gradients may differ
    in their last bits between runs). With `work_dir`, an interrupted training goes on where it was.

    Raises:
        InputError: if there are no train cases, or none to choose the epoch by although `patience` is set.
    """
    windows = TrainWindows.of(interactions, config.max_history)
    if len(windows) == 0:
        raise InputError("interactions: no train case has a history and a target; give longer sequences")
    valid = cases_to_choose_by(interactions, config, seed)
    bounds = (windows.begin_W, windows.first_W, windows.end_W, valid.sequence_C, valid.position_C)
    checkpoint = checkpoint_path(
        work_dir, "sasrec", config, seed, np.array(num_items), interactions.items_I, *bounds
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SASRec(config, num_items)
    model.seen_N.copy_(torch.from_numpy(windows.seen_items(num_items)))
    trainee = _Trainee(model.to(choose_device(config.device)), windows, valid, seed)
    return model, train_epochs(trainee, config.epochs, config.patience, seed, checkpoint, "sasrec")


class _Trainee:
    def __init__(self, model: SASRec, windows: TrainWindows, valid: Histories, seed: int) -> None:
        config = model.config
        self.model, self.windows, self.valid, self.seed = model, windows, valid, seed
        self.device = model.seen_N.device
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def run_epoch(self, epoch: int) -> float:
        rng = np.random.default_rng([self.seed, epoch])
        total, num_targets = 0.0, 0
        with tqdm(total=len(self.windows), desc="windows", leave=False, mininterval=1.0) as bar:
            for inputs_bT, targets_bT in self.windows.batches(self.model.config.batch_targets, rng):
                loss = self._step(inputs_bT, targets_bT)
                count = int((targets_bT != NO_TARGET).sum())
                total, num_targets = total + loss * count, num_targets + count
                bar.update(len(inputs_bT))
        return total / num_targets

    def _step(self, inputs_bT: np.ndarray, targets_bT: np.ndarray) -> float:
        at = torch.from_numpy(np.flatnonzero(targets_bT != NO_TARGET)).to(self.device)
        targets_t = torch.from_numpy(targets_bT).to(self.device).flatten()[at]
        hidden_bTD = self.model(torch.from_numpy(inputs_bT).to(self.device))
        hidden_tD, items_ND = self.model.comparable(hidden_bTD.flatten(0, 1)[at])
        loss = FullSoftmaxLoss.apply(hidden_tD, items_ND, targets_t)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def valid_ndcg(self) -> float:
        return ndcg_at_10(self.model.score_cases, self.valid, self.model.num_items)
