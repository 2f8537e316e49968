"""What came of rounds of self-improvement: read from their directories, as a table, and as a picture."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sid_builder.artifact import MANIFEST

GUARDED = ("ndcg@10", "hr@50")  # a round that clearly lowers one of them is not kept
_SHOWN = ("ndcg@10", "hr@10", "hr@50")


@dataclass(frozen=True)
class Round:
    """What came of one round.

    Attributes:
        before, after: means of NDCG@10, HR@10 and HR@50 on the valid cases of the verdict.
        interval: 95 % of the NDCG@10 difference, paired.
        kept: whether its model goes on.
    """

    number: int
    sets: int
    before: dict[str, float]
    after: dict[str, float]
    interval: tuple[float, float]
    verdict: str
    kept: bool

    @staticmethod
    def of(number: int, run: Path) -> "Round":
        """Read from a finished run and the preferences beside it."""
        acceptance = json.loads((run / "acceptance.json").read_text(encoding="utf-8"))
        made = json.loads((Path(f"{run}.preferences") / MANIFEST).read_text(encoding="utf-8"))
        differences = acceptance["differences"]
        low, high = differences["ndcg@10"]["interval_95"]
        return Round(
            number,
            made["summary"]["sets"],
            *({name: differences[name][when] for name in _SHOWN} for when in ("before", "after")),
            (low, high),
            acceptance["verdict"],
            all(differences[name]["interval_95"][1] >= 0 for name in GUARDED),
        )


def table(rounds: Sequence[Round]) -> list[str]:
    """Lines of a Markdown table: the start, then what every round made of what it was given."""
    names = " | ".join(name.upper() for name in _SHOWN)
    first = " | ".join(f"{rounds[0].before[name]:.4f}" for name in _SHOWN)
    lines = [
        f"| round | sets | {names} | NDCG@10 difference, 95 % | verdict | kept |",
        "|---|---|" + "---|" * len(_SHOWN) + "---|---|---|",
        f"| start | | {first} | | | |",
    ]
    for done in rounds:
        values = " | ".join(f"{done.after[name]:.4f}" for name in _SHOWN)
        low, high = done.interval
        change = f"{done.after['ndcg@10'] - done.before['ndcg@10']:+.4f} ({low:+.4f} .. {high:+.4f})"
        lines.append(
            f"| {done.number} | {done.sets:,} | {values} | {change} | {done.verdict} | "
            f"{'yes' if done.kept else 'no'} |"
        )
    return lines


def draw(rounds: Sequence[Round], path: Path, title: str) -> None:
    """NDCG@10 after every round as PNG: a line through the models that were kept, crosses for the others."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    kept = [(0, rounds[0].before["ndcg@10"])]
    kept += [(done.number, done.after["ndcg@10"]) for done in rounds if done.kept]
    axis.plot(*zip(*kept, strict=True), marker="o", color="#2a6f97", label="kept")
    hurt = [(done.number, done.after["ndcg@10"]) for done in rounds if not done.kept]
    if hurt:
        axis.plot(*zip(*hurt, strict=True), "x", color="#d1495b", label="not kept")
    for done in rounds:  # the paired interval of the difference, around where the round began
        low, high = (done.before["ndcg@10"] + bound for bound in done.interval)
        axis.plot([done.number, done.number], [low, high], color="#7a7a7a", linewidth=1)
    axis.set_xticks(range(len(rounds) + 1), ["start", *(str(done.number) for done in rounds)])
    axis.set_xlabel("round", fontsize=9)
    axis.set_ylabel("valid NDCG@10", fontsize=9)
    axis.set_title(f"{title}: 95 % intervals of each round's difference", fontsize=10)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
