"""Put several sets of semantic IDs side by side.

    python -m sid_builder.compare --sid_dirs out/a out/b out/c --output_dir out/compare

Reads what `sid_builder.build` wrote (`report.json` and the manifest), prints a table and, with
`--output_dir`, writes `compare.json` and `compare.html`, one self-contained page.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sid_builder import cli
from sid_builder.artifact import Artifact, check_output, open_artifact, write_json, writing
from sid_builder.errors import InputError
from sid_builder.report.comparison import comparison_page
from sid_builder.report.vectors import CUTOFFS

KIND = "sid_comparison"
Better = Literal["high", "low"] | None


@dataclass
class CompareArguments:
    """Arguments of `python -m sid_builder.compare`."""

    sid_dirs: list[str] = field(
        metadata={
            "help": "Artefacts of sid_builder.build, at least two; the first is what others stand beside."
        }
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Directory for compare.json and compare.html; none: the table only."}
    )
    different_catalogs: bool = field(
        default=False, metadata={"help": "Compare sets over different items as well."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a comparison at output_dir."})

    def check(self) -> None:
        if len({Path(path).resolve() for path in self.sid_dirs}) < max(2, len(self.sid_dirs)):
            raise InputError(f"sid_dirs: {self.sid_dirs}; give two or more different directories")
        if self.output_dir is not None:
            check_output(Path(self.output_dir), self.overwrite)


@dataclass(frozen=True)
class SidSet:
    """One artefact: its name in the comparison, manifest and report."""

    name: str
    artifact: Artifact
    report: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One figure of every set; None where a set has none. `better` says which end is good, if one is."""

    title: str
    values: list[Any]
    format: str = ""  # as in f"{value:...}"
    better: Better = None

    def texts(self) -> list[str]:
        return ["–" if value is None else format(value, self.format) for value in self.values]

    def best(self) -> list[bool]:
        """Which sets have the best value; none when all are alike."""
        known = [value for value in self.values if value is not None]
        if self.better is None or len(set(known)) < 2:
            return [False] * len(self.values)
        top = max(known) if self.better == "high" else min(known)
        return [value == top for value in self.values]


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Compare, print, and write when asked to.

    Raises:
        InputError: for anything that is no complete SID artefact, or sets over different catalogues.
    """
    (args,) = cli.parse(CompareArguments, argv, description=__doc__)
    sets = [
        read_set(path, name) for path, name in zip(args.sid_dirs, short_names(args.sid_dirs), strict=True)
    ]
    other_items = catalogue_differences(sets, args.different_catalogs)
    notes = other_items or interaction_differences(sets)
    rows = comparison_rows(sets, comparable=not other_items)
    print(text_table([one.name for one in sets], rows))
    for note in notes:
        print(f"note: {note}")
    comparison = {
        "sets": [
            {
                "name": one.name,
                "quantizer": one.artifact.config["quantizer"],
                "quantizer_args": one.artifact.config["quantizer_args"],
                "figures": {row.title: row.values[index] for row in rows},
            }
            for index, one in enumerate(sets)
        ],
        "notes": notes,
    }
    if args.output_dir is not None:
        inputs: dict[str, str | Path] = {one.name: one.artifact.path for one in sets}
        config = dataclasses.asdict(args)
        with writing(args.output_dir, KIND, 1, config, inputs, overwrite=args.overwrite) as artifact:
            write_json(artifact.path / "compare.json", comparison)
            page = comparison_page([one.name for one in sets], [one.report for one in sets], rows, notes)
            (artifact.path / "compare.html").write_text(page, encoding="utf-8")
        print(f"wrote {args.output_dir} (compare.json, compare.html)")
    return comparison


def read_set(path: str, name: str) -> SidSet:
    artifact = open_artifact(path, "sids")
    report = json.loads((artifact.path / "report.json").read_text(encoding="utf-8"))
    if "tree" not in report:
        raise InputError(f"sid_dirs: {path} has a report of an older sidereal; build it again")
    return SidSet(name, artifact, report)


def short_names(paths: Sequence[str]) -> list[str]:
    """What differs between the paths: out/x/sids and out/y/sids are x and y."""
    parts = [Path(path).resolve().parts for path in paths]
    shortest = min(map(len, parts))
    front = next((i for i in range(shortest) if len({p[i] for p in parts}) > 1), shortest)
    back = next((i for i in range(shortest - front) if len({p[-1 - i] for p in parts}) > 1), 0)
    return ["/".join(p[front : len(p) - back]) or p[-1] for p in parts]


def catalogue_differences(sets: list[SidSet], allowed: bool) -> list[str]:
    """One line for every set over other items than the first set's.

    Raises:
        InputError: with the first of them, unless different catalogues are `allowed`.
    """
    items_of_first = _items(sets[0])
    notes = []
    for other in sets[1:]:
        difference = _item_difference(items_of_first, _items(other))
        if difference:
            notes.append(f"{sets[0].name} and {other.name} are over different catalogues: {difference}")
    if notes and not allowed:
        raise InputError(f"sid_dirs: {notes[0]}; choose sets over one or pass --different_catalogs true")
    return notes


def interaction_differences(sets: list[SidSet]) -> list[str]:
    """One line for every set with other interactions than the first set's."""
    return [
        f"{sets[0].name} and {other.name} have other interactions (source, order of items or split): shares "
        "of targets, lift and hit rate may not be comparable"
        for other in sets[1:]
        if _interaction_hashes(other) != _interaction_hashes(sets[0])
    ]


def _items(one: SidSet) -> pa.Table:
    path = one.artifact.path / "sid_index" / "catalog.parquet"
    return pq.read_table(path, columns=["item_id", "title"]).sort_by("item_id")


def _item_difference(left: pa.Table, right: pa.Table) -> str | None:
    """In words, or None. Titles are compared as well: many data sets number their items from 0."""
    common = pc.sum(pc.is_in(right["item_id"], value_set=left["item_id"])).as_py()
    if not left.num_rows == right.num_rows == common:
        return f"{left.num_rows} and {right.num_rows} items, {common} item ids in common"
    changed = pc.not_equal(left["title"], right["title"])
    row = pc.index(changed, True).as_py()
    if row < 0:
        return None
    item_id = left["item_id"][row].as_py()
    titles = f"{left['title'][row].as_py()!r} and {right['title'][row].as_py()!r}"
    return f"{pc.sum(changed).as_py()} titles differ, first of item_id {item_id!r}: {titles}"


def _interaction_hashes(one: SidSet) -> list[str]:
    files = one.artifact.manifest["files"]
    return [entry["sha256"] for name, entry in sorted(files.items()) if name.startswith("interactions/")]


def comparison_rows(sets: list[SidSet], comparable: bool) -> list[Row]:
    """The table, one figure per row, in the order of the report; without best ones unless `comparable`."""
    reports = [one.report for one in sets]
    configs = [one.artifact.config for one in sets]
    summaries = [report["summary"] for report in reports]
    high: Better = "high" if comparable else None
    low: Better = "low" if comparable else None
    rows = [
        Row("quantizer", [config["quantizer"] for config in configs]),
        Row("shape", [" x ".join(map(str, summary["level_sizes"])) for summary in summaries]),
        Row("items", [summary["num_items"] for summary in summaries], ","),
    ]
    for level in range(max(len(report["levels"]) for report in reports)):
        uses = [report["levels"][level] if level < len(report["levels"]) else {} for report in reports]
        # Neither end is better between codebooks of different sizes.
        alike = len({use.get("size") for use in uses}) == 1
        more, less = (high, low) if alike else (None, None)
        rows += [
            Row(f"level {level + 1} used", [use.get("used") for use in uses], ",", more),
            Row(f"level {level + 1} perplexity", [use.get("perplexity") for use in uses], ",.1f", more),
            Row(f"level {level + 1} gini", [use.get("gini") for use in uses], ".3f", less),
        ]
    rows += [
        Row("repair", [report["repair"]["policy"] for report in reports]),
        Row("collision rate before", [r["repair"]["collision_rate_before"] for r in reports], ".2%", low),
        Row("collision rate", [summary["collision_rate"] for summary in summaries], ".2%", low),
        Row("largest group", [summary["largest_group"] for summary in summaries], ",", low),
        Row("targets sharing an SID", [summary["targets_sharing"] for summary in summaries], ".2%", low),
    ]
    for depth in range(max(len(report["co_click"]) for report in reports)):
        values = [_at(report["co_click"], depth, "lift") for report in reports]
        rows.append(Row(f"co-click lift, {depth + 1} code{'s' * (depth > 0)}", values, ".2f", high))
    for index, k in enumerate(CUTOFFS):
        rates = [
            _at((report.get("neighbours") or {}).get("at", []), index, "quantized") for report in reports
        ]
        rows.append(Row(f"neighbour hit rate at {k}", rates, ".2%", high))
    errors = [report.get("reconstruction", {}).get("error") for report in reports]
    rows += [
        Row("error", errors, ".2%", low),
        Row("error after repair", [summary["reconstruction_error"] for summary in summaries], ".2%", low),
        Row("category lift, 1 code", [_category_lift(report) for report in reports], ".2f", high),
        Row("build seconds", [_seconds(one) for one in sets], ",.0f", low),
    ]
    return [row for row in rows if any(value is not None for value in row.values)]


def _at(entries: list[dict[str, Any]], index: int, key: str) -> Any:
    return entries[index][key] if index < len(entries) else None


def _category_lift(report: dict[str, Any]) -> float | None:
    return report["labels"][0]["depths"][0]["lift"] if report["labels"] else None


def _seconds(one: SidSet) -> float | None:
    """All stages of the build together, where the manifest's summary has `seconds` by stage."""
    stages = one.artifact.summary.get("seconds")
    return None if stages is None else sum(stages.values())


def text_table(names: list[str], rows: list[Row]) -> str:
    """Figures down, sets across, for a terminal; * marks the best."""
    lines = [["", *names]]
    for row in rows:
        cells = zip(row.texts(), row.best(), strict=True)
        lines.append([row.title, *(f"{text}{'*' if best else ' '}" for text, best in cells)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


if __name__ == "__main__":
    cli.run(main)
