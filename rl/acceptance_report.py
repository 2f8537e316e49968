"""What people see of an acceptance: a table in the terminal, and a picture beside acceptance.json."""

from collections.abc import Sequence
from pathlib import Path

from rl.acceptance import HEADLINE, NAMES, Acceptance

PICTURE_FILE = "acceptance.png"


def table(acceptance: Acceptance) -> str:
    """Every metric before and after, its difference and 95 % interval, as aligned text."""
    rows = [("", "before", "after", "difference", "95 % interval")]
    for name, row in acceptance.differences.items():
        low, high = row["interval_95"]
        numbers = (f"{row['before']:.4f}", f"{row['after']:.4f}", f"{row['difference']:+.4f}")
        rows.append((NAMES[name][0], *numbers, f"{low:+.4f} .. {high:+.4f}"))
    before, after = (acceptance.of_all_cases(when) for when in ("before", "after"))
    for name, words in (("coverage@10", "coverage@10"), ("level_1_codes", "level-1 codes in any top 10")):
        form = ".4f" if name == "coverage@10" else "d"
        numbers = (f"{before[name]:{form}}", f"{after[name]:{form}}")
        rows.append((words, *numbers, f"{after[name] - before[name]:+{form}}", ""))
    kl = acceptance.kl
    low, high = kl["interval_95"]
    rows.append(("KL to the start, nats", "", f"{kl['mean']:.4f}", "", f"{low:.4f} .. {high:.4f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def draw(acceptance: Acceptance, directory: Path, title: str) -> None:
    """Write acceptance.png: means before and after, and differences relative to before, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    differences = acceptance.differences
    figure, (means, changes) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
    for offset, when, colour in ((-0.12, "before", "#7a7a7a"), (0.12, "after", "#2a6f97")):
        rows = [differences[name] for name in HEADLINE]
        means.errorbar(
            [place + offset for place in range(len(rows))],
            [row[when] for row in rows],
            _reach([(*row[f"{when}_95"], row[when]) for row in rows]),
            fmt="o",
            color=colour,
            capsize=3,
            label=when,
        )
    means.set_xticks(range(len(HEADLINE)), [NAMES[name][0] for name in HEADLINE])
    means.set_ylim(bottom=0)
    means.set_title(f"{len(acceptance.judging):,} valid cases, 95 % intervals", fontsize=10)
    means.legend(fontsize=8, frameon=False)

    shown = [name for name, row in reversed(differences.items()) if row["before"]]
    rows = [differences[name] for name in shown]
    relative = [
        [100 * value / row["before"] for value in (*row["interval_95"], row["difference"])] for row in rows
    ]
    changes.errorbar(
        [middle for _, _, middle in relative],
        range(len(rows)),
        xerr=_reach(relative),
        fmt="o",
        color="#d1495b",
        capsize=3,
    )
    changes.axvline(0, color="#555555", linewidth=1)
    changes.set_yticks(range(len(shown)), [NAMES[name][0] for name in shown])
    changes.set_ylim(-0.6, len(shown) - 0.4)
    changes.set_xlabel("difference, % of before (paired)", fontsize=9)
    changes.set_title(f"verdict: {acceptance.verdict()}", fontsize=10)
    for axis in (means, changes):
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(directory / PICTURE_FILE, dpi=120)
    plt.close(figure)


def _reach(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """How far error bars reach down and up, from (low, high, middle) of each."""
    # An interval of equal values may miss their mean by a rounding, which matplotlib would refuse.
    return [
        [max(middle - low, 0.0) for low, _, middle in rows],
        [max(high - middle, 0.0) for _, high, middle in rows],
    ]
