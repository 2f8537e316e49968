"""A training run and its directory: what sft.train and sft.refresh share.

OUTPUT_DIR/base/            LoRA: the extended base before training, a model directory of its own
          /checkpoint-*/    Trainer's; the newest, and the best on valid
          /trained/         adapters, or all weights with everything a model directory holds
          /rows.json        what the training rows were made from: a resumed run must agree
          /log_history.json, curves.png, manifest.json (last)
OUTPUT_DIR.rows/            the training rows (see sft.shards), until the run is finished: they may be large,
                            and can be made again
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prompts.template import PromptTemplate
from sft.arguments import SftArguments
from sft.model_card import base_model_of
from sid_builder import cli
from sid_builder.artifact import MANIFEST, Artifact, code_version, hash_inputs, seal, to_json, write_json
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.processes import Processes

KIND = "sft"
ROWS_FILE = "rows.json"
SETTINGS_FILE = "settings.json"  # of rl's runs (rl/run_settings.py)
# What is ours where TRL's own default is another.
OWN_DEFAULTS = {
    "max_length": None,
    "remove_unused_columns": False,
    "gradient_checkpointing": False,
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": None,  # left open: sft.valid_ranking settles it
}


class Run:
    """From checked flags to a sealed directory. Making one only looks: files change once `rows` and
    `train` begin.

    Raises:
        InputError: for flags that contradict each other, and an output directory that is in the way.
    """

    def __init__(self, args: SftArguments, config: Any, command: str) -> None:
        """Args: `config` is TRL's; `command` signs what is printed and written."""
        from sft.curves import check_report_to
        from sft.launch import check_launch
        from sft.valid_ranking import schedule_evaluation
        from sft.warmup import check_warmup

        self.args, self.config, self.command = args, config, command
        self.directory = Path(config.output_dir)
        self.rows_dir = Path(f"{self.directory}.rows")
        refuse_push(config)
        check_launch(args, config)
        check_report_to(config)
        check_warmup(args, config)
        schedule_evaluation(config, args.valid_cases, args.patience)
        self.resume = prepare_output(self.directory, KIND, config.resume_from_checkpoint, args.overwrite)

    def rows(self, context: Any, task_weights: Mapping[str, float], inputs: Mapping[str, str | Path]) -> Any:
        """`sft.shards.training_rows` of this run, made by all its processes; says how many there are."""
        from sft.launch import check_batches
        from sft.shards import describe, training_rows

        old_run = Path(self.resume).parent if isinstance(self.resume, str) else self.directory
        rows = training_rows(
            context,
            task_weights,
            self.config.seed,
            self.rows_dir,
            inputs,
            begun=old_run / ROWS_FILE if self.resume else None,
            workers=self.config.dataset_num_proc or 1,
        )
        if Processes.current().is_main:
            print(f"{self.command}: {describe(rows)}")
        check_batches(self.config, len(rows))
        return rows

    def train(
        self,
        model: Any,
        template: PromptTemplate,
        sid_token_ids: list[int],
        rows: Any,
        interactions: Interactions,
    ) -> Any:
        """Train, and write `trained/`; returns the trainer, whose model has the weights that were kept.

        Args:
            rows: from `rows`.
            interactions: whose valid cases are ranked meanwhile; the model directories carry them along.
        """
        from accelerate import PartialState
        from transformers import EarlyStoppingCallback

        from sft.adapters import lora_config
        from sft.model_directory import save_parts, write_model_directory
        from sft.start import quantised
        from sft.trainer import SidTrainer
        from sft.warmup import RowWarmup

        args, config, base = self.args, self.config, self.directory / "base"
        tokenizer, pack, index = template.tokenizer, template.pack, template.index
        begin_run(self.directory, self.resume)
        trained = self.directory / "trained"
        if PartialState().is_main_process:
            shutil.copy(self.rows_dir / ROWS_FILE, self.directory)
            if trained.exists():  # of a run that was killed at its very end
                shutil.rmtree(trained)
            if args.training == "lora" and not base.exists():
                write_model_directory(base, model, tokenizer, pack, index, interactions)
        PartialState().wait_for_everyone()
        peft_config = None
        if args.training == "lora":
            if args.load_in_4bit:
                model = quantised(base, args.dtype)
            # The adapter points at the extended base beside it, or PEFT would store whole embeddings in every
            # checkpoint.
            model.config._name_or_path = str(base)
            model.name_or_path = str(base)
            peft_config = lora_config(args, model, sid_token_ids)
        config.dataset_kwargs = {**(config.dataset_kwargs or {}), "skip_prepare_dataset": True}
        trainer = SidTrainer(
            model, config, rows, tokenizer, template, interactions, args.valid_cases, peft_config, args.layout
        )
        if args.new_tokens.warmup_steps:
            trainer.add_callback(RowWarmup(sid_token_ids, args.new_tokens.warmup_steps))
        if args.patience:
            trainer.add_callback(EarlyStoppingCallback(args.patience))
        trainer.train(resume_from_checkpoint=self.resume)
        trainer.save_model(str(trained))
        if args.training == "full" and trainer.is_world_process_zero():
            save_parts(trained, tokenizer, pack, index, interactions)
        return trainer

    def seal(
        self,
        trainer: Any,
        config: Mapping[str, Any],
        sids: Artifact,
        inputs: Mapping[str, str | Path],
        summary: Mapping[str, Any],
    ) -> None:
        """Write curves, history and the manifest; says what came out. Nothing to do but on process 0."""
        if not trainer.is_world_process_zero():
            return
        from sft.curves import plot_history

        state, outcome = trainer.state, trainer.outcome()
        write_json(self.directory / "log_history.json", state.log_history)
        plot_history(
            state.log_history,
            self.directory / "curves.png",
            title=f"{self.command} {self.directory.name}",
            best_step=outcome and outcome["best_step"],
        )
        built = sids.config or {}
        seal(
            self.directory,
            KIND,
            1,
            config={**config, "trl": to_json(cli.changed_fields(self.config))},
            inputs=hash_inputs({"sids": sids.path, **inputs}),
            seeds={"seed": self.config.seed},
            summary={
                "steps": state.global_step,
                "training": self.args.training,
                "valid": outcome,
                "sids": {key: built[key] for key in ("source", "embedder", "quantizer") if key in built},
                "base_model": base_model_of(self.args.model_name_or_path),
                **summary,
            },
            ignore=("checkpoint-", "runs"),
        )
        shutil.rmtree(self.rows_dir)
        if outcome:
            print(
                f"{self.command}: best valid {str(outcome['metric']).upper()} {outcome['best']:.4f} at step "
                f"{outcome['best_step']} of {state.global_step}; trained/ holds step {outcome['kept_step']}"
            )
        print(
            f"{self.command}: wrote {self.directory}; "
            f"next: python -m sft.merge --adapter {self.directory} --output_dir MODEL_DIR"
        )


def refuse_push(config: Any) -> None:
    """TRL's own upload would send the whole run directory, people's interactions with it.

    Raises:
        InputError: for TRL's `push_to_hub` and `hub_token`.
    """
    if config.push_to_hub:
        raise InputError(
            "push_to_hub: a run directory holds people's interactions, which would be uploaded; publish the "
            "merged model: python -m sft.merge --adapter RUN --output_dir MODEL --push_to_hub USER/REPO"
        )
    if config.hub_token is not None:
        raise InputError(
            "hub_token: would be kept in manifests; leave it out, and log in with `hf auth login` or HF_TOKEN"
        )


def prepare_output(output_dir: Path, kind: str, resume: str | None, overwrite: bool) -> bool | str:
    """Decide between a fresh run and a resumed one; returns what `Trainer.train(resume_from_checkpoint=...)`
    takes.

    Looks only: `begin_run` removes what is in the way, once nothing is left that may be refused.

    Raises:
        InputError: when the directory holds a finished or begun run and neither resuming nor overwriting was
        asked for.
    """
    code_version()  # remembered now: the manifest names the code that ran, however long the run takes
    wants_resume = resume is not None and str(resume).lower() not in ("false", "no", "0")
    if wants_resume:
        if str(resume).lower() in ("true", "yes", "1"):
            complete = [path for path in output_dir.glob("checkpoint-*") if _is_complete(path)]
            if not complete:
                raise InputError(
                    f"resume_from_checkpoint: {output_dir} holds no checkpoint-* written to its end; start "
                    "without this flag"
                )
            return str(max(complete, key=lambda path: int(path.name.partition("-")[2])))
        if not _is_complete(Path(str(resume))):
            raise InputError(
                f"resume_from_checkpoint: {resume!r} is no checkpoint that was written to its end; give true "
                "or a checkpoint's path"
            )
        return str(resume)
    if output_dir.is_dir() and any(output_dir.iterdir()):
        if not overwrite:
            raise InputError(
                f"output_dir: {output_dir} is not empty; pass --resume_from_checkpoint true, --overwrite "
                "or another directory"
            )
        ours = any((output_dir / name).exists() for name in (MANIFEST, ROWS_FILE, SETTINGS_FILE, "base"))
        if not ours and not any(output_dir.glob("checkpoint-*")):
            raise InputError(
                f"output_dir: {output_dir} is no {kind!r} run of sidereal, so --overwrite will not empty it"
            )
    return False


def _is_complete(checkpoint: Path) -> bool:
    """Trainer writes its state last: a checkpoint without it was cut off while being written."""
    return (checkpoint / "trainer_state.json").is_file()


def begin_run(output_dir: Path, resume: bool | str) -> None:
    """Ready `output_dir` for writing: an old run goes, a resumed one has no manifest until it is done."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        if resume:
            (output_dir / MANIFEST).unlink(missing_ok=True)
        elif output_dir.exists():
            shutil.rmtree(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
    PartialState().wait_for_everyone()
