"""A run of rl.train_grpo or rl.train_dpo and its directory.

OUTPUT_DIR/settings.json      what the run was begun with, written first (rl/run_settings.py)
          /checkpoint-*/      Trainer's; the newest, and the best on valid
          /model/             the result: a self-contained model directory without adapters
          /acceptance.json, acceptance.png      whether it is better than the start
          /log_history.json, curves.png, manifest.json (last)
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.acceptance import ACCEPTANCE_FILE, Acceptance
from rl.acceptance_report import PICTURE_FILE, draw, table
from rl.arguments import PolicyArgs
from rl.launch import check_launch
from rl.policy import load_policy, plain_result, whole_start, write_policy
from rl.ranked_policy import schedule_ranking
from rl.run_settings import check_settings, settings_of, write_settings
from serve.decoding.recommender import Recommender
from sft.curves import check_report_to, plot_history
from sft.run import begin_run, prepare_output, refuse_push
from sft.valid_ranking import FIGURES
from sid_builder import cli
from sid_builder.artifact import hash_inputs, seal, to_json, write_json

MODEL_DIR = "model"


class PolicyRun:
    """From checked flags to a sealed directory. Making one only looks: files change once `train` begins.

    Raises:
        InputError: for flags that contradict each other or this launch, an output directory that is in the
            way, and a run to resume that was begun with other settings.
    """

    def __init__(self, own: PolicyArgs, args: Any, kind: str) -> None:
        """Args: `args` is TRL's configuration; `kind` of the run's artefact: "grpo" or "dpo"."""
        self.own, self.args, self.kind = own, args, kind
        self.directory = Path(args.output_dir)
        refuse_push(args)
        check_launch(own, args)
        check_report_to(args)
        schedule_ranking(own, args)
        self._settings = settings_of(own, args, Path(own.model_name_or_path))
        self.resume = prepare_output(self.directory, kind, args.resume_from_checkpoint, own.overwrite)
        check_settings(self._settings, self.resume)

    def open(self) -> Recommender:
        """The policy to train, and the valid cases it is going to be judged on.

        Raises:
            InputError: when the model directory is not whole, or valid has no cases.
        """
        own, args = self.own, self.args
        self.start = load_policy(own, args)
        self.acceptance = Acceptance.on_valid(
            self.start, own.valid_cases, own.eval_num_beams, args.seed, bool(args.load_best_model_at_end)
        )
        return self.start

    def train(self, trainer: Any, curves: Sequence[str]) -> str:
        """Rank valid cases, train, rank them again, and write the run directory.

        Args:
            trainer: a `RankedPolicy` on the policy of `open`.
            curves: log keys of curves.png, beside the loss and the valid ranking.

        Returns:
            What to tell the user: which step was kept, the table, the verdict and where things are.
        """
        own, args, acceptance = self.own, self.args, self.acceptance
        first: dict[str, float] = {}
        if acceptance is not None:
            trainer.ranking = acceptance
            first = acceptance.figures(trainer.whole_policy())
            acceptance.measure("before", whole_start(own, args) if own.load_in_4bit else self.start.model)
        self._begin(trainer.is_world_process_zero())
        if own.patience:
            from transformers import EarlyStoppingCallback

            trainer.add_callback(EarlyStoppingCallback(own.patience))
        trainer.train(resume_from_checkpoint=self.resume)

        step = _with_start(trainer.outcome(), first, own.keep_start)
        policy = trainer.whole_policy()
        # What only training needs makes room for what comes now.
        trainer.ref_model = trainer.optimizer = trainer.lr_scheduler = None
        trainer.accelerator.free_memory()
        back = step is not None and step["kept_step"] == 0
        model = whole_start(own, args) if back else plain_result(policy, own, args)
        if acceptance is not None:
            acceptance.measure("after", model)
        if trainer.is_world_process_zero():
            self._write(trainer, model, step, first, curves)
        trainer.accelerator.wait_for_everyone()
        return self._told(step)

    def _begin(self, is_main: bool) -> None:
        begin_run(self.directory, self.resume)
        if not is_main:
            return
        # Of a run that was finished, or killed at its very end: they would pass for this one's.
        shutil.rmtree(self.directory / MODEL_DIR, ignore_errors=True)
        for name in (ACCEPTANCE_FILE, PICTURE_FILE):
            (self.directory / name).unlink(missing_ok=True)
        write_settings(self._settings, self.directory)

    def _write(
        self,
        trainer: Any,
        model: Any,
        step: dict[str, Any] | None,
        first: dict[str, float],
        curves: Sequence[str],
    ) -> None:
        output, title = self.directory, f"{self.kind} {self.directory.name}"
        resolved = {"rl": to_json(self.own), "trl": to_json(cli.changed_fields(self.args))}
        seed, verdict = self.args.seed, self._statement()
        write_policy(output / MODEL_DIR, model, self.start, resolved, seed, verdict)
        at_start = {"step": 0, "epoch": 0.0, **{f"eval_{name}": value for name, value in first.items()}}
        history = [*([at_start] if first else []), *map(_finite, trainer.state.log_history)]
        write_json(output / "log_history.json", history)
        names = {"step": "step", "loss": f"{self.kind.upper()} loss"}
        names |= {name: name for name in (*curves, *(f"eval_{name}" for name in FIGURES))}
        kept = [{names[key]: value for key, value in row.items() if key in names} for row in history]
        best = step["kept_step"] if step and self.args.load_best_model_at_end else None
        plot_history(kept, output / "curves.png", title=title, best_step=best)
        if self.acceptance is not None:
            self.acceptance.write(output, step)
            draw(self.acceptance, output, title)
        seal(
            output,
            self.kind,
            1,
            config=resolved,
            inputs=hash_inputs({"model": self.own.model_name_or_path}),
            seeds={"seed": seed},
            summary={"steps": trainer.state.global_step, "verdict": verdict, "valid": step},
            ignore=("checkpoint-", "runs", MODEL_DIR, "README.md"),
        )

    def _statement(self) -> str:
        return self.acceptance.statement() if self.acceptance is not None else "no verdict: valid_cases is 0"

    def _told(self, step: dict[str, Any] | None) -> str:
        lines = [] if step is None else [_step_told(step, bool(self.args.load_best_model_at_end))]
        lines += [self._statement(), f"wrote {self.directory}; the model is {self.directory / MODEL_DIR}"]
        told = [f"{self.kind}: {line}" for line in lines]
        return "\n".join(told if self.acceptance is None else [table(self.acceptance), *told])


def _with_start(
    outcome: dict[str, Any] | None, first: dict[str, float], keep_start: bool
) -> dict[str, Any] | None:
    """The trainer's outcome beside the start, which is step 0; its step is kept if it may be and is best."""
    if outcome is None:
        return None
    start = first[outcome["metric"]]
    beaten = outcome["best"] > start
    kept = outcome["kept_step"] if beaten or not keep_start else 0
    return {**outcome, "start": start, "beats_start": beaten, "kept_step": kept}


def _step_told(step: dict[str, Any], chosen: bool) -> str:
    metric = str(step["metric"]).upper()
    found = f"valid {metric} {step['start']:.4f} at the start"
    best = f"{step['best']:.4f} at step {step['best_step']} of {step['last_step']}"
    if not chosen:
        return f"{found}, at best {best}; the model holds the last step"
    if step["beats_start"]:
        return f"{found}, at best {best}: the model holds step {step['kept_step']}"
    kept = "the start again" if step["kept_step"] == 0 else f"step {step['kept_step']} all the same"
    return f"no step beat the start: {found}, at best {best}; the model holds {kept}"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN; a metric that was undefined at a step is null."""
    return {
        key: None if isinstance(value, float) and value - value != 0 else value for key, value in row.items()
    }
