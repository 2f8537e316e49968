"""Build semantic IDs: source -> item texts -> embeddings -> codes -> repair -> quality report, in one
artefact.

    python -m sid_builder.build --config configs/sid/toy_rq_kmeans.yaml --output_dir out/toy/sids
    accelerate launch -m sid_builder.build ...   # embedding and encoding over many GPUs and nodes

The artefact (kind "sids") holds `sid_index/`, `interactions/`, `report.json`, `report.html` and, when the
SIDs were made here, `embeddings.npy` and `quantizer/`. A build that misses one of its thresholds leaves the
report alone, at `<output_dir>.rejected`. Interrupted, it goes on from `.<output_dir>.*.work` when started
again.
"""

import contextlib
import dataclasses
import shutil
import sys
import time
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
from sid_builder.encoding import encode_in_shards, fit_and_share, fit_sample
from sid_builder.errors import InputError
from sid_builder.processes import Processes
from sid_builder.quantizers import FitContext, Quantizer
from sid_builder.registry import resolve
from sid_builder.repairs import RepairInput, RepairStats
from sid_builder.semantic_ids import SemanticIds
from sid_builder.shape import FEWEST_MEASURED, advice, measure_skew, to_report
from sid_builder.sid_index import SidIndex
from sid_builder.sources import SourceData
from sid_builder.thresholds import check_thresholds, failure_message

KIND = "sids"


@dataclass(frozen=True)
class Quantized:
    """Codes int32 [N, L] before repair; no quantizer where they were given."""

    codes_NL: np.ndarray
    level_sizes: tuple[int, ...]
    quantizer: Quantizer | None = None
    shape: dict[str, Any] = field(default_factory=dict)  # levels x codes: used, proposed, why


@dataclass(frozen=True)
class Built:
    """What the stages made; `first_sids` are the SIDs before repair."""

    sids: SemanticIds
    first_sids: SemanticIds
    repair: RepairStats
    quantizer: Quantizer | None
    embeddings_ND: np.ndarray | None  # float32, perhaps memory-mapped


class Stages(contextlib.ExitStack):
    """A bar over the stages of a build, and how long each took."""

    def __init__(self, disable: bool) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self._bar = self.enter_context(tqdm(total=6, unit="stage", disable=disable))
        self._name, self._since = "", time.monotonic()

    def begin(self, name: str) -> None:
        """The stage before ends here."""
        if self._name:
            self.seconds[self._name] = round(time.monotonic() - self._since, 2)
            self._bar.update()
        self._bar.set_description(name)
        self._name, self._since = name, time.monotonic()


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
    with Stages(disable=not processes.is_main) as stages:
        stages.begin("read source")
        source: SourceData = resolve(SOURCES, args.source, "source")(args.parsed_source_args())
        stages.begin("embed")
        embeddings_ND, notes = _embed(args, source)
        stages.begin("quantize")
        quantized = _quantize(args, source, embeddings_ND, processes)
        if not processes.is_main:
            return None
        stages.begin("repair")
        built = _repair(args, quantized, embeddings_ND)
        stages.begin("report")
        report = _report(args, source, built, {"embedder": notes, "shape": quantized.shape})
        stages.begin("write")
        counts_N = source.interactions.train_counts(source.catalog.num_items)
        index = SidIndex(source.catalog, built.sids, counts_N)
        _write(args, source, built, index, report, stages.seconds)
    _print_summary(args, report)
    return index


def _embed(args: BuildArguments, source: SourceData) -> tuple[np.ndarray | None, dict[str, Any]]:
    from sid_builder.embedders import ItemData, embed_items

    embedder = args.made_embedder()
    if embedder is None:
        return None, {}
    items = ItemData(source.catalog, source.interactions, args.text_template, args.data_dir, args.work_dir)
    embeddings_ND, notes = embed_items(embedder, items, str(args.embedder))
    return embeddings_ND, {"name": args.embedder} | notes


def _quantize(
    args: BuildArguments, source: SourceData, embeddings_ND: np.ndarray | None, processes: Processes
) -> Quantized:
    """Every process of a launch has all of it in the end."""
    if args.quantizer == GIVEN:
        if source.semantic_ids is None:
            raise InputError(
                f"quantizer: source {args.source!r} brings no SIDs to take over; "
                f"use one of {sorted(QUANTIZERS)}"
            )
        return Quantized(source.semantic_ids.codes_NL, source.semantic_ids.level_sizes)
    assert embeddings_ND is not None
    quantizer, shape = _shaped_quantizer(args, embeddings_ND)
    rows_M = fit_sample(len(embeddings_ND), embeddings_ND.shape[1], quantizer.level_sizes, args.seed)
    context = FitContext(source.catalog, source.interactions, rows_M, args.work_dir)
    directory = args.work_dir / "quantizer"
    quantizer = fit_and_share(quantizer, embeddings_ND, rows_M, directory, context, processes)
    codes_NL = encode_in_shards(directory, embeddings_ND, args.work_dir / "codes", processes)
    return Quantized(codes_NL, quantizer.level_sizes, quantizer, shape | {"items_fitted_on": len(rows_M)})


def _shaped_quantizer(args: BuildArguments, embeddings_ND: np.ndarray) -> tuple[Quantizer, dict[str, Any]]:
    """The quantizer, `auto` replaced by what the items need, and what the report says about its shape.

    Raises:
        InputError: when there are fewer SIDs than items and no repair that makes more.
    """
    if not args.has_codebook_sizes or len(embeddings_ND) < FEWEST_MEASURED:
        return args.made_quantizer(len(embeddings_ND)), {}
    skew = measure_skew(embeddings_ND, args.seed)
    quantizer = args.made_quantizer(len(embeddings_ND), skew)
    if args.repair != "append_token":  # which makes as many more as it takes
        warning = advice(quantizer.level_sizes, len(embeddings_ND), skew)
        if warning is not None:
            print(f"warning: {warning}", file=sys.stderr)
    return quantizer, to_report(quantizer.level_sizes, len(embeddings_ND), skew)


def _repair(args: BuildArguments, quantized: Quantized, embeddings_ND: np.ndarray | None) -> Built:
    distances = None
    if quantized.quantizer is not None:
        assert embeddings_ND is not None
        distances = CodeDistances(quantized.quantizer, embeddings_ND)
    given = RepairInput(quantized.codes_NL, quantized.level_sizes, distances, args.seed)
    repaired = resolve(REPAIRS, args.repair, "repair")(args.repair_options(), given)
    first = SemanticIds(quantized.codes_NL, quantized.level_sizes, args.token_pattern)
    sids = SemanticIds(repaired.codes_NL, repaired.level_sizes, args.token_pattern)
    return Built(sids, first, repaired.stats, quantized.quantizer, embeddings_ND)


def _report(
    args: BuildArguments, source: SourceData, built: Built, sections: dict[str, Any]
) -> dict[str, Any]:
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
    report |= {name: section for name, section in sections.items() if section}
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
    args: BuildArguments,
    source: SourceData,
    built: Built,
    index: SidIndex,
    report: dict[str, Any],
    seconds: dict[str, float],
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
        artifact.summary.update(report["summary"], source=report["source"], seconds=seconds)
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
