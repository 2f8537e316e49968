"""The quality report as one picture: codebook use, collisions, co-click lift, reconstruction error."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

matplotlib.use("Agg")

INK, MUTED, GRID, GOOD, BAD = "#1f2933", "#7b8794", "#e4e7eb", "#2f855a", "#c05621"
LEVELS = ("#1f5f8b", "#3a9ba3", "#e0a030", "#b5547a", "#6a5acd", "#6b8e23", "#8b5a2b", "#708090")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


def plot_report(report: dict[str, Any], path: Path) -> None:
    """Write `report.png` (1500 x 950 pixels) from the dict that goes into `report.json`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(15, 9.5),
            dpi=100,
            layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15, wspace=0.02, hspace=0.06),
        )
        panels = figure.subplots(2, 3).ravel()
        figure.suptitle(_headline(report), x=0.012, ha="left", fontsize=15, fontweight="bold")
        _usage_curves(panels[0], report["levels"])
        _codebook_bars(panels[1], report["levels"])
        _collisions(panels[2], report)
        _lift(panels[3], report["co_click"])
        _reconstruction(panels[4], report.get("reconstruction"))
        _figures(panels[5], report)
        figure.savefig(path)


def _headline(report: dict[str, Any]) -> str:
    summary = report["summary"]
    shape = " × ".join(str(size) for size in summary["level_sizes"])
    return f"Semantic IDs of {summary['num_items']:,} items, {shape} codes, such as {summary['example']}"


def _level_name(level: int) -> str:
    return f"level {chr(ord('a') + level)}"


def _usage_curves(axes: Axes, levels: list[dict[str, Any]]) -> None:
    axes.set_title("Items per code, most used code first")
    for level, use in enumerate(levels):
        counts, colour = use["counts"], LEVELS[level % len(LEVELS)]
        axes.plot(range(1, len(counts) + 1), counts, color=colour, lw=2, label=_level_name(level))
    mean = sum(levels[0]["counts"]) / levels[0]["size"]
    axes.axhline(mean, color=MUTED, lw=1, ls="--")
    axes.annotate(
        f"even use: {mean:.1f}",
        (1, mean),
        (0.98, mean),
        textcoords=axes.get_yaxis_transform(),
        ha="right",
        va="bottom",
        color=MUTED,
    )
    axes.set(
        xlabel="code, by rank", ylabel="items", ylim=(0, None), xlim=(1, max(use["size"] for use in levels))
    )
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False)


def _codebook_bars(axes: Axes, levels: list[dict[str, Any]]) -> None:
    axes.set_title("Use of each codebook")
    measures = ("used codes", "perplexity", "evenness (1 − Gini)")
    height = 0.8 / len(levels)
    for level, use in enumerate(levels):
        shares = (use["used"] / use["size"], use["perplexity"] / use["size"], 1 - use["gini"])
        texts = (f"{use['used']} of {use['size']}", f"{use['perplexity']:.0f}", f"{shares[2]:.2f}")
        places = [measure + (level - (len(levels) - 1) / 2) * height for measure in range(3)]
        axes.barh(places, shares, height * 0.88, color=LEVELS[level % len(LEVELS)], label=_level_name(level))
        for place, share, text in zip(places, shares, texts, strict=True):
            inside = share > 0.3
            side = {"x": share - 0.015, "ha": "right", "color": "white"} if inside else {"x": share + 0.015}
            axes.text(y=place, s=text, va="center", fontsize=9, fontweight="bold", **side)
    axes.set_yticks(range(3), measures, color=INK)
    axes.set(xlim=(0, 1), ylim=(2.5, -0.5))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("share of the codebook")
    axes.grid(axis="x", color=GRID)


def _collisions(axes: Axes, report: dict[str, Any]) -> None:
    axes.set_title("Collisions")
    collisions, repair = report["collisions"], report["repair"]
    names = [
        "colliding SIDs\n1 − distinct / items",
        "items that\nshare an SID",
        "valid + test targets\nwhose SID is shared",
    ]
    values = [collisions["collision_rate"], collisions["items_sharing"], report["targets"]["targets_sharing"]]
    colours = [BAD if value > 0 else GOOD for value in values]
    if repair["policy"] != "none":
        names.insert(0, "colliding SIDs\nbefore repair")
        values.insert(0, repair["collision_rate_before"])
        colours.insert(0, MUTED)
    right = max(*values, 0.01) * 1.25
    axes.barh(range(len(values)), values, 0.55, color=colours)
    for place, (value, colour) in enumerate(zip(values, colours, strict=True)):
        label = f"{value:.2%}" if value > 0 else "none"
        axes.text(value + right * 0.015, place, label, va="center", color=colour, fontweight="bold")
    axes.set_yticks(range(len(values)), names, color=INK)
    axes.set(xlim=(0, right), ylim=(len(values) - 0.4, -0.6))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="x", color=GRID)


def _lift(axes: Axes, lifts: list[dict[str, Any]]) -> None:
    axes.set_title("Neighbours in train that share a prefix")
    drawn = [lift for lift in lifts if lift["lift"]]
    if not drawn:
        _nothing(axes, "SIDs of one level have no prefix,\nor train has no neighbours")
        return
    places = range(len(drawn))
    axes.bar(
        [x - 0.2 for x in places],
        [lift["together"] for lift in drawn],
        0.38,
        color=LEVELS[0],
        label="measured",
    )
    axes.bar(
        [x + 0.2 for x in places],
        [lift["chance"] for lift in drawn],
        0.38,
        color="#b8c4ce",
        label="by chance",
    )
    for x, lift in zip(places, drawn, strict=True):
        axes.text(
            x,
            max(lift["together"], lift["chance"]) * 1.15,
            f"lift {lift['lift']:.1f}×",
            ha="center",
            fontweight="bold",
        )
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.5, high * 2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(
        places,
        ["same first code" if lift["depth"] == 1 else f"same first {lift['depth']} codes" for lift in drawn],
        color=INK,
    )
    axes.set_ylabel("share of neighbouring pairs (log scale)")
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False)


def _reconstruction(axes: Axes, errors: dict[str, Any] | None) -> None:
    axes.set_title("What the codes do not explain")
    if errors is None:
        _nothing(axes, "SIDs were taken over,\nthere is no quantizer to ask")
        return
    values = [1.0, *errors["error_by_level"]]
    names = ["no code", *(f"{level} code{'s' * (level > 1)}" for level in range(1, len(values)))]
    colours = ["#b8c4ce", *(LEVELS[level % len(LEVELS)] for level in range(len(values) - 1))]
    if errors["error_after_repair"] != errors["error"]:
        values.append(errors["error_after_repair"])
        names.append("after\nrepair")
        colours.append(MUTED)
    axes.bar(range(len(values)), values, 0.6, color=colours)
    for place, value in enumerate(values):
        axes.text(place, value + 0.012, f"{value:.1%}", ha="center", va="bottom", fontweight="bold")
    axes.set_xticks(range(len(values)), names, color=INK)
    axes.set(ylim=(0, 1.1), ylabel="squared error / squared length")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="y", color=GRID)


def _figures(axes: Axes, report: dict[str, Any]) -> None:
    axes.set_title("In figures")
    axes.set_axis_off()
    summary, collisions, targets, repair = (
        report[key] for key in ("summary", "collisions", "targets", "repair")
    )
    rows = [
        ("distinct SIDs", f"{summary['num_distinct']:,} of {summary['num_items']:,}"),
        ("level a used / perplexity", f"{summary['level_1_used']} / {summary['level_1_perplexity']:.0f}"),
        (
            "groups of items sharing an SID",
            f"{collisions['groups']:,}, largest {collisions['largest_group']}",
        ),
        ("repair", repair["policy"]),
        ("items it moved", f"{repair['items_moved']:,}"),
        ("prefixes over capacity", f"{repair['groups_over_capacity']:,}"),
        ("items behind a target's SID, mean", f"{targets['items_per_target_sid']:.3f}"),
        ("item-level / SID-level hits at 1, at most", f"{targets['item_sid_ratio']:.3f}"),
        ("co-click lift, level a", f"{summary['co_click_lift']:.1f}×" if summary["co_click_lift"] else "–"),
        ("source", f"{report['source']['name']}, {report['source'].get('num_sequences', 0):,} sequences"),
    ]
    for line, (name, value) in enumerate(rows):
        height = 0.93 - line * 0.1
        axes.text(0.0, height, name, transform=axes.transAxes, color=MUTED, va="center")
        axes.text(1.0, height, value, transform=axes.transAxes, ha="right", va="center", fontweight="bold")
        axes.plot([0, 1], [height - 0.05] * 2, transform=axes.transAxes, color=GRID, lw=1)


def _nothing(axes: Axes, why: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=MUTED)
