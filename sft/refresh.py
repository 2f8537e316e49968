"""Continue a model on what happened since: new interactions, and items that sid_builder.assign gave SIDs.

    python -m sid_builder.assign --sid_dir out/x/sids --add new_items.jsonl --output_dir out/x/sids_v2
    accelerate launch -m sft.refresh --model out/x/model --sid_dir out/x/sids_v2
    --interactions new_interactions.jsonl --output_dir out/x/refresh
    python -m sft.merge --adapter out/x/refresh --output_dir out/x/model_v2

`--interactions` has the layout of the `jsonl` source: one {"user", "items"} a line, with `timestamps` if the
model's interactions have them. They go behind the known users' sequences, or begin new users', and the whole
is split leave-one-out anew: what was kept for valid and test is learnt where newer ones take its place.
Training mixes the new positions and the new items' texts with a share of the old ones (`replay`).
`report_cases` of the old valid cases are never learnt: they say what was forgotten.

refresh.json, refresh.png and a table compare before and after: old valid cases, new interactions, new items,
titles of new items. `--plan true` says what the run would cost. Every flag of TRL's SFTConfig works as well;
resuming is that of sft.train. Our learning rate is 1e-4 for adapters and 1e-5 for all weights, behind a
warm-up of a tenth of the steps: the model goes on from where it is.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prompts.opening import MODEL_KIND
from prompts.pack import PromptPack
from prompts.template import PACK_FILE, PromptTemplate
from sft.arguments import SftArguments, TrainingOptions
from sft.examples import Positions, TaskContext
from sft.launch import sharded_by
from sft.run import OWN_DEFAULTS, Run
from sid_builder import cli
from sid_builder.artifact import open_artifact, to_json
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.new_interactions import JoinedInteractions, join_interactions
from sid_builder.sid_index import SidIndex

if TYPE_CHECKING:
    from sft.plan_report import Plan
    from sft.refresh_report import Questions


@dataclass(kw_only=True)
class NewData:
    """What `sft.refresh` goes on from, and what it learns."""

    model: str = field(metadata={"help": "model directory to continue (sft.merge or rl wrote it)"})
    sid_dir: str = field(
        metadata={"help": "the version of its SIDs to go on with: its own, or one of sid_builder.assign"}
    )
    interactions: str = field(metadata={"help": "new interactions, JSON lines (see above), plain or gzip"})
    task_weights: dict[str, float] | None = field(
        default=None,
        metadata={"help": "passes over each task's new data; default: seqrec, title2sid and sid2title once"},
    )
    replay: float = field(
        default=0.5, metadata={"help": "share of the old sequences and items that are learnt again, 0..1"}
    )


@dataclass(kw_only=True)
class RefreshArguments(TrainingOptions, NewData):  # in --help, the flags of the last base come first
    """What sidereal adds to TRL's SFTConfig."""

    valid_cases: int = field(
        default=1000,
        metadata={
            "help": "valid cases of the new split ranked while training, which choose the step; 0: none"
        },
    )
    report_cases: int = field(
        default=2000, metadata={"help": "cases of each kind asked before and after; 0: nothing is compared"}
    )

    def lazy_defaults(self) -> dict[str, Any]:
        """A rate to go on with, below that of a first training."""
        rate = 1e-4 if self.training == "lora" else 1e-5
        return {"learning_rate": rate, "warmup_steps": 0.1, **super().lazy_defaults()}

    def check(self) -> None:
        """Everything that can be known before torch is imported."""
        open_artifact(self.model, MODEL_KIND)
        if not Path(self.interactions).is_file():
            raise InputError(f"interactions: {self.interactions!r} is no file; check the path")
        if not 0 <= self.replay <= 1:
            raise InputError(f"replay: {self.replay}; give a share between 0 and 1")
        if self.report_cases < 0:
            raise InputError(f"report_cases: {self.report_cases}; give 0 (no comparison) or more")
        self.as_sft().check()

    def as_sft(self) -> SftArguments:
        """The same as a training of the model's own prompts."""
        shared = {item.name for item in dataclasses.fields(self)} & {
            item.name for item in dataclasses.fields(SftArguments)
        }
        return SftArguments(
            model_name_or_path=self.model,
            prompt_pack=str(Path(self.model) / PACK_FILE),
            **{name: getattr(self, name) for name in shared},
        )


def main(argv: Sequence[str]) -> None:
    own, config = cli.parse(
        RefreshArguments, argv, lazy=["trl:SFTConfig"], own_defaults=OWN_DEFAULTS, description=__doc__
    )
    args = own.as_sft()
    old_model, sids = open_artifact(own.model, MODEL_KIND), open_artifact(own.sid_dir, "sids")
    pack = PromptPack.load(args.prompt_pack)
    if own.plan:
        _plan(own, config, pack).show()
        return
    run = Run(args, config, "sft.refresh")

    from accelerate import PartialState

    from sft.refresh_report import compare, table, write
    from sft.start import start_model

    if own.report_cases and (sharded := sharded_by()):
        raise InputError(
            f"report_cases: {own.report_cases} cannot be asked under {sharded}, where no process holds whole "
            "weights; set it to 0, or use configs/accelerate/ddp.yaml"
        )
    news = _News.read(own)
    model, _, template, sid_token_ids = start_model(args, pack, news.index, config.seed)
    questions = news.questions(template, own.report_cases, config.seed) if own.report_cases else None
    context = news.context(template, args.layout.positions, questions, own.replay)
    inputs = {"model": old_model.path, "interactions": own.interactions}
    rows = run.rows(context, args.task_weights, {"sids": sids.path, **inputs})
    before = questions and questions.ask(model.to(config.device))
    trainer = run.train(model, template, sid_token_ids, rows, news.joined.whole)
    summary = {
        "rows": len(rows),
        "new_interactions": news.joined.num_new,
        "new_users": news.joined.whole.num_sequences - news.old.num_sequences,
        "new_items": news.index.catalog.num_items - news.old_index.catalog.num_items,
    }
    if questions:
        after = questions.ask(trainer.accelerator.unwrap_model(trainer.model))
        report = compare(before, after)
        summary["refreshed"] = report["statement"]
        if trainer.is_world_process_zero():
            write(summary | report, run.directory)
            print(f"{table(report)}\n{report['statement']}")
    run.seal(trainer, {"refresh": to_json(own)}, sids, inputs, summary)
    PartialState().wait_for_everyone()


def _plan(own: RefreshArguments, config: Any, pack: PromptPack) -> "Plan":
    """The same run as `sft.plan` sees it."""
    from sft.plan import plan_training

    args, news = own.as_sft(), _News.read(own)

    def prepare(template: PromptTemplate) -> tuple[TaskContext, int]:
        questions = news.questions(template, own.report_cases, config.seed) if own.report_cases else None
        context = news.context(template, args.layout.positions, questions, own.replay)
        return context, 2 * questions.num_cases if questions else 0

    whole = news.joined.whole
    return plan_training(
        "sft.refresh", args, config, pack, news.index, whole, prepare, report_cases=own.report_cases
    )


@dataclass(frozen=True)
class _News:
    """The model's data and the new data, checked against each other."""

    old_index: SidIndex
    index: SidIndex
    old: Interactions
    joined: JoinedInteractions

    @staticmethod
    def read(own: RefreshArguments) -> "_News":
        from serve.decoding.recommender import load_interactions

        old_index = SidIndex.load(Path(own.model) / "sid_index")
        index = SidIndex.load(Path(own.sid_dir) / "sid_index")
        check_descends(old_index, index, own.sid_dir)
        old = load_interactions(Path(own.model))
        joined = join_interactions(old, Path(own.interactions), index.catalog)
        index = dataclasses.replace(
            index, train_counts_N=joined.whole.train_counts(index.catalog.num_items), stored_trie=None
        )
        return _News(old_index, index, old, joined)

    def context(
        self, template: PromptTemplate, positions: Positions, questions: "Questions | None", replay: float
    ) -> TaskContext:
        """What is learnt; never the old valid cases that are asked before and after."""
        from sft.refresh_rows import RefreshContext

        learnt_S = np.zeros(self.joined.whole.num_sequences, dtype=np.int64)
        learnt_S[: self.old.num_sequences] = self.old.train_hi_S
        held_out_S = np.zeros(len(learnt_S), dtype=bool)
        if questions:
            held_out_S[questions.kept.sequence_C] = True
        return RefreshContext(
            self.index,
            self.joined.whole,
            template,
            None,
            positions,
            learnt_S=learnt_S,
            held_out_S=held_out_S,
            num_old_items=self.old_index.catalog.num_items,
            replay=replay,
        )

    def questions(self, template: PromptTemplate, num_cases: int, seed: int) -> "Questions":
        """At most `num_cases` of each kind, drawn by seed among those a decoder can get right."""
        from serve.evaluation.model_ranking import sample_cases
        from sft.refresh_report import Questions

        index, num_old = self.index, self.old_index.catalog.num_items
        new = index.reachable(self.joined.new_cases("valid"))
        items = num_old + np.flatnonzero(index.live_N[num_old:])
        if len(items) > num_cases:
            items = np.sort(np.random.default_rng(seed).choice(items, num_cases, replace=False))
        return Questions(
            old_template=PromptTemplate(template.pack, template.tokenizer, self.old_index),
            template=template,
            kept=sample_cases(self.old_index.reachable(self.old.histories("valid")), num_cases, seed),
            new=sample_cases(new, num_cases, seed),
            new_items=sample_cases(new.take(np.flatnonzero(new.targets_C >= num_old)), num_cases, seed),
            items=items,
        )


def check_descends(old: SidIndex, new: SidIndex, sid_dir: str) -> None:
    """Old items must have their rows and SIDs in the new index: a model's words would mean other items.

    Raises:
        InputError: naming the first difference.
    """
    fault = None
    theirs, ours = new.semantic_ids, old.semantic_ids
    num_old, old_ids, new_ids = old.catalog.num_items, old.catalog.item_ids, new.catalog.item_ids
    if theirs.level_sizes != ours.level_sizes:
        fault = f"its levels are {list(theirs.level_sizes)}, the model's {list(ours.level_sizes)}"
    elif theirs.pattern != ours.pattern:
        fault = f"its tokens are spelled {theirs.pattern!r}, the model's {ours.pattern!r}"
    elif len(new_ids) < num_old:
        fault = f"it has {len(new_ids)} items, the model's has {num_old}"
    elif new_ids[:num_old] != old_ids:
        row = next(row for row in range(num_old) if new_ids[row] != old_ids[row])
        fault = f"row {row} is item {new_ids[row]!r} in it, {old_ids[row]!r} in the model's"
    elif not np.array_equal(theirs.codes_NL[:num_old], ours.codes_NL):
        row = int(np.argmax((theirs.codes_NL[:num_old] != ours.codes_NL).any(axis=1)))
        fault = f"item {old_ids[row]!r} is {theirs.spell(row)} in it, {ours.spell(row)} in the model's"
    if fault:
        raise InputError(
            f"sid_dir: {sid_dir} is no version of the model's index ({fault}): for it, the model is a "
            "checkpoint from another index; give what sid_builder.assign made from the model's"
        )


if __name__ == "__main__":
    cli.run(main)
