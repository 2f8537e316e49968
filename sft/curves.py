"""Training curves as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_NOT_CURVES = {"epoch", "step", "num_tokens", "total_flos"}


def plot_history(history: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """One small panel per logged quantity over steps (what a Trainer keeps in `state.log_history`)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    series: dict[str, tuple[list, list]] = {}
    for entry in history:
        for name, value in entry.items():
            if name in _NOT_CURVES or name.startswith("train_") or not isinstance(value, (int, float)):
                continue
            steps, values = series.setdefault(name, ([], []))
            steps.append(entry.get("step", 0))
            values.append(value)
    series = {name: curve for name, curve in series.items() if len(curve[0]) > 1}
    columns = min(3, max(1, len(series)))
    rows = max(1, -(-len(series) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.7 * rows), squeeze=False)
    for axis in axes.flat[len(series) :]:
        axis.set_visible(False)
    for axis, (name, (steps, values)) in zip(axes.flat, sorted(series.items()), strict=False):
        axis.plot(
            steps,
            values,
            color="#2a6f97",
            linewidth=1.4,
            marker="o" if len(steps) < 20 else None,
            markersize=3,
        )
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("step", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
