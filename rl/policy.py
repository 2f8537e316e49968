"""The policy: a merged model directory opened for training, and the run directory that a training leaves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.acceptance import Acceptance
from rl.arguments import PolicyArgs
from serve.decoding.recommender import Recommender
from sft.curves import plot_history
from sft.model_card import base_model_of
from sft.model_directory import write_model_directory
from sft.run import begin_run, refuse_push
from sid_builder import cli
from sid_builder.artifact import hash_inputs, seal, to_json, write_json

MODEL_DIR = "model"


def load_policy(own: PolicyArgs, args: Any) -> Recommender:
    """Open the model directory on the trainer's device; fails here when it carries no interactions."""
    refuse_push(args)
    policy = Recommender.load(own.model_name_or_path, device=str(args.device), dtype=own.dtype)
    assert len(policy.interactions.users) == policy.interactions.num_sequences
    for module in policy.model.modules():
        # Rollouts and the reference have no dropout: with it in the update, the policy would differ from both
        # at step 0. TRL's disable_dropout reaches nn.Dropout only. The saved config keeps its value.
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return policy


def train_and_judge(
    trainer: Any,
    start: Recommender,
    own: PolicyArgs,
    args: Any,
    resume: Any,
    kind: str,
    curves: Sequence[str],
) -> str:
    """Rank valid cases, train, rank them again, and write the run directory.

    Writes output_dir/model (adapter merged; a self-contained model directory), acceptance.json,
    log_history.json, curves.png with the log keys `curves`, and the manifest last.

    Returns:
        What to tell the user: the verdict and where things are.
    """
    output, accelerator = Path(args.output_dir), trainer.accelerator
    acceptance = Acceptance.on_valid(start, own.valid_cases, own.eval_num_beams, args.seed)
    if accelerator.is_main_process:
        acceptance.measure("before", accelerator.unwrap_model(trainer.model))
    begin_run(output, resume)
    trainer.train(resume_from_checkpoint=resume)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(trainer.model)
        acceptance.measure("after", model)
        resolved = {"rl": to_json(own), "trl": to_json(cli.changed_fields(args))}
        _write_model(output / MODEL_DIR, model, start, resolved, args.seed, acceptance.statement())
        history = [_finite(row) for row in trainer.state.log_history]
        write_json(output / "log_history.json", history)
        kept = [{key: row[key] for key in ("step", *curves) if row.get(key) is not None} for row in history]
        plot_history(kept, output / "curves.png", title=f"{kind} {output.name}")
        acceptance.write(output)
        seal(
            output,
            kind,
            1,
            config=resolved,
            inputs=hash_inputs({"model": start.path}),
            seeds={"seed": args.seed},
            summary={"steps": trainer.state.global_step, "verdict": acceptance.statement()},
            ignore=("checkpoint-", "runs", MODEL_DIR, "README.md"),
        )
    accelerator.wait_for_everyone()
    return f"{acceptance.statement()}\n{kind}: wrote {output}; the model is {output / MODEL_DIR}"


def _write_model(path: Path, model: Any, start: Recommender, config: Any, seed: int, verdict: str) -> None:
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    write_model_directory(
        path,
        model,
        start.tokenizer,
        start.template.pack,
        start.index,
        start.path / "interactions",
        config=config,
        inputs={"model": start.path},
        seeds={"seed": seed},
        overwrite=True,  # the run directory is ours: a resumed run replaces what it had written
        run={"verdict": verdict, "base_model": base_model_of(str(start.path))},
    )


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN; a metric that was undefined at a step is null."""
    return {
        key: None if isinstance(value, float) and value - value != 0 else value for key, value in row.items()
    }
