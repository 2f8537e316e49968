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
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rl.arguments import DPOArguments
from rl.train_dpo import OWN_DEFAULTS
from sid_builder import cli
from sid_builder.artifact import MANIFEST, hash_inputs, seal, to_json, write_json
from sid_builder.errors import InputError

KIND = "improve"
GUARDED = ("ndcg@10", "hr@50")  # a round that clearly lowers one of them is not kept
_SHOWN = ("ndcg@10", "hr@10", "hr@50")


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


@dataclass(frozen=True)
class Round:
    """What came of one round.

    Attributes:
        before, after: means of `_SHOWN` on the valid cases of the verdict.
        interval: 95 % of the NDCG@10 difference, paired.
        kept: whether its model goes on.
    """

    number: int
    sets: int
    before: dict[str, float]
    after: dict[str, float]
    interval: tuple[float, float]
    verdict: str
    kept: bool

    @staticmethod
    def of(number: int, run: Path) -> "Round":
        """Read from a finished run and the preferences beside it."""
        acceptance = json.loads((run / "acceptance.json").read_text(encoding="utf-8"))
        made = json.loads((Path(f"{run}.preferences") / MANIFEST).read_text(encoding="utf-8"))
        differences = acceptance["differences"]
        low, high = differences["ndcg@10"]["interval_95"]
        return Round(
            number,
            made["summary"]["sets"],
            *({name: differences[name][when] for name in _SHOWN} for when in ("before", "after")),
            (low, high),
            acceptance["verdict"],
            all(differences[name]["interval_95"][1] >= 0 for name in GUARDED),
        )


def main(argv: Sequence[str]) -> None:
    own, args = cli.parse(
        ImproveArguments, argv, lazy=["trl:DPOConfig"], own_defaults=OWN_DEFAULTS, description=__doc__
    )
    from accelerate import PartialState

    output, start = Path(args.output_dir), Path(own.model_name_or_path)
    _begin(output, own, args)
    rounds: list[Round] = []
    model = start
    for number in range(1, own.rounds + 1):
        run = output / f"round-{number}"
        if not (run / MANIFEST).is_file():
            _train_round(number, model, run, own, args)
        rounds.append(Round.of(number, run))
        if rounds[-1].kept:
            model = run / "model"
        elif own.when_hurt == "stop":
            break
    statement = _judge(start, model, output, own, args) if model != start else "no round was kept"
    if PartialState().is_main_process:
        _write(output, own, args, rounds, model, statement)
        print(f"{KIND}: {statement}\n{KIND}: wrote {output}; the model is {output / 'model'}")
    PartialState().wait_for_everyone()


def _begin(output: Path, own: ImproveArguments, args: Any) -> None:
    """Ready `output` for rounds, or see that those in it were begun with the same settings."""
    from accelerate import PartialState

    from rl.run_settings import check_settings, settings_of, write_settings
    from sft.run import refuse_push

    refuse_push(args)
    settings = settings_of(own, args, Path(own.model_name_or_path))
    del settings["rounds"]
    given = args.resume_from_checkpoint
    if given is not None and str(given).lower() not in ("false", "no", "0"):
        if str(given).lower() not in ("true", "yes", "1"):
            raise InputError(f"resume_from_checkpoint: {given!r}; rounds find their checkpoints; give true")
        check_settings(settings, str(output / "round-1"))
    elif output.is_dir() and any(output.iterdir()):
        if not own.overwrite:
            raise InputError(
                f"output_dir: {output} is not empty; pass --resume_from_checkpoint true, --overwrite or "
                "another directory"
            )
        if not (output / "settings.json").is_file():
            raise InputError(
                f"output_dir: {output} holds no rounds of sidereal, so --overwrite will not empty it"
            )
        if PartialState().is_main_process:
            shutil.rmtree(output)
    if PartialState().is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        (output / MANIFEST).unlink(missing_ok=True)
        write_settings(settings, output)
    PartialState().wait_for_everyone()


def _train_round(number: int, model: Path, run: Path, own: ImproveArguments, args: Any) -> None:
    """A run of rl.train_dpo from `model`, gone on with if it was begun."""
    import torch
    from accelerate import PartialState

    from rl.train_dpo import train

    begun = any((path / "trainer_state.json").is_file() for path in run.glob("checkpoint-*"))
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        print(f"{KIND}: round {number} of {own.rounds}, from {model}")
        if run.exists() and not begun:
            shutil.rmtree(run)
    PartialState().wait_for_everyone()
    of_round = copy.copy(args)
    of_round.output_dir, of_round.resume_from_checkpoint = str(run), "true" if begun else None
    # Every round asks other prompts, if train has more of them than max_prompts.
    given = {item.name: getattr(own, item.name) for item in dataclasses.fields(DPOArguments)}
    train(DPOArguments(**given | {"model_name_or_path": str(model)}), of_round, args.seed + number - 1)
    gc.collect()  # trainers hold themselves in cycles, and their models with them
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _judge(start: Path, model: Path, output: Path, own: ImproveArguments, args: Any) -> str:
    """The last model that was kept against the start, on the cases that no step was chosen on."""
    from rl.acceptance import Acceptance
    from serve.decoding.recommender import Recommender

    opened = [Recommender.load(path, device=str(args.device), dtype=own.dtype) for path in (start, model)]
    acceptance = Acceptance.on_valid(opened[0], own.valid_cases, own.eval_num_beams, args.seed, chooses=True)
    assert acceptance is not None
    for when, policy in zip(("before", "after"), opened, strict=True):
        acceptance.measure(when, policy.model)
    if args.process_index == 0:
        acceptance.write(output, None)
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


def table(rounds: Sequence[Round]) -> list[str]:
    """Lines of a Markdown table: the start, then what every round made of what it was given."""
    names = " | ".join(name.upper() for name in _SHOWN)
    first = " | ".join(f"{rounds[0].before[name]:.4f}" for name in _SHOWN)
    lines = [
        f"| round | sets | {names} | NDCG@10 difference, 95 % | verdict | kept |",
        "|---|---|" + "---|" * len(_SHOWN) + "---|---|---|",
        f"| start | | {first} | | | |",
    ]
    for done in rounds:
        values = " | ".join(f"{done.after[name]:.4f}" for name in _SHOWN)
        low, high = done.interval
        change = f"{done.after['ndcg@10'] - done.before['ndcg@10']:+.4f} ({low:+.4f} .. {high:+.4f})"
        lines.append(
            f"| {done.number} | {done.sets:,} | {values} | {change} | {done.verdict} | "
            f"{'yes' if done.kept else 'no'} |"
        )
    return lines


def draw(rounds: Sequence[Round], path: Path, title: str) -> None:
    """NDCG@10 after every round as PNG: a line through the models that were kept, crosses for the others."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    kept = [(0, rounds[0].before["ndcg@10"])]
    kept += [(done.number, done.after["ndcg@10"]) for done in rounds if done.kept]
    axis.plot(*zip(*kept, strict=True), marker="o", color="#2a6f97", label="kept")
    hurt = [(done.number, done.after["ndcg@10"]) for done in rounds if not done.kept]
    if hurt:
        axis.plot(*zip(*hurt, strict=True), "x", color="#d1495b", label="not kept")
    for done in rounds:  # the paired interval of the difference, around where the round began
        low, high = (done.before["ndcg@10"] + bound for bound in done.interval)
        axis.plot([done.number, done.number], [low, high], color="#7a7a7a", linewidth=1)
    axis.set_xticks(range(len(rounds) + 1), ["start", *(str(done.number) for done in rounds)])
    axis.set_xlabel("round", fontsize=9)
    axis.set_ylabel("valid NDCG@10", fontsize=9)
    axis.set_title(f"{title}: 95 % intervals of each round's difference", fontsize=10)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    cli.run(main)
