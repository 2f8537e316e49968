"""The training loop of gradient-trained codebooks: k-means start, curriculum, revival, signals, checkpoints.

Batches, revivals and a signal's draws depend on the seed and the step alone, never on a generator's history,
so a run that goes on from a checkpoint takes exactly the steps an uninterrupted one takes.

Legend: M rows to learn from, B rows of a batch, D input dimensions, E latent dimensions, K codes of a level.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from sid_builder.errors import InputError
from sid_builder.quantizers.neural import checkpoint as checkpoints
from sid_builder.quantizers.neural.balance import CodeUsage, high_error_rows, kl_to_uniform
from sid_builder.quantizers.neural.codebooks import QuantizedAutoencoder
from sid_builder.quantizers.neural.config import CodebookConfig
from sid_builder.quantizers.neural.gradients import rotate, straight_through
from sid_builder.quantizers.neural.kmeans_start import kmeans_codes
from sid_builder.quantizers.row_chunks import CHUNK_ROWS, ranges
from sid_builder.quantizers.signals import SignalBatch

# Rows per code that k-means starts from: training moves the codes on, so a sample will do.
_START_ROWS_PER_CODE = 64
# Steps between looks at the loss: reading it makes a GPU wait.
_STEPS_PER_LOOK = 20
_NUM_CHECKPOINTS = 20
_RATE_WARM_UP = 0.02  # share of the steps
_MAX_GRADIENT_NORM = 1.0
# Weight of a batch in the running mean length of residuals; the codes they belong to move as slowly.
_SCALE_MOMENTUM = 0.01
# What random draws are for, so that no two use the same numbers.
_ORDER, _SIGNAL, _REVIVAL, _START = range(4)


@dataclass(frozen=True)
class AutoencoderOptions:
    """What only a network with an encoder has a choice of."""

    rotation: bool = False  # the gradient passes the codes by rotation, else straight through
    weight_decay: float = 0.0
    warm_up_share: float = 0.0  # of the steps, trained without codes
    signal_weight: float = 0.0


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Torch uses `count` CPU threads inside. Sums split over more threads round differently, and one flipped
    bit can become another code, so the number must not be the machine's."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Trainer:
    """Trains a `QuantizedAutoencoder` in place, on the device it is on.

    Args:
        rows: `rows(numbers_B)` gives prepared float32 [B, D] on that device.
        num_rows: M.
        signal: a module as `sid_builder.quantizers.signals` describes it, or None.
        checkpoint: file to keep the state in and to go on from if it is there; None: no checkpoints. Its name
            must tell runs with other data or options apart.
    """

    def __init__(
        self,
        network: QuantizedAutoencoder,
        rows: Callable[[np.ndarray], torch.Tensor],
        num_rows: int,
        config: CodebookConfig,
        seed: int,
        options: AutoencoderOptions,
        signal: Any = None,
        checkpoint: Path | None = None,
    ) -> None:
        device = network.codebooks.scales.device
        self.network, self.rows, self.num_rows = network, rows, num_rows
        self.config, self.seed, self.options = config, seed, options
        self.signal = signal.to(device) if signal is not None else None
        self.checkpoint = checkpoint
        self.level_sizes = [len(codes) for codes in network.codebooks.codes]
        self.usage = CodeUsage(self.level_sizes).to(device)
        self.batch_size = min(config.batch_size, num_rows)
        self.steps_per_epoch = num_rows // self.batch_size
        self.optimizer = torch.optim.AdamW(self._parameter_groups(), lr=config.learning_rate)
        self.step = 0
        self._epoch, self._order_M = -1, np.empty(0, dtype=np.int64)

    def run(self) -> None:
        """Train to the last step.

        Raises:
            InputError: when the loss is no longer a number.
        """
        if self.checkpoint is not None and self.checkpoint.exists():
            self.step = checkpoints.restore(self.checkpoint, self._modules(), self.optimizer)
        every = max(1, self.config.steps // _NUM_CHECKPOINTS)
        with (
            cpu_threads(self.config.cpu_threads),
            tqdm(total=self.config.steps, initial=self.step, desc="train codebooks", unit="step") as bar,
        ):
            while self.step < self.config.steps:
                loss = self._take_step()
                self.step += 1
                bar.update()
                keeps = self.step == self.config.steps or self.step % every == 0
                if keeps or self.step % _STEPS_PER_LOOK == 0:
                    self._look(loss, bar)
                if keeps and self.checkpoint is not None:
                    checkpoints.keep(self.checkpoint, self.step, self._modules(), self.optimizer)

    def active_levels(self, step: int) -> int:
        """None in the warm-up; then all levels, or with a curriculum one more after each stage (RecBase's
        CL-VAE, whose earlier levels go on learning)."""
        step -= round(self.options.warm_up_share * self.config.steps)
        if step < 0:
            return 0
        if not self.config.curriculum:
            return len(self.level_sizes)
        return min(
            len(self.level_sizes), 1 + step // max(1, round(self.config.stage_share * self.config.steps))
        )

    def _take_step(self) -> torch.Tensor:
        levels = self.active_levels(self.step)
        if self.config.kmeans_init:
            for level in range(self.active_levels(self.step - 1) if self.step else 0, levels):
                self._start_from_kmeans(level)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._rate()
        batch_B = self._batch()
        outputs = self._forward(batch_B, levels)
        loss = _mean_square(outputs.x_BD - outputs.reconstruction_BD) + self._codebook_loss(outputs)
        if self.signal is not None:
            signal_B = self.signal.rows(self._rng(_SIGNAL), batch_B)
            if signal_B is batch_B:
                added = self.signal(outputs)
            else:
                seen = self._forward(signal_B, levels)
                added = self.signal(seen) + self._codebook_loss(seen)
            loss = loss + self.options.signal_weight * added
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters(), _MAX_GRADIENT_NORM)
        self.optimizer.step()
        self._look_after_codes(outputs)
        return loss.detach()

    def _forward(self, rows_B: np.ndarray, levels: int) -> SignalBatch:
        x_BD = self.rows(rows_B)
        latents_BE = self.network.encoder(x_BD)
        even = {"none": 0, "last": 1, "all": len(self.level_sizes)}[self.config.sinkhorn]
        quantized = self.network.codebooks(
            latents_BE, levels, len(self.level_sizes) - even, self.config.sinkhorn_epsilon
        )
        passed_BE = latents_BE
        if levels > 0:
            passed_BE = (rotate if self.options.rotation else straight_through)(latents_BE, quantized.sum_BE)
        return SignalBatch(rows_B, x_BD, latents_BE, quantized, passed_BE, self.network.decoder(passed_BE))

    def _codebook_loss(self, outputs: SignalBatch) -> torch.Tensor:
        """Sum over levels of |sg r - e|^2 + beta |r - sg e|^2 + lambda KL(use || uniform), means over rows.

        TIGER's (arXiv 2305.05065), and the balance term that may be switched on. Residuals carry gradient to
        the earlier codes too, which so learn to leave what later levels can express.
        """
        quantized = outputs.quantized
        loss = outputs.x_BD.new_zeros(())
        for level, residual_BE in enumerate(quantized.residuals):
            chosen_BE = quantized.chosen[level]
            loss = loss + _mean_square(residual_BE.detach() - chosen_BE)
            loss = loss + self.config.beta * _mean_square(residual_BE - chosen_BE.detach())
            if self.config.balance_weight > 0:
                distance_BK = self.network.codebooks.distances(residual_BE, level)
                kl = kl_to_uniform(distance_BK, self.config.balance_temperature)
                loss = loss + self.config.balance_weight * kl
        return loss

    @torch.no_grad()
    def _look_after_codes(self, outputs: SignalBatch) -> None:
        """Count use, move codes that have had none for long onto residuals that are coded badly, and keep
        `scales` at the residuals' mean length."""
        codebooks, quantized = self.network.codebooks, outputs.quantized
        for level, residual_BE in enumerate(quantized.residuals):
            error_B = ((residual_BE - quantized.chosen[level]) ** 2).sum(dim=1)
            if codebooks.unit_residuals and level + 1 < len(self.level_sizes):
                codebooks.scales[level + 1].lerp_(error_B.sqrt().mean(), _SCALE_MOMENTUM)
            self.usage.update(quantized.codes_BA[:, level], level, self.config.revive_below)
            dead = self.usage.dead(level, self.config.revive_after)
            if len(dead) > 0:
                rows = high_error_rows(error_B, len(dead), self._rng(_REVIVAL, level))
                self._revive(level, dead[: len(rows)], residual_BE[rows])

    def _revive(self, level: int, dead: torch.Tensor, residual_RE: torch.Tensor) -> None:
        codes = self.network.codebooks.codes[level]
        codes[dead] = residual_RE
        for moment in ("exp_avg", "exp_avg_sq"):  # Adam's, of the code that died
            self.optimizer.state[codes][moment][dead] = 0
        self.usage.restart(dead, level)

    @torch.no_grad()
    def _start_from_kmeans(self, level: int) -> None:
        """Put the level's codes where the latents are: k-means of what a large sample leaves to it."""
        codebooks = self.network.codebooks
        wanted = min(self.num_rows, _START_ROWS_PER_CODE * self.level_sizes[level])
        sample_M = np.sort(self._rng(_START, level).choice(self.num_rows, wanted, replace=False))
        parts = []
        for low, high in ranges(wanted, CHUNK_ROWS):
            latents_BE = self.network.encoder(self.rows(sample_M[low:high]))
            codes_BA = codebooks(latents_BE, level).codes_BA
            parts.append(codebooks.residual(latents_BE, codes_BA, level))
        residual_ME = torch.cat(parts)
        if not residual_ME.isfinite().all():
            raise self._diverged("not finite")
        codes_KE, length = kmeans_codes(
            residual_ME, self.level_sizes[level], self.seed + level, level < codebooks.cosine_levels
        )
        codebooks.codes[level].copy_(codes_KE)
        if codebooks.unit_residuals and level + 1 < len(self.level_sizes):
            codebooks.scales[level + 1] = length

    def _batch(self) -> np.ndarray:
        """Rows of this step, int64 [B]: a new order of all rows each epoch, the last few left out."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if epoch != self._epoch:
            order_rng = np.random.default_rng([self.seed, _ORDER, epoch])
            self._epoch, self._order_M = epoch, order_rng.permutation(self.num_rows)
        return self._order_M[place * self.batch_size : (place + 1) * self.batch_size]

    def _rng(self, purpose: int, level: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose, self.step, level])

    def _rate(self) -> float:
        """Share of the learning rate: a short linear warm-up, then constant, or down to zero."""
        warm_up = max(1, round(_RATE_WARM_UP * self.config.steps))
        if self.step < warm_up:
            return (self.step + 1) / warm_up
        done = (self.step - warm_up) / max(1, self.config.steps - warm_up)
        if self.config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1 - done if self.config.schedule == "linear" else 1.0

    def _modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {"network": self.network, "usage": self.usage}
        return modules if self.signal is None else modules | {"signal": self.signal}

    def _parameters(self) -> list[nn.Parameter]:
        return [weights for module in self._modules().values() for weights in module.parameters()]

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Weight decay pulls on matrices of encoder and decoder alone; codes it would only shrink."""
        coders = [*self.network.encoder.parameters(), *self.network.decoder.parameters()]
        decayed = {id(weights) for weights in coders if weights.dim() > 1}
        groups = []
        for decays in (True, False):
            members = [weights for weights in self._parameters() if (id(weights) in decayed) == decays]
            if members:
                groups.append(
                    {"params": members, "weight_decay": self.options.weight_decay if decays else 0.0}
                )
        return groups

    def _look(self, loss: torch.Tensor, bar: tqdm) -> None:
        value = float(loss)
        if not math.isfinite(value):
            raise self._diverged(str(value))
        bar.set_postfix(loss=f"{value:.4f}", perplexity=f"{self.usage.perplexity(0):.0f}")

    def _diverged(self, seen: str) -> InputError:
        return InputError(
            f"quantizer_args.learning_rate: the loss is {seen} in epoch {self.step // self.steps_per_epoch} "
            f"(step {self.step}) at {self.config.learning_rate}; give a tenth of it, or normalize: input"
        )


def _mean_square(difference_BE: torch.Tensor) -> torch.Tensor:
    """Squared length, averaged over rows."""
    return (difference_BE**2).sum(dim=1).mean()
