"""Training curves: as a picture, and in the trackers that `report_to` names."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sid_builder.errors import InputError

# What is drawn together, under which title and unit; anything else logged gets a panel of its own.
_PANELS = (
    ("Loss", "nats per token", {"loss": "train", "eval_loss": "valid"}),
    (
        "Valid ranking",
        "share of cases",
        {"eval_ndcg@10": "NDCG@10", "eval_hr@10": "HR@10", "eval_hr@50": "HR@50"},
    ),
    ("Valid coverage", "share of the catalogue", {"eval_coverage@10": "in any top 10"}),
    (
        "Next-token accuracy",
        "share of tokens",
        {"mean_token_accuracy": "train", "eval_mean_token_accuracy": "valid"},
    ),
    ("Entropy", "nats per token", {"entropy": "train", "eval_entropy": "valid"}),
    ("Learning rate", "", {"learning_rate": ""}),
    ("Gradient norm", "", {"grad_norm": ""}),
)
_NOT_CURVES = {"epoch", "step", "num_tokens", "total_flos", "eval_num_tokens", "eval_runtime"}
Curve = tuple[list[int], list[float]]  # steps and values
_COLOURS = ("#2a6f97", "#d1495b", "#5b8e3e")
_MARKED_POINTS = 40  # a curve of no more points than this shows them
# Trackers as Trainer calls them, and the packages any of which it needs.
_TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


def check_report_to(config: Any) -> None:
    """Refuse a tracker that is not installed, before anything is trained; `config` is TRL's.

    Raises:
        InputError: naming the package.
    """
    for tracker in config.report_to:
        packages = _TRACKERS.get(tracker, ())
        if packages and not any(find_spec(package) for package in packages):
            raise InputError(
                f"report_to: {tracker!r} is not installed; pip install {packages[0]}, or leave it out "
                "(curves.png and log_history.json are always written)"
            )


def plot_history(
    history: Sequence[Mapping[str, Any]], path: Path, title: str, best_step: int | None = None
) -> None:
    """Panels of what was logged over steps (what a Trainer keeps in `state.log_history`), as PNG.

    Args:
        best_step: marked in every panel.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = _panels(history)
    columns = min(3, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.4 * columns, 3.0 * rows + 0.5),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (name, unit, curves) in zip(axes.flat, panels, strict=False):
        for colour, (label, (steps, values)) in zip(_COLOURS, curves.items(), strict=False):
            few = len(steps) <= _MARKED_POINTS
            axis.plot(
                steps,
                values,
                color=colour,
                linewidth=1.4,
                marker="o" if few else None,
                markersize=3,
                label=label,
            )
        if best_step is not None:
            axis.axvline(
                best_step, color="#555555", linewidth=1, linestyle="--", label=f"best step: {best_step}"
            )
        axis.set_title(name, fontsize=10)
        axis.set_ylabel(unit, fontsize=8)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8, labelbottom=True)
        axis.spines[["top", "right"]].set_visible(False)
        if any(curves) or best_step is not None:  # a label that is empty names no curve
            axis.legend(fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("optimizer step", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panels(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, dict[str, Curve]]]:
    """(title, unit, curves by label) of everything with at least two points; known panels first."""
    series: dict[str, Curve] = {}
    for entry in history:
        for name, value in entry.items():
            if name in _NOT_CURVES or name.startswith("train_") or name.endswith("_per_second"):
                continue
            if isinstance(value, (int, float)):
                steps, values = series.setdefault(name, ([], []))
                steps.append(entry.get("step", 0))
                values.append(value)
    panels = []
    for title, unit, names in _PANELS:
        curves = {label: series.pop(name) for name, label in names.items() if name in series}
        panels.append((title, unit, curves))
    panels += [(name, "", {"": curve}) for name, curve in sorted(series.items())]
    return [panel for panel in panels if any(len(steps) > 1 for steps, _ in panel[2].values())]
