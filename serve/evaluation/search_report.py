"""From lists to the results of a search evaluation: figures by kind of request, paired intervals, tables,
a picture.

Legend: C cases, N items, K places, M metrics.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serve.evaluation.metrics import bootstrap_means, gains, hits, interval
from serve.evaluation.report import RESAMPLES, figure_text, markdown_table
from serve.evaluation.search import SearchCases, SearchLists

FIT_CUTOFF = 10
# The target's place, and whether what is listed satisfies the constraints that the request states.
RANK_METRICS = {"r@1": (hits, 1), "r@5": (hits, 5), "r@10": (hits, 10), "ndcg@10": (gains, 10)}
FIT_METRICS = ("fit@10", "hit-fit@1")
METRICS = (*RANK_METRICS, *FIT_METRICS)
COMPARED = ("r@10", "ndcg@10", "fit@10")
ALL = "all requests"

Fits = Callable[[Mapping[str, Any]], np.ndarray]


def case_values(
    systems: Mapping[str, SearchLists], cases: SearchCases, fits: Fits
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """`METRICS` of every system and case, float64 [C, M], and the highest fit@10 possible, float64 [C].

    fit@10 is the share of the first 10 places with an item that satisfies `wanted`, hit-fit@1 whether the
    first one does; both, and the highest possible, are NaN where a request states no constraint as data.

    Args:
        fits: bool [N] for the constraints of a request: which items satisfy them.
    """
    values, ceiling_C = {}, np.full(len(cases), np.nan)
    for name, lists in systems.items():
        found_CK = lists.items_CK == cases.targets_C[:, None]
        rank_C = np.where(found_CK.any(axis=1), found_CK.argmax(axis=1) + 1, 0)
        ranked = [metric(rank_C, cutoff) for metric, cutoff in RANK_METRICS.values()]
        values[name] = np.stack([*ranked, *([ceiling_C] * len(FIT_METRICS))], axis=1)
    known: dict[str, np.ndarray] = {}
    for case, intent in enumerate(cases.intents):
        if not intent.wanted:
            continue
        key = json.dumps(intent.wanted, sort_keys=True)
        if key not in known:
            known[key] = fits(intent.wanted)
        fits_N = known[key].copy()
        fits_N[cases.excluded(case)] = False
        ceiling_C[case] = min(int(fits_N.sum()), FIT_CUTOFF) / FIT_CUTOFF
        for name, lists in systems.items():
            listed = lists.items_CK[case, :FIT_CUTOFF]
            fit_K = fits_N[listed] & (listed >= 0)
            values[name][case, len(RANK_METRICS) :] = fit_K.sum() / FIT_CUTOFF, fit_K[0]
    return values, ceiling_C


def slices_of(cases: SearchCases) -> dict[str, np.ndarray]:
    """Named bool masks over cases: all, by kind and number of turns, and by the constraint they state."""
    shapes, constraints = [], []
    for intent in cases.intents:
        turns = len(intent.turns)
        behind = ", behind a history" if intent.history else ""
        shapes.append(f"{intent.kind}, {turns} turn{'s' * (turns > 1)}{behind}")
        constraints.append(set(intent.wanted))
    slices = {ALL: np.ones(len(cases), dtype=bool)}
    slices |= {shape: np.array([s == shape for s in shapes]) for shape in sorted(set(shapes))}
    for name in sorted(set().union(*constraints)):
        slices[f"states {name}"] = np.array([name in stated for stated in constraints])
    return slices


def summarise(
    systems: Mapping[str, SearchLists], cases: SearchCases, fits: Fits, seed: int
) -> dict[str, Any]:
    """JSON-ready figures per slice; the first system is compared with each of the others."""
    values, ceiling_C = case_values(systems, cases, fits)
    names = list(systems)
    slices = {
        name: _slice({key: value[mask] for key, value in values.items()}, ceiling_C[mask], seed)
        for name, mask in slices_of(cases).items()
    }
    return {
        "num_cases": len(cases),
        "order": names,
        "slices": slices,
        "seconds": {name: round(lists.seconds, 2) for name, lists in systems.items()},
        "bootstrap": {"resamples": RESAMPLES, "level": 0.95, "seed": seed},
    }


def _slice(values: Mapping[str, np.ndarray], ceiling_C: np.ndarray, seed: int) -> dict[str, Any]:
    """Figures of the cases of a slice: over all of them, fits over those that state constraints."""
    stated_C = ~np.isnan(ceiling_C)
    first, *others = values
    systems: dict[str, dict[str, Any]] = {name: {"intervals": {}} for name in values}
    differences: dict[str, dict[str, Any]] = {name: {} for name in others}
    for metrics, kept_C in ((tuple(RANK_METRICS), slice(None)), (FIT_METRICS, stated_C)):
        columns = [METRICS.index(metric) for metric in metrics]
        table = np.concatenate([value[kept_C][:, columns] for value in values.values()], axis=1)
        if not len(table):
            continue
        samples = bootstrap_means(table, seed, RESAMPLES).reshape(RESAMPLES, len(values), len(metrics))
        means = table.mean(axis=0).reshape(len(values), len(metrics))
        for m, metric in enumerate(metrics):
            for number, name in enumerate(values):
                systems[name][metric] = float(means[number, m])
                systems[name]["intervals"][metric] = interval(samples[:, number, m])
                if number and metric in COMPARED:
                    low, high = interval(samples[:, 0, m] - samples[:, number, m])
                    difference = float(means[0, m] - means[number, m])
                    differences[name][metric] = {"difference": difference, "low": low, "high": high}
    return {
        "cases": len(stated_C),
        "with_constraints": int(stated_C.sum()),
        "highest_fit@10": float(ceiling_C[stated_C].mean()) if stated_C.any() else None,
        "systems": systems,
        "compared": first,
        "differences": differences,
    }


def markdown(results: dict[str, Any]) -> str:
    """The tables that the command prints and writes."""
    config = results["config"]
    left_out = "what was shown in a conversation is left out of every list"
    if results["exclude_history"]:
        left_out += ", and so is the given history"
    parts = [
        f"{results['num_cases']} {config['split']} requests over the full catalogue of "
        f"{results['num_items']} items; {left_out}. Model: beam {config['num_beams']}, decoder "
        f'{config["decoder"]}. bm25 and dense read item texts "{config["text_template"]}" and all turns of a '
        f"conversation; dense is {config['encoder']}.\n"
    ]
    head = ["Requests (with constraints)", "system", *(metric.upper() for metric in METRICS)]
    body = []
    for name, part in results["slices"].items():
        label = f"{name}: {part['cases']} ({part['with_constraints']})"
        for system in results["order"]:
            figures = part["systems"][system]
            body.append([label, system, *(figure_text(figures.get(metric)) for metric in METRICS)])
            label = ""
        if part["with_constraints"]:
            best = {"fit@10": part["highest_fit@10"]}
            body.append(["", "highest possible", *(figure_text(best.get(metric)) for metric in METRICS)])
    parts.append(markdown_table(head, body))
    parts.append(
        "R: the target is among the first K; FIT@10: share of the first 10 that satisfy the stated "
        "constraints; HIT-FIT@1: the first one does.\n"
    )
    compared = results["order"][0]
    head = [
        "Requests",
        *(f"{compared} - {name}, {m.upper()}" for name in results["order"][1:] for m in COMPARED),
    ]
    body = []
    for name, part in results["slices"].items():
        cells = (part["differences"][other].get(m) for other in results["order"][1:] for m in COMPARED)
        body.append([name, *(_difference(cell) for cell in cells)])
    parts.append(markdown_table(head, body))
    parts.append(f"Paired bootstrap over requests, {RESAMPLES} resamples, 95 %.\n")
    return "\n".join(parts)


def _difference(cell: Mapping[str, float] | None) -> str:
    return "-" if cell is None else f"{cell['difference']:+.3f} [{cell['low']:+.3f}, {cell['high']:+.3f}]"


def picture(results: dict[str, Any], path: Path) -> None:
    """R@10 and fit@10 of every system by slice, with 95 % bootstrap intervals, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order, slices = results["order"], results["slices"]
    figure = Figure(figsize=(11.0, 1.6 + 0.24 * len(order) * len(slices)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    colors, height = ("#2f6f9f", "#8d949f", "#c9ccd2"), 0.8 / len(order)
    for axis, metric in zip(axes, ("r@10", "fit@10"), strict=True):
        for number, system in enumerate(order):
            places, values, spread = [], [], []
            for row, part in enumerate(slices.values()):
                figures = part["systems"][system]
                if metric in figures:
                    low, high = figures["intervals"][metric]
                    places.append(row + (number - (len(order) - 1) / 2) * height)
                    values.append(figures[metric])
                    spread.append((max(figures[metric] - low, 0.0), max(high - figures[metric], 0.0)))
            if values:
                errors = {"ecolor": "#33373d", "capsize": 2, "lw": 0.8}
                color = colors[number % len(colors)]
                axis.barh(
                    places,
                    values,
                    height,
                    xerr=np.array(spread).T,
                    color=color,
                    error_kw=errors,
                    label=system,
                )
        axis.set_xlim(0, 1)
        axis.set_title(metric.upper(), fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    labels = [f"{name} ({part['cases']})" for name, part in slices.items()]
    axes[0].set_yticks(range(len(slices)), labels)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=8, frameon=False, loc="lower right")
    split = results["config"]["split"]
    figure.suptitle(f"{results['num_cases']} {split} requests, 95 % bootstrap intervals", fontsize=10)
    figure.savefig(path, dpi=130)
