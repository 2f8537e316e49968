"""Rounds of self-improvement: a model's own beams become preferences, DPO learns them, valid judges.

    accelerate launch -m rl.improve --config configs/dpo/toy_cpu.yaml --model_name_or_path out/toy/model
    --output_dir out/toy/improved --rounds 3
    ... --loss_type s_dpo --negatives '{"beam": 3}' --rewards '{"rule": 1.0, "semantic": 0.5}'

A round makes preferences with the model as it is (OneRec's IPA: what `--rewards` think of its beam, best
against worst; without them the truth against wrong beams), trains on them as rl.train_dpo does and with its
flags, and ranks valid. The model goes into the next round unless NDCG@10 or HR@50 has clearly fallen; then
the rounds end, or go on from the last model that was kept (`when_hurt: retry`), on other prompts.

OUTPUT_DIR/round-1/             a run of rl.train_dpo
          /round-1.preferences/ what it learnt
          /rounds.md, rounds.png   NDCG@10 round by round
          /model/               the last model that was kept
          /acceptance.json      it against the start

`--resume_from_checkpoint true` goes on within a round that was cut off. The rounds share their valid cases:
look at test (serve.evaluate) once, at the end.
"""

import copy
import dataclasses
import gc
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rl.arguments import DPOArguments
from rl.rounds import Round, draw, table
from rl.train_dpo import OWN_DEFAULTS
from sid_builder import cli
from sid_builder.artifact import MANIFEST, hash_inputs, seal, to_json, write_json
from sid_builder.errors import InputError

KIND = "improve"


@dataclass
class ImproveArguments(DPOArguments):
    """What rounds add to the arguments of `rl.train_dpo`."""

    rounds: int = field(default=3, metadata={"help": "rounds at most; a resumed run may ask for more"})
    when_hurt: Literal["stop", "retry"] = field(
        default="stop",
        metadata={
            "help": "after a round that hurt: end, or go on from the last model kept, with other prompts"
        },
    )

    def check(self) -> None:
        super().check()
        if self.rounds < 1:
            raise InputError(f"rounds: {self.rounds}; give at least 1")
        if self.preferences is not None:
            raise InputError(
                f"preferences: {self.preferences}, but every round makes its own; leave it out, or train on "
                "them with rl.train_dpo"
            )
        if self.valid_cases < 1:
            raise InputError("valid_cases: 0 leaves nothing to judge a round by; give some, such as 1000")
        if self.plan:
            raise InputError("plan: rounds cost what rl.train_dpo does, each; plan that with the same flags")


def main(argv: Sequence[str]) -> None:
    own, args = cli.parse(
        ImproveArguments, argv, lazy=["trl:DPOConfig"], own_defaults=OWN_DEFAULTS, description=__doc__
    )
    from accelerate import PartialState

    from rl.dpo_losses import check_losses
    from rl.run import PolicyRun

    output, start = Path(args.output_dir), Path(own.model_name_or_path)
    check_losses(args, own.training)
    _check_output(output, own, args)
    # Looks, and refuses what the first round would; whether rounds choose steps is settled on the way.
    of_first, first_args = _of_round(1, start, own, args)
    first_args.resume_from_checkpoint = None
    first = PolicyRun(of_first, first_args, KIND)
    _begin(output, own, args)
    rounds: list[Round] = []
    model = start
    for number in range(1, own.rounds + 1):
        run = output / f"round-{number}"
        if not (run / MANIFEST).is_file():
            _train_round(number, model, own, args)
        rounds.append(Round.of(number, run))
        if rounds[-1].kept:
            model = run / "model"
        elif own.when_hurt == "stop":
            break
    statement = "no round was kept"
    if model != start:
        statement = _judge(start, model, own, args, bool(first.args.load_best_model_at_end))
    if PartialState().is_main_process:
        _write(output, own, args, rounds, model, statement)
        print(f"{KIND}: {statement}\n{KIND}: wrote {output}; the model is {output / 'model'}")
    PartialState().wait_for_everyone()


def _settings(own: ImproveArguments, args: Any) -> dict[str, Any]:
    from rl.run_settings import settings_of

    settings = settings_of(own, args, Path(own.model_name_or_path))
    del settings["rounds"]  # more of them may be asked for
    return settings


def _check_output(output: Path, own: ImproveArguments, args: Any) -> None:
    """InputError for rounds that were begun with other settings, and for what is in the way."""
    from rl.run_settings import check_settings
    from sft.run import SETTINGS_FILE

    given = str(args.resume_from_checkpoint or "false").lower()
    if given in ("true", "yes", "1"):
        check_settings(_settings(own, args), str(output / "round-1"))
    elif given not in ("false", "no", "0"):
        raise InputError(
            f"resume_from_checkpoint: {args.resume_from_checkpoint!r}, but rounds find their checkpoints "
            "themselves; give true"
        )
    elif output.is_dir() and any(output.iterdir()):
        if not own.overwrite:
            raise InputError(
                f"output_dir: {output} is not empty; pass --resume_from_checkpoint true, --overwrite or "
                "another directory"
            )
        if not (output / SETTINGS_FILE).is_file():
            raise InputError(
                f"output_dir: {output} holds no rounds of sidereal, so --overwrite will not empty it"
            )


def _begin(output: Path, own: ImproveArguments, args: Any) -> None:
    """Ready `output`: old rounds go, resumed ones have no manifest until they are done."""
    from rl.run_settings import write_settings
    from sft.run import begin_run

    resumed = str(args.resume_from_checkpoint or "false").lower() in ("true", "yes", "1")
    begin_run(output, resumed)
    if args.process_index == 0:
        write_settings(_settings(own, args), output)


def _of_round(number: int, model: Path, own: ImproveArguments, args: Any) -> tuple[DPOArguments, Any]:
    """Arguments of rl.train_dpo for a round, which goes on from its newest checkpoint if it has one."""
    run = Path(args.output_dir) / f"round-{number}"
    given = {item.name: getattr(own, item.name) for item in dataclasses.fields(DPOArguments)}
    of_round = copy.copy(args)
    of_round.output_dir, of_round.resume_from_checkpoint = str(run), None
    if any((path / "trainer_state.json").is_file() for path in run.glob("checkpoint-*")):
        of_round.resume_from_checkpoint = "true"
    return DPOArguments(**given | {"model_name_or_path": str(model), "overwrite": True}), of_round


def _train_round(number: int, model: Path, own: ImproveArguments, args: Any) -> None:
    """A run of rl.train_dpo from `model`, gone on with if it was begun."""
    import torch
    from accelerate import PartialState

    from rl.train_dpo import train

    round_own, of_round = _of_round(number, model, own, args)
    PartialState().wait_for_everyone()  # all have seen the same checkpoints
    if PartialState().is_main_process:
        print(f"{KIND}: round {number} of {own.rounds}, from {model}")
    # Every round asks other prompts, if train has more of them than max_prompts.
    train(round_own, of_round, args.seed + number - 1)
    gc.collect()  # trainers hold themselves in cycles, and their models with them
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _judge(start: Path, model: Path, own: ImproveArguments, args: Any, chooses: bool) -> str:
    """The last model that was kept against the start, on the cases that the rounds were judged on."""
    from rl.acceptance import Acceptance
    from serve.decoding.recommender import Recommender

    opened = [Recommender.load(path, device=str(args.device), dtype=own.dtype) for path in (start, model)]
    acceptance = Acceptance.on_valid(opened[0], own.valid_cases, own.eval_num_beams, args.seed, chooses)
    assert acceptance is not None
    for when, policy in zip(("before", "after"), opened, strict=True):
        acceptance.measure(when, policy.model)
    if args.process_index == 0:
        acceptance.write(Path(args.output_dir), None)
    return acceptance.statement()


def _write(
    output: Path, own: ImproveArguments, args: Any, rounds: list[Round], model: Path, statement: str
) -> None:
    """The table, the picture, the model and the manifest."""
    kept = output / "model"
    if kept.exists():
        shutil.rmtree(kept)
    shutil.copytree(model, kept)
    lines = table(rounds)
    (output / "rounds.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(output / "rounds.json", [dataclasses.asdict(done) for done in rounds])
    draw(rounds, output / "rounds.png", f"{KIND} {output.name}")
    print("\n".join(lines))
    seal(
        output,
        KIND,
        1,
        config={"rl": to_json(own), "trl": to_json(cli.changed_fields(args))},
        inputs=hash_inputs({"model": own.model_name_or_path}),
        seeds={"seed": args.seed},
        summary={
            "rounds": len(rounds),
            "kept": [done.number for done in rounds if done.kept],
            "verdict": statement,
        },
        ignore=("round-", "model"),
    )


if __name__ == "__main__":
    cli.run(main)
