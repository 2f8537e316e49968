"""Build semantic IDs: source -> item texts -> embeddings -> codes -> repair -> quality report, in one
artefact.

    python -m sid_builder.build --config configs/sid/toy_rq_kmeans.yaml --output_dir out/toy/sids

The artefact (kind "sids") holds `sid_index/`, `interactions/`, `report.json`, `report.png` and, when the SIDs
were made here, `embeddings.npy` and `quantizer/`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sid_builder import EMBEDDERS, QUANTIZERS, SOURCES, cli
from sid_builder.artifact import check_output, to_json, write_json, writing
from sid_builder.errors import InputError
from sid_builder.item_text import DEFAULT_TEMPLATE, check_template
from sid_builder.registry import options_class, resolve
from sid_builder.repair import check_policy, repair_codes
from sid_builder.semantic_ids import DEFAULT_PATTERN, SemanticIds
from sid_builder.sid_index import SidIndex
from sid_builder.sources import SourceData

KIND = "sids"
GIVEN = "given"


@dataclass
class BuildArguments:
    """Arguments of `python -m sid_builder.build`."""

    source: str = field(
        metadata={"help": f"Where the data comes from: one of {sorted(SOURCES)} or my.module:load."}
    )
    output_dir: str = field(metadata={"help": "Directory to write the artefact to."})
    data_path: str | None = field(
        default=None, metadata={"help": "Directory or file a source reads (its `path`)."}
    )
    source_args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of the source, a mapping."}
    )
    text_template: str = field(
        default=DEFAULT_TEMPLATE,
        metadata={"help": "An item's text over catalogue columns; a [part] goes when its field is empty."},
    )
    embedder: str | None = field(
        default=None,
        metadata={
            "help": f"One of {sorted(EMBEDDERS)} or my.module:Thing; none: only with quantizer {GIVEN}."
        },
    )
    embedder_args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of the embedder, a mapping."}
    )
    quantizer: str = field(
        default="rq_kmeans",
        metadata={
            "help": f"One of {sorted(QUANTIZERS)}, my.module:Thing, or {GIVEN!r}: the source's own SIDs."
        },
    )
    quantizer_args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of the quantizer, a mapping."}
    )
    repair: str = field(
        default="none", metadata={"help": "What to do about shared SIDs: none or last_level_assign."}
    )
    token_pattern: str = field(
        default=DEFAULT_PATTERN, metadata={"help": "Spelling of a token; needs {letter} (level) and {code}."}
    )
    max_collision_rate: float | None = field(
        default=None, metadata={"help": "Fail the build when 1 - distinct SIDs / items is above this."}
    )
    seed: int = field(
        default=0, metadata={"help": "Seed of embedder and quantizer (a generated source has its own)."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace an artefact that is already at output_dir."}
    )

    def check(self) -> None:
        """Everything that can be known before work starts; InputError names the field."""
        check_output(Path(self.output_dir), self.overwrite)
        self.parsed_source_args()
        check_template(self.text_template)
        check_policy(self.repair)
        SemanticIds(np.zeros((1, 1), dtype=np.int32), (1,), self.token_pattern)
        if self.max_collision_rate is not None and not 0 <= self.max_collision_rate <= 1:
            raise InputError(f"max_collision_rate: {self.max_collision_rate} is outside 0..1")
        if self.quantizer == GIVEN:
            if self.repair != "none" or self.quantizer_args:
                raise InputError(
                    f"quantizer: {GIVEN!r} takes the SIDs as they are; use repair: none and no quantizer_args"
                )
        elif self.embedder is None:
            raise InputError(
                f"embedder: is not set, but quantizer {self.quantizer!r} needs one; "
                f"use one of {sorted(EMBEDDERS)}"
            )
        else:
            self.made_quantizer()
        if self.embedder is None and self.embedder_args:
            raise InputError(
                f"embedder_args: {self.embedder_args} have no effect without an embedder; "
                "set embedder or drop them"
            )
        self.made_embedder()

    def parsed_source_args(self) -> Any:
        options = options_class(resolve(SOURCES, self.source, "source"))
        values = dict(self.source_args)
        needs_path = "path" in {item.name for item in dataclasses.fields(options)}
        if self.data_path is not None:
            if not needs_path or "path" in values:
                fix = "drop it" if not needs_path else "drop source_args.path"
                raise InputError(
                    f"data_path: {self.data_path} has no effect on source {self.source!r}; {fix}"
                )
            values["path"] = self.data_path
        if needs_path:
            if "path" not in values:
                raise InputError(
                    f"data_path: is not set, but source {self.source!r} reads files; give --data_path PATH"
                )
            if not Path(str(values["path"])).exists():
                raise InputError(
                    f"data_path: {values['path']} does not exist; give the directory of the data"
                )
        args = cli.build_dataclass(options, values, "source_args")
        if hasattr(args, "check"):
            args.check()
        return args

    def made_embedder(self) -> Any:
        if self.embedder is None:
            return None
        made = resolve(EMBEDDERS, self.embedder, "embedder")
        return made(cli.build_dataclass(options_class(made), self.embedder_args, "embedder_args"), self.seed)

    def made_quantizer(self) -> Any:
        made = resolve(QUANTIZERS, self.quantizer, "quantizer")
        return made(
            cli.build_dataclass(options_class(made), self.quantizer_args, "quantizer_args"), self.seed
        )


def main(argv: Sequence[str]) -> SidIndex:
    """Run the build; nothing is left at `output_dir` unless it ends well.

    Raises:
        InputError: for anything wrong with arguments, data, embeddings or the resulting collision rate.
    """
    (args,) = cli.parse(BuildArguments, argv, description=__doc__)
    with tqdm(total=5, desc="read source", unit="stage") as stages:
        source: SourceData = resolve(SOURCES, args.source, "source")(args.parsed_source_args())
        _next_stage(stages, "embed items")
        embeddings_ND = _embed(args, source)
        _next_stage(stages, "quantize")
        quantizer, first_sids, sids, repair_stats = _quantize(args, source, embeddings_ND)
        _next_stage(stages, "report")
        if args.max_collision_rate is not None and sids.collision_rate > args.max_collision_rate:
            raise InputError(
                f"max_collision_rate: {sids.collision_rate:.4f} of the SIDs collide, above "
                f"{args.max_collision_rate}; raise codes_per_level or use repair: last_level_assign"
            )
        report = _report(args, source, embeddings_ND, quantizer, first_sids, sids, repair_stats)
        _next_stage(stages, "write")
        index = SidIndex(source.catalog, sids, source.interactions.train_counts(source.catalog.num_items))
        _write(args, source, embeddings_ND, quantizer, index, report)
        stages.update()
    _print_summary(args, report)
    return index


def _next_stage(stages: tqdm, name: str) -> None:
    stages.update()
    stages.set_description(name)


def _embed(args: BuildArguments, source: SourceData) -> np.ndarray | None:
    from sid_builder.embedders import ItemData, check_embeddings

    embedder = args.made_embedder()
    if embedder is None:
        return None
    embeddings_ND = embedder.encode(ItemData(source.catalog, source.interactions, args.text_template))
    return check_embeddings(embeddings_ND, source.catalog.num_items, str(args.embedder))


def _quantize(args: BuildArguments, source: SourceData, embeddings_ND: np.ndarray | None) -> tuple:
    """(quantizer or None, SIDs before repair, SIDs, what repair did)."""
    if args.quantizer == GIVEN:
        if source.semantic_ids is None:
            raise InputError(
                f"quantizer: source {args.source!r} brings no SIDs to take over; "
                f"use one of {sorted(QUANTIZERS)}"
            )
        sids = dataclasses.replace(source.semantic_ids, pattern=args.token_pattern)
        return None, sids, sids, repair_codes("none", sids.codes_NL, sids.level_sizes[-1], None)[1]
    assert embeddings_ND is not None
    quantizer = args.made_quantizer()
    quantizer.fit(embeddings_ND)
    codes_NL = quantizer.encode(embeddings_ND)

    def distances(items: np.ndarray) -> np.ndarray:
        return quantizer.last_level_distances(embeddings_ND[items], codes_NL[items])

    repaired_NL, stats = repair_codes(args.repair, codes_NL, quantizer.level_sizes[-1], distances)
    first, sids = (
        SemanticIds(codes, quantizer.level_sizes, args.token_pattern) for codes in (codes_NL, repaired_NL)
    )
    return quantizer, first, sids, stats


def _report(args, source, embeddings_ND, quantizer, first_sids, sids, repair_stats) -> dict[str, Any]:
    from sid_builder.report import quality_report, reconstruction_errors

    report = quality_report(sids, source.interactions)
    report["repair"] = dataclasses.asdict(repair_stats) | {"collision_rate_before": first_sids.collision_rate}
    if quantizer is not None:
        report["reconstruction"] = reconstruction_errors(
            quantizer, embeddings_ND, first_sids.codes_NL, sids.codes_NL
        )
    report["source"] = {"name": args.source} | source.notes
    return to_json(report)


def _write(
    args, source: SourceData, embeddings_ND, quantizer, index: SidIndex, report: dict[str, Any]
) -> None:
    from sid_builder.report_plot import plot_report

    config, inputs = dataclasses.asdict(args), dict[str, str | Path](source.files)
    with writing(args.output_dir, KIND, 1, config, inputs, {"seed": args.seed}, args.overwrite) as artifact:
        index.save(artifact.path / "sid_index")
        (artifact.path / "interactions").mkdir()
        source.interactions.save(artifact.path / "interactions")
        if embeddings_ND is not None:
            np.save(artifact.path / "embeddings.npy", embeddings_ND)
        if quantizer is not None:
            (artifact.path / "quantizer").mkdir()
            quantizer.save(artifact.path / "quantizer")
        write_json(artifact.path / "report.json", report)
        plot_report(report, artifact.path / "report.png")
        artifact.summary.update(report["summary"], source=report["source"])


def _print_summary(args: BuildArguments, report: dict[str, Any]) -> None:
    summary, source = report["summary"], report["source"]
    used = ", ".join(f"{level['used']}/{level['size']}" for level in report["levels"])
    print(
        f"items {source['num_items']}, sequences {source['num_sequences']}, "
        f"interactions {source['num_interactions']}"
    )
    print(f"codes used per level: {used}; example SID {summary['example']}")
    print(
        f"collision rate {summary['collision_rate']:.4f} "
        f"(before repair {report['repair']['collision_rate_before']:.4f}), items that share an SID "
        f"{summary['items_sharing']:.4f}, valid and test targets that do {summary['targets_sharing']:.4f}"
    )
    print(f"wrote {args.output_dir} (sid_index/, interactions/, report.json, report.png)")


if __name__ == "__main__":
    cli.run(main)
