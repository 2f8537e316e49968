"""Reports as files: `report.json`, and pages that are one file each, with style, script and data inside.

A page loads nothing from anywhere (a content security policy says so as well). Titles are untrusted: Jinja
escapes everything that is put into HTML, `tojson` what is put into a script element, and the script sets
text, never HTML.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sid_builder.artifact import to_json, write_json
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.report.charts import code_grid, line_chart, usage_line
from sid_builder.report.item_table import item_table
from sid_builder.semantic_ids import SemanticIds

TEMPLATES = Path(__file__).with_name("templates")
SCRIPTS = ("items.js", "tree.js", "map.js")  # in this order one script
MOST_ITEMS = 20_000


@dataclass(frozen=True)
class ReportConfig:
    """What of the report is a matter of taste."""

    map: Literal["pca", "tsne"] = field(
        default="pca",
        metadata={"help": "The map of items: pca (seconds) or tsne (clearer groups; minutes for 20,000)."},
    )
    page_items: int = field(
        default=MOST_ITEMS,
        metadata={"help": f"Items the page shows one by one, a sample beyond; at most {MOST_ITEMS}."},
    )

    def __post_init__(self) -> None:
        if not 1 <= self.page_items <= MOST_ITEMS:
            raise InputError(f"report.page_items: {self.page_items} is outside 1..{MOST_ITEMS}")


def write_report(
    directory: Path,
    report: dict[str, Any],
    catalog: Catalog,
    sids: SemanticIds,
    embeddings_ND: np.ndarray | None = None,
    config: ReportConfig | None = None,
) -> None:
    """Write `report.json` and `report.html` into a directory, made if it is not there.

    Args:
        report: what `quality_report` gave, with `repair`, `source` and `thresholds` where the build has them.
        embeddings_ND: float32 [N, D], may be memory-mapped; None: the page has no map.
    """
    config = config or ReportConfig()
    report = to_json(report)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "report.json", report)
    items = item_table(catalog, sids, embeddings_ND, config.page_items, config.map)
    levels = [level["counts"] for level in report["levels"]]
    names = [f"level {number}" for number in range(1, len(levels) + 1)]
    usage = line_chart(
        [usage_line(names[level], counts_K, level) for level, counts_K in enumerate(levels)],
        "codes, most used first",
        "items per code, as a multiple of even use",
    )
    page = render(
        "report.html",
        report=report,
        items=items,
        level_names=names,
        usage=usage,
        grids=[code_grid(counts_K) for counts_K in levels],
    )
    (directory / "report.html").write_text(page, encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """A page from its template, with style and script inside."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    environment.filters |= {"whole": _whole, "percent": percent, "figure": _figure, "plain": _plain}
    environment.globals |= {
        # Our own files; everything else that enters a page is escaped.
        "style": Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        "script": Markup("".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)),
    }
    return environment


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in 0..1 as it is written on the pages."""
    return "–" if value is None else f"{value:.{digits}%}"


def _figure(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _plain(value: Any) -> str:
    """A value of a source's notes, as a reader would write it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
