"""From ranks to the results of an evaluation: figures with intervals, Markdown tables, a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompts.pack import Template
from serve.evaluation.metrics import (
    CUTOFFS,
    RankedCases,
    bootstrap_means,
    gains,
    hits,
    interval,
    metrics_of_ranks,
    slices_of,
)

RESAMPLES = 1000
FLOORS = ("popularity", "one-hop")
SPREAD = ("hr@10", "ndcg@10")  # figures shown over wordings
SPREAD_OF = ("mean", "min", "max")
# Figures that get intervals, on item-level ranks.
COMPARED = {"hr@10": (hits, 10), "ndcg@10": (gains, 10), "hr@50": (hits, 50)}


def summarise(
    rows: Mapping[str, RankedCases], targets_C: np.ndarray, train_counts_N: np.ndarray, seed: int
) -> dict[str, Any]:
    """JSON-ready figures of every row over the same cases, and paired differences against the first model.

    Args:
        rows: floors first, then models; the first row that is no floor is what the others are compared with.
    """
    slices = slices_of(targets_C, train_counts_N)
    table = np.stack([f(row.item_rank_C, k) for row in rows.values() for f, k in COMPARED.values()], axis=1)
    samples = bootstrap_means(table, seed, RESAMPLES).reshape(RESAMPLES, len(rows), len(COMPARED))
    figures: dict[str, dict[str, Any]] = {}
    for number, (name, row) in enumerate(rows.items()):
        figures[name] = {
            "item": metrics_of_ranks(row.item_rank_C),
            "sid": metrics_of_ranks(row.sid_rank_C),
            "slices": {key: metrics_of_ranks(row.item_rank_C[mask]) for key, mask in slices.items()},
            "intervals": {metric: interval(samples[:, number, m]) for m, metric in enumerate(COMPARED)},
            "coverage@10": row.coverage,
            "num_beams": row.num_beams,
            "invalid_rate": row.invalid_rate,
            "duplicate_rate": row.duplicate_rate,
            "seconds": round(row.seconds, 2),
        }
    names = list(rows)
    base = next((i for i, name in enumerate(names) if name not in FLOORS), 0)
    differences: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        if number == base:
            continue
        differences[name] = {}
        for m, metric in enumerate(COMPARED):
            low, high = interval(samples[:, number, m] - samples[:, base, m])
            value = figures[name]["item"][metric] - figures[names[base]]["item"][metric]
            differences[name][metric] = {"difference": value, "low": low, "high": high}
    return {
        "num_cases": len(targets_C),
        "slice_cases": {key: int(mask.sum()) for key, mask in slices.items()},
        "rows": figures,
        "order": names,
        "compared_with": names[base],
        "differences": differences,
        "bootstrap": {"resamples": RESAMPLES, "level": 0.95, "seed": seed},
    }


def wording_spread(templates: Sequence[Template], rows: Mapping[int, RankedCases]) -> dict[str, Any]:
    """Item-level HR@10 and NDCG@10 over wordings: mean, lowest and highest, as LC-Rec reports its prompts.

    Args:
        templates: the model's wordings of seqrec.
        rows: what asking in the wording of that number gave.
    """
    metrics = {number: metrics_of_ranks(row.item_rank_C) for number, row in rows.items()}
    spread: dict[str, Any] = {
        "each": [
            {
                "wording": number,
                "user": templates[number].user,
                "held_out": templates[number].held_out,
                **{name: metrics[number][name] for name in SPREAD},
            }
            for number in rows
        ]
    }
    for name in SPREAD:
        values = [metrics[number][name] for number in rows]
        spread[name] = {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}
    return spread


def markdown_table(head: list[str], body: list[list[str]]) -> str:
    """Rows of cells in Markdown: the first column to the left, figures to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def figure_text(value: float | None) -> str:
    """Four digits, or a dash for what there is no figure of."""
    return "-" if value is None else f"{value:.4f}"


def markdown(results: dict[str, Any]) -> str:
    """The tables that the command prints and writes."""
    rows = [(name, results["rows"][name]) for name in results["order"]]
    excluded = "excluded from" if results["exclude_history"] else "kept in"
    config = results["config"]
    parts = [
        f"{results['num_cases']} {results['split']} cases over the full catalogue of {results['num_items']} "
        f"items; items of the given history are {excluded} the list; beam {config['num_beams']}, "
        f"decoder {config['decoder']}, score {config['score']}, constraint {config['constraint']}.\n"
    ]
    for level, title in (("item", "Item-level"), ("sid", "SID-level")):
        head = [title, *(f"HR@{k}" for k in CUTOFFS), *(f"NDCG@{k}" for k in CUTOFFS)]
        names = [f"hr@{k}" for k in CUTOFFS] + [f"ndcg@{k}" for k in CUTOFFS]
        parts.append(
            markdown_table(
                head, [[name, *(figure_text(row[level][key]) for key in names)] for name, row in rows]
            )
        )
    body = []
    for name, row in rows:
        beams = [
            figure_text(row[key]) if row["num_beams"] else "-" for key in ("invalid_rate", "duplicate_rate")
        ]
        body.append(
            [name, f"{row['num_beams']}", *beams, figure_text(row["coverage@10"]), f"{row['seconds']:.1f}"]
        )
    parts.append(markdown_table(["Beams", "beams", "invalid", "duplicate", "coverage@10", "seconds"], body))
    slices = results["slice_cases"]
    head = ["HR@10 / NDCG@10 by target", *(f"{key} ({count})" for key, count in slices.items())]
    body = []
    for name, row in rows:
        cells = [row["slices"][key] for key in slices]
        body.append(
            [name, *(f"{figure_text(c.get('hr@10'))} / {figure_text(c.get('ndcg@10'))}" for c in cells)]
        )
    parts.append(markdown_table(head, body))
    parts.append(
        "cold: targets never in train; warm: the others; head: targets among the 20 % of items most frequent "
        "in train; tail: other warm ones.\n"
    )
    if results["differences"]:
        head = [f"Minus {results['compared_with']} (95 %)", *(key.upper() for key in COMPARED)]
        body = [
            [
                name,
                *(f"{d['difference']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]" for d in by_metric.values()),
            ]
            for name, by_metric in results["differences"].items()
        ]
        parts.append(markdown_table(head, body))
        parts.append(f"Paired bootstrap over cases, {RESAMPLES} resamples.\n")
    if "wordings" in results:
        parts.append(_wordings_table(results["wordings"]))
    return "\n".join(parts)


def _wordings_table(spreads: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per model for the spread, then one per wording."""
    head = ["Over wordings of seqrec", *(f"{name.upper()} {of}" for name in SPREAD for of in SPREAD_OF)]
    body = []
    for name, spread in spreads.items():
        count = len(spread["each"])
        body.append([f"{name} ({count})", *(figure_text(spread[m][of]) for m in SPREAD for of in SPREAD_OF)])
    lines = [markdown_table(head, body)]
    body = []
    for name, spread in spreads.items():
        for entry in spread["each"]:
            kind = "held out" if entry["held_out"] else "trained"
            said = entry["user"].replace("\n", "\\n").replace("|", "\\|")
            body.append([f"{name}, {kind}: `{said}`", *(figure_text(entry[m]) for m in SPREAD)])
    lines.append(markdown_table(["Wording", *(name.upper() for name in SPREAD)], body))
    return "\n".join(lines)


def picture(results: dict[str, Any], path: Path) -> None:
    """Bars of HR@10 and NDCG@10 per row with 95 % bootstrap intervals, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = results["order"]
    figure = Figure(figsize=(8.0, 1.3 + 0.42 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    colors = ["#b8bcc4" if name in FLOORS else "#2f6f9f" for name in names]
    for axis, metric in zip(axes, ("hr@10", "ndcg@10"), strict=True):
        values = np.array([results["rows"][name]["item"][metric] for name in names])
        bounds = np.array([results["rows"][name]["intervals"][metric] for name in names]).T
        spread = np.clip(np.stack([values - bounds[0], bounds[1] - values]), 0, None)
        axis.barh(
            names, values, xerr=spread, color=colors, error_kw={"ecolor": "#33373d", "capsize": 3, "lw": 1}
        )
        for row, (value, high) in enumerate(zip(values, bounds[1], strict=True)):
            axis.annotate(
                f"{value:.4f}", (high, row), (5, 0), textcoords="offset points", va="center", fontsize=8
            )
        axis.set_xlim(0, max(float(bounds[1].max()) * 1.25, 1e-3))
        axis.set_title(f"{metric.upper()}, item-level", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    axes[0].invert_yaxis()
    figure.suptitle(f"{results['num_cases']} {results['split']} cases, 95 % bootstrap intervals", fontsize=10)
    figure.savefig(path, dpi=130)
