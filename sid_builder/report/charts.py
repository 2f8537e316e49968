"""Pictures of the pages as inline SVG; colours and fonts come from page.css (classes c0..c7), so that they
follow the reader's light or dark theme.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

COLOURS = 8
SHADES = 5
MOST_CELLS = 4096


@dataclass(frozen=True)
class Line:
    """A named curve over 0..1 with evenly spaced values; `colour` numbers what it belongs to."""

    name: str
    values: Sequence[float]
    colour: int


def usage_line(name: str, counts_K: Sequence[int], colour: int) -> Line:
    """Items per code as a multiple of even use, most used code first: comparable across codebook sizes."""
    ordered = np.sort(np.asarray(counts_K, dtype=np.float64))[::-1]
    return Line(name, (ordered / max(ordered.mean(), 1e-12)).tolist(), colour)


def line_chart(lines: Sequence[Line], x_label: str, y_label: str) -> Markup:
    """Curves over the share of codes, with a dashed line at 1 (even use)."""
    width, height, left, bottom, top, right = 460, 270, 40, 40, 10, 10
    highest = max(1.0, *(max(line.values) for line in lines)) * 1.05
    step = _step(highest)

    def x_of(share: float) -> float:
        return left + share * (width - left - right)

    def y_of(value: float) -> float:
        return height - bottom - value / highest * (height - top - bottom)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(y_label)}">']
    for tick in np.arange(0, highest, step).tolist():
        parts.append(f'<path class="grid" d="M{left} {y_of(tick):.1f}H{width - right}"/>')
        parts.append(f'<text x="{left - 6}" y="{y_of(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        place = f'x="{x_of(share):.0f}" y="{height - bottom + 16}"'
        parts.append(f'<text {place} text-anchor="{"end" if share == 1 else "middle"}">{share:.0%}</text>')
    parts.append(f'<text x="{x_of(0.5):.0f}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<path class="even" d="M{left} {y_of(1):.1f}H{width - right}"/>')
    parts.append(f'<text x="{width - right}" y="{y_of(1) - 5:.1f}" text-anchor="end">even use = 1</text>')
    for line in lines:
        points = _thinned(line.values)
        path = " ".join(f"{x_of(share):.1f},{y_of(value):.1f}" for share, value in points)
        parts.append(
            f'<polyline class="line c{line.colour % COLOURS}" points="{path}">'
            f"<title>{escape(line.name)}</title></polyline>"
        )
    return Markup("".join(parts) + "</svg>")


def _thinned(values: Sequence[float], most: int = 240) -> list[tuple[float, float]]:
    """(share of codes, value) of at most `most` values; code of rank r stands at r / K."""
    ranks = np.unique(np.linspace(0, len(values) - 1, most).astype(int))
    return [((int(rank) + 0.5) / len(values), float(values[rank])) for rank in ranks]


def _step(highest: float) -> float:
    """A round distance that gives three to six grid lines."""
    rough = highest / 5
    power = 10.0 ** np.floor(np.log10(rough))
    return float(next(step for step in (1, 2, 5, 10) if step * power >= rough) * power)


def code_grid(counts_K: Sequence[int]) -> Markup:
    """One cell per code in code order, stronger the more items it has; dead codes are outlined holes.

    Beyond `MOST_CELLS` codes a cell is the mean of neighbouring codes.
    """
    counts = np.asarray(counts_K, dtype=np.float64)
    together = -(-len(counts) // MOST_CELLS)
    if together > 1:
        padded = np.pad(counts, (0, -len(counts) % together), constant_values=np.nan)
        counts = np.nanmean(padded.reshape(-1, together), axis=1)
    columns = _columns(len(counts))
    rows = -(-len(counts) // columns)
    # Shade 0 is dead; the others split the square root of the load, so that a few full codes do not hide the
    # differences among the rest.
    share = np.sqrt(counts / max(counts.max(), 1e-12))
    shades = np.where(counts > 0, np.clip(np.ceil(share * SHADES), 1, SHADES), 0).astype(int)
    paths = []
    for shade in range(SHADES + 1):
        cells = "".join(
            f"M{cell % columns} {cell // columns}h.86v.86h-.86z" for cell in np.flatnonzero(shades == shade)
        )
        if cells:
            paths.append(f'<path class="s{shade}" d="{cells}"/>')
    label = f"{int((np.asarray(counts_K) > 0).sum())} of {len(counts_K)} codes used"
    return Markup(
        f'<svg class="codes" viewBox="0 0 {columns} {rows}" preserveAspectRatio="xMinYMin" role="img" '
        f'aria-label="{label}">{"".join(paths)}</svg>'
    )


def _columns(cells: int) -> int:
    """Columns of a grid about three times as wide as high, without a ragged last row where that can be."""
    wanted = (3 * cells) ** 0.5
    near = range(max(1, int(wanted / 1.8)), int(wanted * 1.8) + 1)
    exact = [columns for columns in near if cells % columns == 0]
    return min(exact, key=lambda columns: abs(np.log(columns / wanted)), default=round(wanted))
