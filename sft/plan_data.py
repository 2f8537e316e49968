"""How much data a planned run reads: all of it where it is small, else a seeded sample of its parts.

Legend: S sequences, P parts; 3: rows, tokens, labels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from prompts.branches import IGNORE
from sft.examples import TaskContext, TaskExample
from sft.plan_flops import Batch
from sft.shards import PART_SIZE, examples_of, shards_of
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions

WHOLE = 32_768  # sequences, items and intents up to which everything is rendered
_SAMPLE_PART, _SAMPLE_PARTS = 128, 128
_T_QUANTILE = 1.979  # Student's t, 95 %, 127 degrees of freedom
_BATCHES = 24
_KEPT = 8192  # rows whose batches are looked at

Collate = Callable[[Sequence[dict[str, Any]]], Mapping[str, Any]]


@dataclass(frozen=True)
class Amount:
    """A count; `error` is half the width of its 95 % interval, 0 where everything was counted."""

    value: float
    error: float = 0.0

    def __str__(self) -> str:
        return f"{self.value:,.0f}" + (f" +- {self.error / max(self.value, 1):.1%}" if self.error else "")


@dataclass(frozen=True)
class Volume:
    """One epoch: rows, their tokens, the labels among them.

    Attributes:
        rendered: how many rows that was counted on.
        sample: at most `_KEPT` of them, the longest first, the others at random.
    """

    rows: Amount
    tokens: Amount
    labels: Amount
    rendered: int
    sample: list[TaskExample]


def measure(context: TaskContext, task_weights: Mapping[str, float], seed: int) -> Volume:
    """Count an epoch of the mixture.

    Exact up to `WHOLE` sequences, items and intents: the rows are then those of training. Beyond, every task
    is cut into parts of `_SAMPLE_PART`, and the same `_SAMPLE_PARTS` of them, drawn by seed, stand for all:
    in proportion to their number, or, where it explains a task's tokens better, to their train cases, which
    are known of every part (Cochran, Sampling Techniques, ch. 6: the ratio estimator).

    Raises:
        InputError: when a task with weight finds no example.
    """
    sizes = [context.interactions.num_sequences, context.index.catalog.num_items, len(context.intents or ())]
    whole = max(sizes) <= WHOLE
    shards = list(shards_of(context, task_weights, PART_SIZE if whole else _SAMPLE_PART))
    num_parts = shards[0].num_parts
    drawn_P = np.arange(num_parts)
    if not whole:
        drawn_P = np.sort(np.random.default_rng(seed).choice(num_parts, _SAMPLE_PARTS, replace=False))
    column = {int(part): number for number, part in enumerate(drawn_P)}
    counts = {shard.task: np.zeros((len(drawn_P), 3)) for shard in shards}  # rows, tokens, labels
    sample: list[TaskExample] = []
    rendered = 0
    rng = np.random.default_rng(seed)
    chosen = [shard for shard in shards if shard.part in column]
    for shard in tqdm(chosen, desc="read data", unit="part", leave=False, disable=None):
        for example in examples_of(context, shard, seed):
            learnt = sum(label != IGNORE for label in example.shift_labels)
            counts[shard.task][column[shard.part]] += (1, len(example.input_ids), learnt)
            rendered += 1
            if sample and len(example.input_ids) > len(sample[0].input_ids):
                example, sample[0] = sample[0], example
            if len(sample) < _KEPT:
                sample.append(example)
            elif (place := int(rng.integers(1, rendered))) < _KEPT:
                sample[place] = example
    empty = sorted(task for task, counts_P3 in counts.items() if not counts_P3.any())
    if empty:
        raise InputError(f"task_weights.{empty[0]}: the data holds no example for it; set its weight to 0")
    cases_P = _cases_of_parts(context.interactions, num_parts)
    total_3, residual_P3 = np.zeros(3), np.zeros((len(drawn_P), 3))
    for counts_P3 in counts.values():
        estimates = [_expand(counts_P3, known_P, drawn_P) for known_P in (np.ones(num_parts), cases_P)]
        total, residual = min(estimates, key=lambda estimate: float(estimate[1][:, 1].std()))
        total_3, residual_P3 = total_3 + total, residual_P3 + residual
    error_3 = np.zeros(3)
    if not whole:
        # Without the correction for a finite population: wordings and shares are chance again in training.
        error_3 = _T_QUANTILE * num_parts * residual_P3.std(axis=0, ddof=1) / np.sqrt(len(drawn_P))
    rows, tokens, labels = map(Amount, total_3.tolist(), error_3.tolist())
    return Volume(rows, tokens, labels, rendered, sample)


def _cases_of_parts(interactions: Interactions, num_parts: int) -> np.ndarray:
    """Train cases of each part, from the split's boundaries alone."""
    low_S, high_S = interactions.bounds_of("train")
    cases_S = np.maximum(high_S - np.maximum(low_S, 1), 0)
    before = np.concatenate([[0], np.cumsum(cases_S)])
    return np.diff(before[interactions.num_sequences * np.arange(num_parts + 1) // num_parts]).astype(float)


def _expand(counts_P3: np.ndarray, known_P: np.ndarray, drawn_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Totals over all parts from the drawn ones, in proportion to what is known of every part, and what that
    proportion leaves unexplained of the drawn ones.
    """
    ratio_3 = counts_P3.sum(axis=0) / max(known_P[drawn_P].sum(), 1.0)
    return ratio_3 * known_P.sum(), counts_P3 - ratio_3 * known_P[drawn_P, None]


@dataclass(frozen=True)
class Batches:
    """Batches of one device: their mean, and the largest (the longest row lies in one)."""

    mean: Batch
    largest: Batch
    masked: bool


def draw_batches(sample: Sequence[TaskExample], size: int, collate: Collate, seed: int) -> Batches:
    """Collate batches of `size` random rows as training will, and look at their shapes."""
    rng = np.random.default_rng(seed)
    size = min(size, len(sample))
    longest = max(range(len(sample)), key=lambda row: len(sample[row].input_ids))
    batches, masked = [], False
    for number in range(_BATCHES):
        rows = rng.choice(len(sample), size, replace=False)
        if number == 0 and longest not in rows:
            rows[0] = longest
        batch = collate([vars(sample[row]) for row in rows])
        masked = batch.get("attention_mask") is not None
        height, width = batch["input_ids"].shape
        lengths = [len(sample[row].input_ids) for row in rows]
        pairs = height * width**2 if masked else sum(length**2 for length in lengths)
        labelled = int((batch["shift_labels"] != IGNORE).sum())
        batches.append(Batch(height, width, height * width, pairs, labelled))
    # The first holds the longest row on purpose, so it is no part of the mean.
    columns = np.array([[b.rows, b.width, b.cells, b.pairs, b.labelled] for b in batches[1:]])
    return Batches(Batch(*columns.mean(axis=0).tolist()), max(batches, key=lambda b: b.cells), masked)
