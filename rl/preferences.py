"""Make preferences to train on: of one prompt, an answer to prefer and answers to reject.

    python -m rl.preferences --model out/toy/model --output_dir out/toy/preferences
    --negatives '{"beam": 2, "random": 1}'

Prompts and preferred items are train's; rejected are the model's own best wrong beams, items drawn at random
or by popularity, or what users are known to like less (`feedback`: a log or a rating). With `--rewards` they
judge the model's beam in the truth's place. `rl.train_dpo --preferences OUTPUT_DIR` trains on the result, and
`sample.md` in it is for people to read. Without this command, `rl.train_dpo` makes preferences itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prompts.opening import MODEL_KIND
from rl.preference_options import PREFERENCES_KIND, PreferenceOptions
from sid_builder import cli
from sid_builder.artifact import Artifact, check_output, open_artifact, writing
from sid_builder.errors import InputError
from sid_builder.processes import Processes


@dataclass(kw_only=True)
class PreferenceArguments(PreferenceOptions):
    """Arguments of `rl.preferences`."""

    model: str = field(metadata={"help": "model directory whose users are asked, and whose beams are judged"})
    output_dir: str = field(metadata={"help": "directory of preferences to write"})
    max_prompts: int = field(default=4000, metadata={"help": "cases drawn by seed; all if there are fewer"})
    positions: Literal["all", "last"] = field(
        default="all", metadata={"help": "draw from every train position, or only each user's last"}
    )
    seed: int = field(default=0, metadata={"help": "of all draws"})
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, ...; default: a GPU if there is one"}
    )
    dtype: Literal["auto", "float32", "bfloat16"] = field(
        default="auto", metadata={"help": "weights' dtype; auto: as saved"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace preferences that exist already"})

    def check(self) -> None:
        """Everything that can be known before torch is imported."""
        open_artifact(self.model, MODEL_KIND)
        check_output(Path(self.output_dir), self.overwrite)
        if self.max_prompts < 1:
            raise InputError(f"max_prompts: {self.max_prompts}; give at least 1")
        if Processes.current().world_size > 1:
            raise InputError("num_processes: rl.preferences is one process; start it with python -m")
        self.check_preferences()


def main(argv: Sequence[str]) -> None:
    (args,) = cli.parse(PreferenceArguments, argv, description=__doc__)
    from prompts.opening import open_template
    from rl.preference_files import told
    from serve.decoding.recommender import Recommender

    if args.needs_beam:
        policy = Recommender.load(args.model, args.device, args.dtype)
    else:
        template = open_template(args.model)
        policy = Recommender(None, template.tokenizer, template.index, template, Path(args.model))
    made = make_preferences(
        policy, args, args.max_prompts, args.positions, args.seed, args.output_dir, args.overwrite
    )
    print(f"rl.preferences: wrote {args.output_dir}: {told(made)}")


def make_preferences(
    policy: Any,
    options: PreferenceOptions,
    max_prompts: int,
    positions: str,
    seed: int,
    output_dir: str | Path,
    overwrite: bool = False,
) -> Artifact:
    """Write an artefact of preferences. All processes call this alike, and each makes a share of the sets.

    Args:
        policy: a Recommender; its model may be None where `options.needs_beam` is false.

    Raises:
        InputError: when there is nothing to prefer, and for more negatives than a source has.
    """
    from rl.preference_files import write_sets
    from rl.preference_sets import PreferenceMaker

    processes = Processes.current()
    maker = PreferenceMaker(policy, options, seed)
    cases = maker.cases(max_prompts, positions)
    low, high = processes.share_of(len(cases))
    sets = maker.sets(cases[low:high], progress=processes.is_main)
    if processes.world_size > 1:
        from accelerate.utils import gather_object

        sets = iter(gather_object(list(sets)))
    if processes.is_main:
        inputs = {"model": policy.path}
        if file := options.negative_args.get("feedback", {}).get("file"):
            inputs["feedback"] = file
        with writing(output_dir, PREFERENCES_KIND, 1, options, inputs, {"seed": seed}, overwrite) as artifact:
            artifact.summary["prompts"] = len(cases)
            write_sets(sets, policy.template, artifact)
    processes.wait()
    return open_artifact(output_dir, PREFERENCES_KIND)


if __name__ == "__main__":
    cli.run(main)
