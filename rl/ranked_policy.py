"""A policy whose valid cases are ranked while it trains, and nothing else done in Trainer's evaluation.

TRL's GRPOTrainer would roll out on the evaluation set and reward it, DPOTrainer score pairs of it. What RL is
there to raise is neither: only the ranking tells the best step.
"""

from typing import Any, Protocol

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from rl.arguments import PolicyArgs
from rl.whole_policy import WholePolicy
from sft.cpu_checkpoints import load_onto_numbered_cpus
from sft.plan import Steps
from sft.valid_ranking import FIGURES, RankedEvaluation, as_before, schedule_evaluation
from sid_builder.errors import InputError


def schedule_ranking(own: PolicyArgs, args: Any) -> None:
    """`sft.valid_ranking.schedule_evaluation` for RL, in place.

    Raises:
        InputError: as there, and for what is measured in SFT alone.
    """
    schedule_evaluation(args, own.valid_cases, own.patience, gathered=True)
    if args.metric_for_best_model is not None and args.metric_for_best_model.endswith("loss"):
        raise InputError(
            f"metric_for_best_model: {args.metric_for_best_model!r} is not measured in RL; use one of "
            f"{[*FIGURES]}"
        )
    if own.keep_start and not args.load_best_model_at_end:
        raise InputError(
            "keep_start: true takes a best step to compare with; give valid_cases, save checkpoints where "
            "valid is ranked, and leave load_best_model_at_end on"
        )


def evaluations_of(steps: Steps, args: Any) -> int:
    """How often a run of `steps` ranks valid while it trains: as Trainer does, and at the last step."""
    count = steps.evaluations(args)
    if args.eval_strategy == IntervalStrategy.STEPS and steps.total % (args.eval_steps or args.logging_steps):
        count += 1
    return count


load_onto_numbered_cpus()


class Ranking(Protocol):
    """What ranks a policy: `rl.acceptance.Acceptance`."""

    def figures(self, model: Any) -> dict[str, float]:
        """Metrics of a plain model, or one wrapped by PEFT. All processes call this alike."""
        ...


class RankedPolicy(RankedEvaluation):
    """Mixed into a trainer, before its other bases.

    Evaluations happen as `args` says (`schedule_ranking`), and at the last step.

    Attributes:
        ranking: to be set before the first evaluation.
        whole_policy: gives the policy as one plain module (`rl.whole_policy`).
    """

    ranking: Ranking

    def __init__(self, *, args: Any, **kwargs: Any) -> None:
        # Trainer demands an evaluation set of a run that evaluates, and TRL would prepare it.
        strategy, args.eval_strategy = args.eval_strategy, IntervalStrategy.NO
        super().__init__(args=args, **kwargs)
        args.eval_strategy = strategy
        self.whole_policy = WholePolicy(self)
        self.add_callback(_RankLastStep())

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        assert eval_dataset is None, "nothing but valid is ranked"
        with as_before(self.model):
            self.model.eval()  # or TRL's log would add what training has gathered, and forget it
            figures = self.ranking.figures(self.whole_policy())
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
            self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _RankLastStep(TrainerCallback):
    """Trainer saves a run's last step wherever it falls, and would never compare it with the others."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.eval_strategy == IntervalStrategy.STEPS and state.global_step >= state.max_steps:
            control.should_evaluate = True
