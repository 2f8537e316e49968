"""Reports of several sets of semantic IDs in one page, one colour per set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sid_builder.report.charts import line_chart, usage_line
from sid_builder.report.page import percent, render


@dataclass(frozen=True)
class Bar:
    """A value and how it is written; `colour` is the number of its set, None: grey."""

    name: str
    value: float
    text: str
    colour: int | None


@dataclass(frozen=True)
class BarGroup:
    """Bars of one scale, which ends at `most`."""

    heading: str
    bars: list[Bar]
    most: float


def comparison_page(
    names: Sequence[str], reports: Sequence[dict[str, Any]], rows: Sequence[Any], notes: Sequence[str]
) -> str:
    """HTML of the comparison, self-contained.

    Args:
        rows: the table, as `sid_builder.compare` makes it (title, texts(), best()).
        notes: what makes the sets hard to compare, shown on top.
    """
    levels = range(max(len(report["levels"]) for report in reports))
    usage = [
        line_chart(
            [
                usage_line(names[number], report["levels"][level]["counts"], number)
                for number, report in enumerate(reports)
                if level < len(report["levels"])
            ],
            "codes, most used first",
            "items per code, as a multiple of even use",
        )
        for level in levels
    ]
    perplexity = [
        _group(f"level {level + 1}", names, [_evenness(report, level) for report in reports], most=1.0)
        for level in levels
    ]
    panels = {
        "Perplexity as a share of the codebook": perplexity,
        "Collisions": _collisions(names, reports),
        "Co-click lift": _lifts(names, reports),
        "What the codes do not explain": _errors(names, reports),
        "Neighbours found again from the codes": _neighbours(names, reports),
    }
    return render(
        "compare.html",
        names=names,
        rows=rows,
        notes=notes,
        usage=usage,
        panels={title: [group for group in groups if group.bars] for title, groups in panels.items()},
    )


def _group(
    heading: str,
    names: Sequence[str],
    values: Sequence[float | None],
    write: Callable[[float], str] = percent,
    most: float | None = None,
) -> BarGroup:
    """One bar per set that has the figure; the largest value is the full length unless `most` is given."""
    bars = [
        Bar(name, value, write(value), number)
        for number, (name, value) in enumerate(zip(names, values, strict=True))
        if value is not None
    ]
    return BarGroup(heading, bars, most or max((bar.value for bar in bars), default=0.0))


def _evenness(report: dict[str, Any], level: int) -> float | None:
    if level >= len(report["levels"]):
        return None
    return report["levels"][level]["perplexity"] / report["levels"][level]["size"]


def _collisions(names: Sequence[str], reports: Sequence[dict[str, Any]]) -> list[BarGroup]:
    before = [report["repair"]["collision_rate_before"] for report in reports]
    after = [report["summary"]["collision_rate"] for report in reports]
    targets = [report["summary"]["targets_sharing"] for report in reports]
    most = max(*before, *after)
    return [
        _group("collision rate before repair", names, before, most=most),
        _group("collision rate", names, after, most=most),
        _group("valid and test targets with a shared SID", names, targets),
    ]


def _lifts(names: Sequence[str], reports: Sequence[dict[str, Any]]) -> list[BarGroup]:
    groups = []
    for depth in range(max(len(report["co_click"]) for report in reports)):
        lifts = [r["co_click"][depth]["lift"] if depth < len(r["co_click"]) else None for r in reports]
        heading = f"same first {f'{depth + 1} codes' if depth else 'code'}, over chance"
        groups.append(_group(heading, names, lifts, lambda value: f"{value:.1f}×"))
    return groups


def _errors(names: Sequence[str], reports: Sequence[dict[str, Any]]) -> list[BarGroup]:
    """Per number of codes, then after repair."""
    by_set = [report.get("reconstruction", {}).get("error_by_level", []) for report in reports]
    groups = []
    for codes in range(1, max(map(len, by_set)) + 1):
        errors = [by_level[codes - 1] if codes <= len(by_level) else None for by_level in by_set]
        groups.append(_group(f"after {codes} code{'s' * (codes > 1)}", names, errors, most=1.0))
    repaired = [report["summary"]["reconstruction_error"] for report in reports]
    return [*groups, _group("after repair", names, repaired, most=1.0)]


def _neighbours(names: Sequence[str], reports: Sequence[dict[str, Any]]) -> list[BarGroup]:
    """Hit rates of quantized vectors, below each the one of the embeddings they were made from."""
    found = {number: r["neighbours"]["at"] for number, r in enumerate(reports) if r.get("neighbours")}
    groups = []
    for index in range(max((len(at) for at in found.values()), default=0)):
        bars = []
        for number, at in found.items():
            coded, raw = at[index]["quantized"], at[index]["embeddings"]
            bars.append(Bar(names[number], coded, percent(coded), number))
            bars.append(Bar("its embeddings", raw, percent(raw), None))
        k = next(iter(found.values()))[index]["k"]
        groups.append(BarGroup(f"among the {k} nearest", bars, max(bar.value for bar in bars)))
    return groups
