"""Whether a run helped: valid metrics before and after on the same cases, with a paired bootstrap, said in
one sentence.

Valid cases are for this decision only; they are never prompts and never targets of a reward.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serve.decoding.recommender import Recommender
from serve.evaluation.metrics import RankedCases, gains, hits, metrics_of_ranks
from serve.evaluation.model_ranking import rank_targets, sample_cases
from serve.evaluation.paired import paired_differences
from sid_builder.artifact import write_json
from sid_builder.interactions import Histories

ACCEPTANCE_FILE = "acceptance.json"
HEADLINE = {"ndcg@10": (gains, 10), "hr@10": (hits, 10), "hr@50": (hits, 50)}


@dataclass
class Acceptance:
    """Fixed cases, ranked by item-level protocol before and after training."""

    policy: Recommender
    cases: Histories
    num_beams: int
    measured: dict[str, RankedCases] = field(default_factory=dict)

    @staticmethod
    def on_valid(policy: Recommender, max_cases: int, num_beams: int, seed: int) -> "Acceptance":
        """At most `max_cases` valid cases drawn by seed; none for 0."""
        cases = policy.interactions.histories("valid")
        cases = sample_cases(cases, max_cases, seed) if max_cases else cases.take(np.arange(0))
        return Acceptance(policy, cases, num_beams)

    def measure(self, when: str, model: Any) -> None:
        """Rank the cases with `model` (plain or wrapped by PEFT); kept as "before" or "after"."""
        if len(self.cases) == 0:
            return
        policy = Recommender(model, self.policy.tokenizer, self.policy.index, self.policy.template)
        self.measured[when] = rank_targets(policy, self.cases, self.num_beams)

    def differences(self) -> dict[str, dict[str, Any]]:
        """Per headline metric: before, after, after - before and its paired 95 % bootstrap interval."""
        before, after = self.measured["before"], self.measured["after"]
        return paired_differences(before.item_rank_C, after.item_rank_C, HEADLINE)

    def verdict(self) -> str:
        """Where the interval of the NDCG@10 difference lies: above zero, below, or on both sides."""
        low, high = self.differences()["ndcg@10"]["interval_95"]
        return "helped" if low > 0 else "hurt" if high < 0 else "no clear change"

    def statement(self) -> str:
        if len(self.measured) < 2:
            return "no verdict: valid_cases is 0 or there are no valid cases"
        parts = []
        for name, row in self.differences().items():
            relative = f" ({row['difference'] / row['before']:+.1%})" if row["before"] else ""
            parts.append(f"{name.upper()} {row['before']:.4f} -> {row['after']:.4f}{relative}")
        low, high = self.differences()["ndcg@10"]["interval_95"]
        return (
            f"{self.verdict()}: {', '.join(parts)} on {len(self.cases)} valid cases "
            f"(NDCG@10 difference, 95 % interval {low:+.4f} .. {high:+.4f})"
        )

    def write(self, directory: Path) -> None:
        """Write acceptance.json: verdict, differences and all metrics before and after, item-level."""
        if len(self.measured) < 2:
            return
        content = {
            "verdict": self.verdict(),
            "statement": self.statement(),
            "cases": len(self.cases),
            "num_beams": self.num_beams,
            "differences": self.differences(),
            **{when: metrics_of_ranks(ranked.item_rank_C) for when, ranked in self.measured.items()},
            "coverage": {when: ranked.coverage for when, ranked in self.measured.items()},
            "invalid_rate": {when: ranked.invalid_rate for when, ranked in self.measured.items()},
        }
        write_json(directory / ACCEPTANCE_FILE, content)
