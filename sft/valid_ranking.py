"""Valid cases ranked while a model trains, inside Trainer's own evaluation.

A fixed, seeded sample of valid is ranked by the tree beam: `eval_ndcg@10`, `eval_hr@10`, `eval_hr@50`,
`eval_coverage@10`, beside `eval_loss` of the same cases (in which several processes count what pads their
last batch once more; the ranking is that of one). They are metrics like any other to Trainer, so
`eval_strategy`, `eval_steps`, `metric_for_best_model`, `load_best_model_at_end` and early stopping apply.
Evaluating leaves the training as it would have been: random streams and the mode of every module are put
back. (The best step of an annealed schedule is often not its last, and then has a higher learning rate
behind it; `load_best_model_at_end: false` keeps the end of the decay whatever valid says.)

Legend: C cases, c the cases of one process.
"""

import contextlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import Trainer

from prompts.template import PromptTemplate, Rendered
from serve.decoding.recommender import Recommender
from serve.evaluation.metrics import RankedCases
from serve.evaluation.model_ranking import DEFAULT_BEAMS, flat_metrics, rank_targets, sample_cases
from sft.examples import TaskExample
from sft.launch import sharded_by
from sid_builder.errors import InputError
from sid_builder.interactions import Histories, Interactions

FIGURES = ("ndcg@10", "hr@10", "hr@50", "coverage@10")


def schedule_evaluation(config: Any, valid_cases: int, patience: int = 0, gathered: bool = False) -> None:
    """Settle in place what TRL's flags leave open: when valid is ranked and which weights are kept.

    Valid is ranked where checkpoints are saved, and each epoch where none are. The best checkpoint by NDCG@10
    (or by `metric_for_best_model`) stays beside the newest and is what the run ends with, if there is a
    checkpoint of every step that is ranked and `load_best_model_at_end` is not false.

    Args:
        config: TRL's; its `load_best_model_at_end` is None where the user left it open.
        patience: evaluations in a row without a better figure that end the run; 0: none do.
        gathered: whether the trainer gathers weights that are shared out, to rank with.

    Raises:
        InputError: for flags that contradict each other, and where no process holds whole weights.
    """
    if not valid_cases:
        for name, given in (
            ("eval_strategy", config.eval_strategy != "no" and config.eval_strategy.value),
            ("load_best_model_at_end", config.load_best_model_at_end),
            ("patience", patience),
        ):
            if given:
                raise InputError(f"{name}: {given} has no valid cases to rank; set valid_cases, such as 1000")
        config.load_best_model_at_end = False
        return
    if (sharded := sharded_by()) and not gathered:
        raise InputError(
            f"valid_cases: {valid_cases} cannot be ranked under {sharded}, where no process holds whole "
            "weights; set valid_cases: 0, and rank the merged model with serve.evaluate"
        )
    saved = config.save_strategy.value
    if config.eval_strategy == "no":
        config.eval_strategy = type(config.eval_strategy)("steps" if saved == "steps" else "epoch")
        config.eval_steps = config.save_steps if saved == "steps" else None
        config.do_eval = True
    if config.metric_for_best_model is None:
        config.metric_for_best_model, config.greater_is_better = "ndcg@10", True
    metric = config.metric_for_best_model.removeprefix("eval_")
    if metric not in (*FIGURES, "loss"):
        raise InputError(
            f"metric_for_best_model: {metric!r} is not measured; use one of {[*FIGURES, 'loss']}"
        )
    ranked = config.eval_strategy.value
    every = saved == ranked and (saved != "steps" or config.save_steps == config.eval_steps)
    kept = saved == "best" or every
    if config.load_best_model_at_end is None:
        config.load_best_model_at_end = kept
    if config.load_best_model_at_end and not kept:
        raise InputError(
            f"eval_steps: {config.eval_steps} ranks steps that save_steps: {config.save_steps} keeps no "
            "checkpoint of; make them equal, or set load_best_model_at_end: false"
        )
    if patience and not config.load_best_model_at_end:
        raise InputError(
            f"patience: {patience} ends a run behind its best step, whose weights are not kept; save where "
            "valid is ranked and leave load_best_model_at_end on"
        )


def rank_shared(
    recommender: Recommender, cases: Histories, num_beams: int = DEFAULT_BEAMS, progress: bool = False
) -> RankedCases:
    """`rank_targets` with the cases shared out among all processes, each of which gets the whole result."""
    state = PartialState()
    own_c = np.arange(state.process_index, len(cases), state.num_processes)
    progress = progress and state.is_main_process
    own = rank_targets(recommender, cases.take(own_c), num_beams, progress=progress)
    parts: list[tuple[np.ndarray, RankedCases]] = gather_object([(own_c, own)])
    item_rank_C, sid_rank_C = (np.zeros(len(cases), dtype=np.int32) for _ in range(2))
    for part_c, ranked in parts:
        item_rank_C[part_c], sid_rank_C[part_c] = ranked.item_rank_C, ranked.sid_rank_C
    of_all = [ranked for _, ranked in parts]
    return RankedCases(
        item_rank_C,
        sid_rank_C,
        np.logical_or.reduce([ranked.covered_N for ranked in of_all]),
        sum(ranked.num_beams for ranked in of_all),
        sum(ranked.invalid_beams for ranked in of_all),
        sum(ranked.duplicate_beams for ranked in of_all),
        max(ranked.seconds for ranked in of_all),
        own.num_removed,
    )


class ValidRanking:
    """A fixed sample of valid cases and what a model makes of them."""

    def __init__(
        self, template: PromptTemplate, interactions: Interactions, num_cases: int, seed: int
    ) -> None:
        self.template = template
        self.cases = sample_cases(interactions.histories("valid"), num_cases, seed)
        if not len(template.index.reachable(self.cases)):
            raise InputError(
                f"valid_cases: {num_cases}, but of {len(self.cases)} valid cases none asks for an item on "
                "the shelf; set it to 0"
            )

    def rows(self) -> datasets.Dataset:
        """The cases as training rows, for their loss; without targets that no answer can name."""
        cases, template = self.template.index.reachable(self.cases), self.template
        rows = []
        for case in range(len(cases)):
            target = int(cases.targets_C[case])
            answer = template.sid_ids[target] + template.end_ids
            rendered = Rendered(template.seqrec_prompt(cases.history(case)), answer)
            rows.append(TaskExample.of("seqrec", rendered, target).as_row())
        return datasets.Dataset.from_list(rows)

    def figures(self, model: Any) -> dict[str, float]:
        """`FIGURES` of a model, plain or wrapped by PEFT. All processes call this alike."""
        recommender = Recommender(model, self.template.tokenizer, self.template.index, self.template)
        with attention_for_branches(model.config):
            metrics = flat_metrics(rank_shared(recommender, self.cases))
        return {name: metrics[name] for name in FIGURES}


class RankedEvaluation(Trainer):
    """Mixed into a trainer: its evaluation ranks `valid_ranking` as well."""

    valid_ranking: ValidRanking

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with as_before(self.model):
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        # Here, and not behind `evaluate`, so that the log and the callbacks get these figures too.
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        figures = self.valid_ranking.figures(self.accelerator.unwrap_model(self.model))
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in figures.items()})
        return output

    def outcome(self) -> dict[str, float | int | str] | None:
        """Which step's weights the model has now, and the best figure seen; None where none was ranked."""
        metric = f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        ranked = [row for row in self.state.log_history if metric in row]
        if not ranked:
            return None
        best = (max if self.args.greater_is_better else min)(ranked, key=lambda row: row[metric])
        kept = self.state.global_step
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            kept = int(Path(self.state.best_model_checkpoint).name.rpartition("-")[2])
        return {
            "metric": metric.removeprefix("eval_"),
            "best": best[metric],
            "best_step": best["step"],
            "kept_step": kept,
            "last_step": self.state.global_step,
        }


@contextlib.contextmanager
def attention_for_branches(config: Any) -> Iterator[None]:
    """A beam's 4-D mask needs sdpa or eager, also in a model that trains with flash attention."""
    trained_with = config._attn_implementation
    if trained_with not in ("sdpa", "eager"):
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = trained_with


@contextlib.contextmanager
def as_before(model: Any) -> Iterator[None]:
    """Puts random streams and the mode of every module back: a DataLoader draws its seed from the global
    stream, and dropout would go on from there.
    """
    modes = [(module, module.training) for module in model.modules()]
    streams = random.getstate(), np.random.get_state()
    devices: Sequence[int] = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(streams[0])
        np.random.set_state(streams[1])
        for module, training in modes:
            module.training = training
