"""Build semantic IDs: source -> item texts -> embeddings -> codes -> repair -> quality report, in one
artefact.

    python -m sid_builder.build --config configs/sid/toy_rq_kmeans.yaml --output_dir out/toy/sids
    accelerate launch -m sid_builder.build ...   # embedding and encoding over many GPUs and nodes

The artefact (kind "sids") holds `sid_index/`, `interactions/`, `report.json`, `report.html` and, when the
SIDs were made here, `embeddings.npy` and `quantizer/`. A build that misses one of its thresholds leaves the
report alone, at `<output_dir>.rejected`. Interrupted, it goes on from `.<output_dir>.*.work` when started
again.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sid_builder import QUANTIZERS, REPAIRS, SOURCES, cli
from sid_builder.artifact import to_json, writing
from sid_builder.build_arguments import GIVEN, BuildArguments
from sid_builder.code_distances import CodeDistances
from sid_builder.errors import InputError
from sid_builder.processes import Processes
from sid_builder.quantizers import FitContext, Quantizer
from sid_builder.registry import resolve
from sid_builder.repairs import RepairInput, RepairStats
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex
from sid_builder.sources import SourceData
from sid_builder.thresholds import check_thresholds, failure_message

KIND = "sids"


@dataclass(frozen=True)
class Built:
    """What the stages made; `first_sids` are the SIDs before repair."""

    sids: SemanticIds
    first_sids: SemanticIds
    repair: RepairStats = field(default_factory=lambda: RepairStats("none"))
    quantizer: Quantizer | None = None
    embeddings_ND: np.ndarray | None = None  # float32, perhaps memory-mapped
    notes: dict[str, Any] = field(default_factory=dict)


def main(argv: Sequence[str]) -> SidIndex | None:
    """Run the build; nothing is left at `output_dir` unless it ends well.

    Returns:
        The index; None in all processes of a launch but the main one.

    Raises:
        InputError: for anything wrong with arguments, data or embeddings, and for a missed threshold.
    """
    (args,) = cli.parse(BuildArguments, argv, description=__doc__)
    processes = Processes.current()
    processes.wait()  # everybody has checked output_dir before the first one writes it
    with tqdm(total=5, desc="read source", unit="stage", disable=not processes.is_main) as stages:
        source: SourceData = resolve(SOURCES, args.source, "source")(args.parsed_source_args())
        _next_stage(stages, "embed items")
        embeddings_ND, notes = _embed(args, source)
        _next_stage(stages, "quantize")
        quantized = _quantize(args, source, embeddings_ND, processes)
        if not processes.is_main:
            return None
        _next_stage(stages, "repair and report")
        built = dataclasses.replace(_repair(args, *quantized, embeddings_ND), notes=notes)
        report = _report(args, source, built)
        _next_stage(stages, "write")
        index = SidIndex(
            source.catalog, built.sids, source.interactions.train_counts(source.catalog.num_items)
        )
        _write(args, source, built, index, report)
        stages.update()
    _print_summary(args, report)
    return index


def _next_stage(stages: tqdm, name: str) -> None:
    stages.update()
    stages.set_description(name)


def _embed(args: BuildArguments, source: SourceData) -> tuple[np.ndarray | None, dict[str, Any]]:
    from sid_builder.embedders import ItemData, embed_items

    embedder = args.made_embedder()
    if embedder is None:
        return None, {}
    items = ItemData(source.catalog, source.interactions, args.text_template, args.data_dir, args.work_dir)
    return embed_items(embedder, items, str(args.embedder))


def _quantize(
    args: BuildArguments, source: SourceData, embeddings_ND: np.ndarray | None, processes: Processes
) -> tuple[Quantizer | None, np.ndarray, tuple[int, ...]]:
    """(quantizer, codes, level sizes); every process of a launch has them in the end."""
    if args.quantizer == GIVEN:
        if source.semantic_ids is None:
            raise InputError(
                f"quantizer: source {args.source!r} brings no SIDs to take over; "
                f"use one of {sorted(QUANTIZERS)}"
            )
        return None, source.semantic_ids.codes_NL, source.semantic_ids.level_sizes
    assert embeddings_ND is not None
    context = FitContext(
        source.catalog, source.interactions, np.arange(source.catalog.num_items), args.work_dir
    )
    quantizer = args.made_quantizer()
    quantizer.fit(embeddings_ND, context)
    return quantizer, quantizer.encode(embeddings_ND), quantizer.level_sizes


def _repair(
    args: BuildArguments,
    quantizer: Quantizer | None,
    codes_NL: np.ndarray,
    level_sizes: tuple[int, ...],
    embeddings_ND,
) -> Built:
    distances = None if quantizer is None else CodeDistances(quantizer, embeddings_ND)
    given = RepairInput(codes_NL, level_sizes, distances, args.seed)
    repaired = resolve(REPAIRS, args.repair, "repair")(args.repair_options(), given)
    first, sids = (
        SemanticIds(codes, sizes, args.token_pattern)
        for codes, sizes in ((codes_NL, level_sizes), (repaired.codes_NL, repaired.level_sizes))
    )
    return Built(sids, first, repaired.stats, quantizer, embeddings_ND)


def _report(args: BuildArguments, source: SourceData, built: Built) -> dict[str, Any]:
    """The report; a missed threshold leaves it at `<output_dir>.rejected` and stops the build."""
    from sid_builder.report import quality_report, write_report

    first_NL = built.first_sids.codes_NL
    report = quality_report(
        built.sids, source.interactions, source.catalog, built.embeddings_ND, built.quantizer, first_NL
    )
    report["repair"] = dataclasses.asdict(built.repair) | {
        "collision_rate_before": built.first_sids.collision_rate
    }
    report["source"] = {"name": args.source} | source.notes
    report["embedder"] = {"name": args.embedder} | built.notes
    checks = check_thresholds(report, args.thresholds) if args.thresholds else []
    report["thresholds"] = [dataclasses.asdict(check) for check in checks]
    rejected = Path(args.output_dir + ".rejected")
    shutil.rmtree(rejected, ignore_errors=True)
    message = failure_message(checks, str(rejected / "report.html"))
    if message is not None:
        rejected.mkdir(parents=True)
        write_report(rejected, report, source.catalog, built.sids, built.embeddings_ND, args.report)
        raise InputError(message)
    return to_json(report)


def _write(
    args: BuildArguments, source: SourceData, built: Built, index: SidIndex, report: dict[str, Any]
) -> None:
    from sid_builder.embedding_store import save_matrix
    from sid_builder.report import write_report

    config, inputs = to_json(args), dict[str, str | Path](source.files) | args.embedder_inputs
    with writing(args.output_dir, KIND, 1, config, inputs, {"seed": args.seed}, args.overwrite) as artifact:
        index.save(artifact.path / "sid_index")
        (artifact.path / "interactions").mkdir()
        source.interactions.save(artifact.path / "interactions")
        write_report(artifact.path, report, source.catalog, built.sids, built.embeddings_ND, args.report)
        if built.embeddings_ND is not None:
            save_matrix(built.embeddings_ND, artifact.path / "embeddings.npy", args.work_dir)
        if built.quantizer is not None:
            (artifact.path / "quantizer").mkdir()
            built.quantizer.save(artifact.path / "quantizer")
        artifact.summary.update(report["summary"], source=report["source"])
    shutil.rmtree(args.work_dir, ignore_errors=True)


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
    print(f"wrote {args.output_dir} (sid_index/, interactions/, report.html, report.json)")


if __name__ == "__main__":
    cli.run(main)
