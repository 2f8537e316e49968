"""Evaluate model directories beside the floors.

    python -m serve.evaluate --model out/beauty/model --split test
    python -m serve.evaluate --model out/beauty/sids          # the floors alone, before anything is trained
    python -m serve.evaluate --model out/beauty/model --wordings all    # and how much another wording costs

Prints a Markdown table and writes results.json, table.md and metrics.png to `--output_dir`.
"""

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prompts.pack import PromptPack
from serve import DECODERS
from sid_builder import cli
from sid_builder.artifact import (
    artifact_kind,
    check_output,
    code_version,
    hash_inputs,
    open_artifact,
    to_json,
    write_json,
    writing,
)
from sid_builder.errors import InputError
from sid_builder.sid_index import SidIndex

RESULTS_KIND = "evaluation"
SIDS_KIND = "sids"


@dataclass
class EvaluateArguments:
    """What to evaluate and how."""

    model: str = field(
        metadata={
            "help": "model directory, whose interactions and catalogue are the evaluation's; a directory of "
            "sid_builder.build gives the floors alone"
        }
    )
    also: list[str] = field(
        default_factory=list, metadata={"help": "further model directories, compared with the first one"}
    )
    split: Literal["valid", "test"] = field(
        default="test", metadata={"help": "cases to rank; tune on valid, look at test once"}
    )
    num_beams: int = field(default=50, metadata={"help": "beam width; at least 50, the largest K"})
    decoder: str = field(
        default="tree_beam", metadata={"help": "tree_beam, generate (transformers' own) or my.module:decode"}
    )
    score: Literal["full", "trie", "sid"] = field(
        default="full",
        metadata={"help": "log-probs over the full vocabulary, the legal tokens of a step, or SID tokens"},
    )
    constraint: Literal["trie", "none"] = field(
        default="trie", metadata={"help": "none: search freely, to see what the trie buys"}
    )
    exclude_history: Literal["auto", "yes", "no"] = field(
        default="auto",
        metadata={"help": "leave given items out of the list; auto: if the data has no repeats"},
    )
    wordings: Literal["first", "trained", "held_out", "all"] = field(
        default="first",
        metadata={
            "help": "seqrec wordings of each model's prompt pack to rank with; mean, lowest and highest "
            "stand beside the tables of the first"
        },
    )
    max_cases: int = field(default=0, metadata={"help": "rank a sample of this many cases; 0 ranks all"})
    seed: int = field(default=0, metadata={"help": "seed of the sample and of the bootstrap"})
    batch_tokens: int = field(
        default=4096, metadata={"help": "prompt and beam tokens decoded at once; 64k and more on a GPU"}
    )
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, ...; by default a GPU if there is one"}
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "weights' precision; auto: as saved"}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "where results go; by default <model>_<split>_results beside the first model"},
    )
    overwrite: bool = field(default=False, metadata={"help": "replace results that exist already"})

    def check(self) -> None:
        """Refuse what cannot be evaluated before torch is imported."""
        for name, least in (("num_beams", 50), ("batch_tokens", 1), ("max_cases", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)} is too small; give at least {least}")
        if self.decoder not in DECODERS and ":" not in self.decoder:
            raise InputError(
                f"decoder: {self.decoder!r} is not one of {sorted(DECODERS)} or a path my.module:decode"
            )
        if self.wordings != "first" and not self.model_dirs:
            raise InputError(f"wordings: {self.wordings!r}, and floors read none; name a model directory")
        for directory in self.model_dirs:
            open_artifact(directory, "model")
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

    @property
    def output_path(self) -> Path:
        model = Path(self.model)
        default = model.resolve().parent / f"{model.resolve().name}_{self.split}_results"
        return Path(self.output_dir) if self.output_dir else default


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run the command; returns the content of results.json."""
    (arguments,) = cli.parse(EvaluateArguments, argv, description=__doc__)
    results = evaluate(arguments)
    return results


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Rank floors and models over the same cases, write the results artefact and print its tables."""
    from serve.decoding.recommender import Recommender, load_interactions
    from serve.evaluation import floors, report
    from serve.evaluation.model_ranking import rank_targets, sample_cases

    data = Path(arguments.model)
    index, interactions = SidIndex.load(data / "sid_index"), load_interactions(data)
    num_items = index.catalog.num_items
    histories = sample_cases(interactions.histories(arguments.split), arguments.max_cases, arguments.seed)
    if not len(histories):
        raise InputError(
            f"split: {arguments.split!r} has no cases in {arguments.model}/interactions; use the other split"
        )
    exclude = {"auto": not interactions.has_repeats, "yes": True, "no": False}[arguments.exclude_history]
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
        ranked = {
            wording: rank_targets(
                recommender,
                histories,
                num_beams=arguments.num_beams,
                decoder=arguments.decoder,
                score=arguments.score,
                constraint=arguments.constraint,
                exclude_history=exclude,
                batch_tokens=arguments.batch_tokens,
                wording=wording,
            )
            for wording in sorted({0, *asked})
        }
        rows[name] = ranked[0]
        spreads[name] = report.wording_spread(
            recommender.template.pack.templates("seqrec"), {wording: ranked[wording] for wording in asked}
        )
        device = str(recommender.model.device)
    results = {
        **report.summarise(rows, histories.targets_C, interactions.train_counts(num_items), arguments.seed),
        **({"wordings": spreads} if arguments.wordings != "first" else {}),
        "split": arguments.split,
        "exclude_history": exclude,
        "num_items": index.trie.num_live,
        "config": to_json(arguments),
        "code": code_version(),
        "seeds": {"sample_and_bootstrap": arguments.seed},
        "inputs": hash_inputs(inputs),
        "machine": machine(device),
    }
    table = report.markdown(results)
    path = arguments.output_path
    with writing(
        path, RESULTS_KIND, 1, results["config"], inputs, results["seeds"], arguments.overwrite
    ) as artifact:
        write_json(artifact.path / "results.json", results)
        (artifact.path / "table.md").write_text(table, encoding="utf-8")
        report.picture(results, artifact.path / "metrics.png")
        artifact.summary.update({name: row["item"] for name, row in results["rows"].items()})
    print(table)
    print(f"wrote {path}/results.json, table.md, metrics.png")
    return results


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


def machine(device: str) -> dict[str, Any]:
    """What the seconds of a results file were measured on."""
    import torch
    import transformers

    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "gpu": gpu,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    cli.run(main)
