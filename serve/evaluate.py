"""Evaluate model directories beside the floors.

    python -m serve.evaluate --model out/beauty/model --split test
    python -m serve.evaluate --model out/beauty/sids          # the floors alone, before anything is trained
    python -m serve.evaluate --model out/beauty/model --wordings all    # and how much another wording costs
    python -m serve.evaluate --model out/beauty/model --prior    # and what its prior adds (serve.fit_prior)

Prints a Markdown table and writes results.json, table.md and metrics.png to `--output_dir`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from prompts.pack import PromptPack
from serve.decoding.fitted_prior import FOLDER as PRIOR_FOLDER
from serve.decoding.fitted_prior import FittedPrior
from serve.evaluation.options import EvaluationOptions
from sid_builder import cli
from sid_builder.artifact import artifact_kind, check_output, open_artifact
from sid_builder.errors import InputError
from sid_builder.sid_index import SidIndex

RESULTS_KIND = "evaluation"
SIDS_KIND = "sids"


@dataclass(kw_only=True)
class EvaluateArguments(EvaluationOptions):
    """What to evaluate and how."""

    FEWEST_BEAMS = 50
    RESULTS = "results"

    model: str = field(
        metadata={
            "help": "model directory, whose interactions and catalogue are the evaluation's; a directory of "
            "sid_builder.build gives the floors alone"
        }
    )
    also: list[str] = field(
        default_factory=list, metadata={"help": "further model directories, compared with the first one"}
    )
    score: Literal["full", "trie", "sid"] = field(
        default="full",
        metadata={"help": "log-probs over the full vocabulary, the legal tokens of a step, or SID tokens"},
    )
    constraint: Literal["trie", "none"] = field(
        default="trie", metadata={"help": "none: search freely, to see what the trie buys"}
    )
    wordings: Literal["first", "trained", "held_out", "all"] = field(
        default="first",
        metadata={
            "help": "seqrec wordings of each model's prompt pack to rank with; mean, lowest and highest "
            "stand beside the tables of the first"
        },
    )
    prior: bool = field(
        default=False,
        metadata={"help": "another row for each model directory that has a prior: both together"},
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "weights' precision; auto: as saved"}
    )

    def check(self) -> None:
        """Refuse what cannot be evaluated before torch is imported."""
        self.check_options()
        if self.wordings != "first" and not self.model_dirs:
            raise InputError(f"wordings: {self.wordings!r}, and floors read none; name a model directory")
        for directory in self.model_dirs:
            open_artifact(directory, "model")
        if self.prior and not any((path / PRIOR_FOLDER).is_dir() for path in self.model_dirs):
            raise InputError(
                f"prior: no model directory has {PRIOR_FOLDER}/; fit one with python -m serve.fit_prior"
            )
        if self.prior and (self.decoder == "generate" or self.constraint == "none"):
            raise InputError("prior: needs the trie and a decoder that takes one; use 'tree_beam', 'trie'")
        if self.floors_only:
            open_artifact(self.model, SIDS_KIND)
        check_output(self.output_path, self.overwrite)

    @property
    def floors_only(self) -> bool:
        """Whether `model` is a directory of semantic IDs; `also` may name models then as well."""
        return artifact_kind(self.model) == SIDS_KIND

    @property
    def model_dirs(self) -> list[Path]:
        return [Path(path) for path in ([] if self.floors_only else [self.model]) + self.also]


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run the command; returns the content of results.json."""
    (arguments,) = cli.parse(EvaluateArguments, argv, description=__doc__)
    return evaluate(arguments)


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Rank floors and models over the same cases, write the results artefact and print its tables."""
    from serve.decoding.recommender import Recommender, load_interactions
    from serve.evaluation import floors, report
    from serve.evaluation.model_ranking import rank_targets, sample_cases
    from serve.evaluation.results import write_results

    data = Path(arguments.model)
    index, interactions = SidIndex.load(data / "sid_index"), load_interactions(data)
    num_items = index.catalog.num_items
    histories = sample_cases(interactions.histories(arguments.split), arguments.max_cases, arguments.seed)
    if not len(histories):
        raise InputError(
            f"split: {arguments.split!r} has no cases in {arguments.model}/interactions; use the other split"
        )
    exclude = arguments.excludes_history(interactions)
    rows, spreads, names, device = {}, {}, row_names(arguments.model_dirs), "cpu"
    inputs: dict[str, str | Path] = {"data": data, **dict(zip(names, arguments.model_dirs, strict=True))}
    for name, floor in (("popularity", floors.popularity), ("one-hop", floors.one_hop)):
        rows[name] = floors.rank_floor(floor(interactions, num_items), histories, index.trie, exclude)
    for name, directory in zip(names, arguments.model_dirs, strict=True):
        recommender = Recommender.load(directory, arguments.device, arguments.dtype)
        if recommender.index.catalog.item_ids != index.catalog.item_ids:
            raise InputError(
                f"also: {directory} has another catalogue than {arguments.model}; evaluate it on its own"
            )
        asked = chosen_wordings(recommender.template.pack, arguments.wordings)
        rank = partial(
            rank_targets,
            recommender,
            histories,
            num_beams=arguments.num_beams,
            decoder=arguments.decoder,
            score=arguments.score,
            constraint=arguments.constraint,
            exclude_history=exclude,
            batch_tokens=arguments.batch_tokens,
        )
        ranked = {wording: rank(wording=wording) for wording in sorted({0, *asked})}
        rows[name] = ranked[0]
        if arguments.prior and (directory / PRIOR_FOLDER).is_dir():
            rows[f"{name} + prior"] = rank(prior=FittedPrior.open(directory, recommender.index))
            inputs[f"prior of {name}"] = directory / PRIOR_FOLDER
        spreads[name] = report.wording_spread(
            recommender.template.pack.templates("seqrec"), {wording: ranked[wording] for wording in asked}
        )
        device = str(recommender.model.device)
    figures = {
        **report.summarise(rows, histories.targets_C, interactions.train_counts(num_items), arguments.seed),
        **({"wordings": spreads} if arguments.wordings != "first" else {}),
        "split": arguments.split,
        "exclude_history": exclude,
        "num_items": index.trie.num_live,
    }
    return write_results(
        arguments,
        RESULTS_KIND,
        figures,
        inputs=inputs,
        device=device,
        markdown=report.markdown,
        picture=report.picture,
        picture_file="metrics.png",
        summary=lambda results: {name: row["item"] for name, row in results["rows"].items()},
    )


def chosen_wordings(pack: PromptPack, which: str) -> list[int]:
    """Numbers of the seqrec wordings that `--wordings` names.

    Raises:
        InputError: when the pack holds no wording out.
    """
    trained, held_out = pack.wordings("seqrec"), pack.wordings("seqrec", held_out=True)
    if which == "held_out" and not held_out:
        raise InputError(
            "wordings: 'held_out', and the model's prompt pack holds no wording of seqrec out; use 'trained'"
        )
    return {"first": [0], "trained": trained, "held_out": held_out, "all": sorted(trained + held_out)}[which]


def row_names(directories: Sequence[Path]) -> list[str]:
    """Directory names, with as many parents as it takes to tell them apart."""
    if not directories:
        return []
    for depth in range(1, 8):
        names = ["/".join(path.resolve().parts[-depth:]) for path in directories]
        if len(set(names)) == len(names):
            return names
    raise InputError("also: names the same model directory twice; name each once")


if __name__ == "__main__":
    cli.run(main)
