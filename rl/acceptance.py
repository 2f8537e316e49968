"""Whether a run helped: valid metrics of the start and of the result on the same cases, with paired bootstrap
intervals, said in words.

Valid cases are for this decision and for the choice of the best step; they are never prompts and never
targets of a reward. The choice has cases of its own: the best of several steps looks better on the cases it
was chosen on than it is. All processes rank together.

Legend: C cases.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rl.policy_probes import PolicyProbes, Probed
from serve.decoding.recommender import Recommender
from serve.evaluation.metrics import RankedCases, bootstrap_means, gains, hits, interval, metrics_of_ranks
from serve.evaluation.model_ranking import flat_metrics
from serve.evaluation.paired import RankMetrics, paired_difference, paired_differences
from sft.valid_ranking import FIGURES, rank_shared
from sid_builder.artifact import write_json
from sid_builder.errors import InputError
from sid_builder.interactions import Histories

ACCEPTANCE_FILE = "acceptance.json"
HEADLINE: RankMetrics = {"ndcg@10": (gains, 10), "hr@10": (hits, 10), "hr@50": (hits, 50)}
LEVEL_1, INVALID, KL = "level_1_codes@10", "invalid_rate", "kl"
# What each is called in words, and whether more of it is better.
NAMES = {
    "ndcg@10": ("NDCG@10", True),
    "hr@10": ("HR@10", True),
    "hr@50": ("HR@50", True),
    LEVEL_1: ("level-1 codes in a top 10", True),
    INVALID: ("invalid rate of a free beam", False),
}
PROBED = 200


@dataclass(frozen=True)
class Measured:
    """One model on the cases of the verdict, and some of them looked at more closely."""

    ranked: RankedCases
    probed: Probed


@dataclass
class Acceptance:
    """Fixed valid cases: some to choose the best step on, others for the verdict.

    Attributes:
        policy: the start, whose tokenizer, index, prompts and interactions are the result's as well.
        choosing, judging: the cases of either; disjoint if steps are chosen.
        num_beams: of all rankings; 50 or more, or HR@50 says less than its name.
        measured: by "before" and "after".
    """

    policy: Recommender
    choosing: Histories
    judging: Histories
    num_beams: int
    measured: dict[str, Measured] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cases = self.judging.take(_spread(len(self.judging), PROBED))
        self._probes = PolicyProbes(self.policy, cases, self.num_beams)

    @staticmethod
    def on_valid(
        policy: Recommender, num_cases: int, num_beams: int, seed: int, chooses: bool
    ) -> "Acceptance | None":
        """At most `num_cases` valid cases drawn by seed; None for 0.

        Args:
            chooses: whether a best step is chosen: on one half of the cases, and judged on the other. If not,
                all are judged, and one half ranked while the model trains.

        Raises:
            InputError: when valid has too few cases.
        """
        if not num_cases:
            return None
        cases = policy.interactions.histories("valid")
        least = 2 if chooses else 1
        if min(num_cases, len(policy.index.reachable(cases))) < least:
            raise InputError(
                f"valid_cases: {num_cases}, but valid has {len(cases)} cases, "
                f"{len(policy.index.reachable(cases))} of them for items on the shelf, and a verdict takes "
                f"{least}; set valid_cases: 0"
            )
        drawn = np.random.default_rng(seed).permutation(len(cases))[:num_cases]
        judged, choosing = halves(len(drawn), chooses)
        first, last = np.sort(drawn[:choosing]), np.sort(drawn[-judged:])
        return Acceptance(policy, cases.take(first), cases.take(last), num_beams)

    def figures(self, model: Any) -> dict[str, float]:
        """`FIGURES` of a model, plain or wrapped by PEFT, on the cases that choose."""
        metrics = flat_metrics(rank_shared(self._with(model), self.choosing, self.num_beams))
        return {name: metrics[name] for name in FIGURES}

    def measure(self, when: str, model: Any) -> None:
        """Rank and probe a model; kept as "before" (first: it is what KL is measured to) or "after"."""
        ranked = rank_shared(self._with(model), self.judging, self.num_beams, progress=True)
        self.measured[when] = Measured(ranked, self._probes.look(model))

    def _with(self, model: Any) -> Recommender:
        return Recommender(model, self.policy.tokenizer, self.policy.index, self.policy.template)

    @cached_property
    def differences(self) -> dict[str, dict[str, Any]]:
        """`paired_difference` of every metric that has a value per case, in the order of `NAMES`; to be asked
        for once both models were measured.
        """
        before, after = self.measured["before"], self.measured["after"]
        return {
            **paired_differences(before.ranked.item_rank_C, after.ranked.item_rank_C, HEADLINE),
            LEVEL_1: paired_difference(before.probed.level_1_C, after.probed.level_1_C),
            INVALID: paired_difference(before.probed.invalid_C, after.probed.invalid_C),
        }

    @cached_property
    def kl(self) -> dict[str, Any]:
        """KL of the result to the start in nats (`rl.policy_probes`): its mean and 95 % interval."""
        kl_C = self.measured["after"].probed.kl_C
        return {"mean": float(kl_C.mean()), "interval_95": interval(bootstrap_means(kl_C[:, None])[:, 0])}

    def of_all_cases(self, when: str) -> dict[str, float]:
        """Coverage@10, and distinct level-1 codes of what any top 10 lists: no case has a value of these."""
        ranked = self.measured[when].ranked
        codes_NL = self.policy.index.semantic_ids.codes_NL
        return {
            "coverage@10": ranked.coverage,
            "level_1_codes": len(np.unique(codes_NL[ranked.covered_N, 0])),
        }

    def verdict(self) -> str:
        """Where the interval of the NDCG@10 difference lies: above zero, below, or on both sides."""
        low, high = self.differences["ndcg@10"]["interval_95"]
        return "helped" if low > 0 else "hurt" if high < 0 else "no clear change"

    def losses(self) -> list[str]:
        """Every other metric that has clearly got worse, in words: NDCG@10 can rise at their cost."""
        said = []
        for name, row in self.differences.items():
            low, high = row["interval_95"]
            words, more_is_better = NAMES[name]
            if name != "ndcg@10" and (high < 0 if more_is_better else low > 0):
                verb = "fell" if more_is_better else "rose"
                said.append(f"{words} clearly {verb}, from {row['before']:.4f} to {row['after']:.4f}")
        return said

    def statement(self) -> str:
        """The verdict in one line, with what the run gave up."""
        changes = {name: _change(self.differences[name]) for name in ("ndcg@10", "hr@50")}
        said = f"{self.verdict()}: NDCG@10 {changes['ndcg@10']}, HR@50 {changes['hr@50']}"
        said += f", on {len(self.judging):,} valid cases"
        return f"{said}; but {', and '.join(losses)}" if (losses := self.losses()) else said

    def write(self, directory: Path, step: dict[str, Any] | None) -> None:
        """Write acceptance.json; `step` says which step was kept, and is taken in as it is."""
        write_json(
            directory / ACCEPTANCE_FILE,
            {
                "verdict": self.verdict(),
                "statement": self.statement(),
                "losses": self.losses(),
                "cases": {
                    "choosing": len(self.choosing),
                    "judging": len(self.judging),
                    "probed": self._probes.num_cases,
                },
                "num_beams": self.num_beams,
                "differences": self.differences,
                KL: self.kl,
                "step": step,
                **{
                    when: metrics_of_ranks(seen.ranked.item_rank_C) | self.of_all_cases(when)
                    for when, seen in self.measured.items()
                },
            },
        )


def halves(num_cases: int, chooses: bool) -> tuple[int, int]:
    """How many cases are judged, and how many ranked while a model trains."""
    choosing = (num_cases + 1) // 2
    return num_cases - choosing if chooses else num_cases, choosing


def _change(row: dict[str, Any]) -> str:
    low, high = row["interval_95"]
    relative = f"{row['difference'] / row['before']:+.1%}, " if row["before"] else ""
    return (
        f"{row['before']:.4f} -> {row['after']:.4f} ({relative}{row['difference']:+.4f}, 95 % "
        f"{low:+.4f} .. {high:+.4f})"
    )


def _spread(count: int, most: int) -> np.ndarray:
    """Positions of at most `most` of `count` cases, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
