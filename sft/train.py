"""Teach a language model the semantic IDs: supervised fine-tuning with TRL.

    accelerate launch -m sft.train --config configs/sft/toy_qwen3_scratch.yaml --sid_dir out/toy/sids
    --output_dir out/toy/sft accelerate launch -m sft.train --config configs/sft/qwen25_05b_lora.yaml
    --sid_dir out/beauty/sids --output_dir out/beauty/sft

Every flag of TRL's SFTConfig works as well. Our defaults that differ from TRL's: `max_length` null (the
renderer bounds prompts), gradient checkpointing off. `--resume_from_checkpoint true` goes on from the newest
checkpoint. Then `python -m sft.merge --adapter OUTPUT_DIR --output_dir MODEL_DIR` makes the directory that rl
and serve open.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompts.pack import PromptPack
from sft.arguments import SftArguments
from sid_builder import cli
from sid_builder.artifact import MANIFEST, code_version, hash_inputs, open_artifact, seal, to_json, write_json
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex

KIND = "sft"
OWN_DEFAULTS = {
    "max_length": None,
    "remove_unused_columns": False,
    "gradient_checkpointing": False,
    "save_strategy": "epoch",
    "save_total_limit": 1,
}


def main(argv: Sequence[str]) -> None:
    args, config = cli.parse(
        SftArguments, argv, lazy=["trl:SFTConfig"], own_defaults=OWN_DEFAULTS, description=__doc__
    )
    output_dir = Path(config.output_dir)
    sids = open_artifact(args.sid_dir, "sids")
    resume = prepare_output(output_dir, KIND, config.resume_from_checkpoint, args.overwrite)
    index = SidIndex.load(sids.path / "sid_index")
    interactions = Interactions.load(sids.path / "interactions")

    from accelerate import PartialState

    from prompts.intents import Intents
    from sft.adapters import lora_config
    from sft.examples import TaskContext
    from sft.mixture import build_table
    from sft.start import quantised, start_model
    from sft.trainer import SidTrainer

    pack = _pack(args)
    model, tokenizer, template, sid_token_ids = start_model(args, pack, index, config.seed)
    with PartialState().main_process_first():
        learnt = interactions.without_last_train() if args.hold_out_last else interactions
        intents = Intents.load(args.intents, index.catalog) if args.intents else None
        context = TaskContext(index, learnt, template, intents, args.layout.positions)
        table = build_table(context, args.task_weights, config.seed)
        lengths = np.array(table["length"])
        print(f"sft.train: {len(table):,} rows, {lengths.sum():,} tokens a pass, longest {lengths.max()}")
    begin_run(output_dir, resume)
    if PartialState().is_main_process and args.training == "lora":
        _save_base(output_dir, model, tokenizer, pack, index, sids.path / "interactions")
    PartialState().wait_for_everyone()
    peft_config = None
    if args.training == "lora":
        if args.load_in_4bit:
            model = quantised(output_dir / "base", args.dtype)
        # The adapter points at the extended base beside it, or PEFT would store whole embeddings in every
        # checkpoint.
        model.config._name_or_path = str(output_dir / "base")
        model.name_or_path = str(output_dir / "base")
        peft_config = lora_config(args, model, sid_token_ids)
    config.dataset_kwargs = {**(config.dataset_kwargs or {}), "skip_prepare_dataset": True}
    trainer = SidTrainer(
        model, config, table, tokenizer, template, interactions, args.valid_cases, peft_config
    )
    trainer.train(resume_from_checkpoint=resume)

    trained = output_dir / "trained"
    trainer.save_model(str(trained))
    if trainer.is_world_process_zero():
        from sft.curves import plot_history
        from sft.model_directory import save_parts

        if args.training == "full":
            save_parts(trained, tokenizer, pack, index, sids.path / "interactions")
        history = trainer.state.log_history
        write_json(output_dir / "log_history.json", history)
        plot_history(history, output_dir / "curves.png", title=f"sft.train {output_dir.name}")
        resolved = {"sft": to_json(args), "trl": to_json(cli.changed_fields(config))}
        seal(
            output_dir,
            KIND,
            1,
            config=resolved,
            inputs=hash_inputs({"sids": sids.path}),
            seeds={"seed": config.seed},
            summary={"steps": trainer.state.global_step, "rows": len(table), "training": args.training},
            ignore=("checkpoint-", "runs"),
        )
        print(
            f"sft.train: wrote {output_dir}; "
            f"next: python -m sft.merge --adapter {output_dir} --output_dir MODEL_DIR"
        )
    PartialState().wait_for_everyone()


def prepare_output(output_dir: Path, kind: str, resume: str | None, overwrite: bool) -> bool | str:
    """Decide between a fresh run and a resumed one; returns what `Trainer.train(resume_from_checkpoint=...)`
    takes.

    Looks only: `begin_run` removes what is in the way, once nothing is left that may be refused.

    Raises:
        InputError: when the directory holds a finished or begun run and neither resuming nor overwriting was
        asked for.
    """
    code_version()  # remembered now: the manifest names the code that ran, however long the run takes
    checkpoints = sorted(output_dir.glob("checkpoint-*")) if output_dir.is_dir() else []
    wants_resume = resume is not None and str(resume).lower() not in ("false", "no", "0")
    if wants_resume:
        if str(resume).lower() in ("true", "yes", "1"):
            if not checkpoints:
                raise InputError(
                    f"resume_from_checkpoint: {output_dir} holds no checkpoint-*; start without this flag"
                )
            return True
        if not Path(str(resume)).is_dir():
            raise InputError(
                f"resume_from_checkpoint: {resume!r} is no directory; give true or a checkpoint's path"
            )
        return str(resume)
    if output_dir.is_dir() and any(output_dir.iterdir()):
        if not overwrite:
            raise InputError(
                f"output_dir: {output_dir} is not empty; pass --resume_from_checkpoint true, --overwrite "
                "or another directory"
            )
        ours = (output_dir / MANIFEST).is_file() or checkpoints or (output_dir / "base").is_dir()
        if not ours:
            raise InputError(
                f"output_dir: {output_dir} is no {kind!r} run of sidereal, so --overwrite will not empty it"
            )
    return False


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


def _pack(args: SftArguments) -> PromptPack:
    pack = PromptPack.load(args.prompt_pack)
    given = {"max_history": args.max_history, "max_prompt_tokens": args.max_prompt_tokens}
    return dataclasses.replace(pack, **{key: value for key, value in given.items() if value is not None})


def _save_base(
    output_dir: Path, model: Any, tokenizer: Any, pack: PromptPack, index: SidIndex, interactions: Path
) -> None:
    """The extended base, before any training, as a model directory of its own."""
    from sft.model_directory import write_model_directory

    if not (output_dir / "base").exists():
        write_model_directory(output_dir / "base", model, tokenizer, pack, index, interactions)


if __name__ == "__main__":
    cli.run(main)
