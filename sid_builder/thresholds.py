"""Limits on the quality report: what a set of semantic IDs must reach for the build to succeed."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sid_builder.errors import InputError


@dataclass(frozen=True)
class Thresholds:
    """Limits; None: no limit. Levels that repair appended are left out of `min_used_codes` and `max_gini`.

    Raises:
        InputError: for a limit that no report could be on the right side of, or on the wrong side of.
    """

    max_collision_rate: float | None = field(
        default=None, metadata={"help": "Upper limit of 1 - distinct SIDs / items, 0..1."}
    )
    max_items_sharing: float | None = field(
        default=None, metadata={"help": "Upper limit of the share of items whose SID another item has, 0..1."}
    )
    max_targets_sharing: float | None = field(
        default=None, metadata={"help": "Upper limit of the share of valid and test targets with one, 0..1."}
    )
    max_largest_group: int | None = field(
        default=None, metadata={"help": "Upper limit of the items behind one SID, at least 1."}
    )
    min_level_1_perplexity: float | None = field(
        default=None, metadata={"help": "Lower limit of level 1's perplexity / its codebook size, 0..1."}
    )
    min_used_codes: float | None = field(
        default=None, metadata={"help": "Lower limit of used codes / codebook size, in every level, 0..1."}
    )
    max_gini: float | None = field(
        default=None, metadata={"help": "Upper limit of the Gini coefficient of every level, 0..1."}
    )
    min_co_click_lift: float | None = field(
        default=None, metadata={"help": "Lower limit of level 1's co-click lift (1 is chance)."}
    )
    max_reconstruction_error: float | None = field(
        default=None, metadata={"help": "Upper limit of squared error / squared length after repair."}
    )
    max_identical_embeddings: float | None = field(
        default=None, metadata={"help": "Upper limit of the share of items with another's embedding, 0..1."}
    )

    def __post_init__(self) -> None:
        for name, limit in self.given().items():
            low, high = _RULES[name].range
            # Written so that NaN fails as well.
            if not low <= limit <= high:
                fix = f"{low:g}..{high:g}; give a share" if high == 1 else f"{low:g} and above"
                raise InputError(f"thresholds.{name}: {limit} is outside {fix}")

    def given(self) -> dict[str, float]:
        """Only those that are set."""
        return {name: limit for name, limit in dataclasses.asdict(self).items() if limit is not None}


@dataclass(frozen=True)
class Check:
    """One limit beside what was measured (None: there was nothing to measure it on, which does not pass)."""

    name: str
    measured: float | None
    limit: float
    passed: bool


@dataclass(frozen=True)
class _Rule:
    measure: Callable[[dict[str, Any]], float | None]
    fix: str
    range: tuple[float, float] = (0.0, 1.0)


def _quantized(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [level for level in report["levels"] if not level["appended"]]


def _identical_share(report: dict[str, Any]) -> float | None:
    found = report.get("identical_embeddings")
    return None if found is None else found["items"] / report["summary"]["num_items"]


_SPLIT = "raise codes_per_level or use repair: last_level_assign"
_EVEN = "lower codes_per_level, or choose a quantizer that balances its codes"
_RULES = {
    "max_collision_rate": _Rule(lambda report: report["summary"]["collision_rate"], _SPLIT),
    "max_items_sharing": _Rule(lambda report: report["summary"]["items_sharing"], _SPLIT),
    "max_targets_sharing": _Rule(lambda report: report["summary"]["targets_sharing"], _SPLIT),
    "max_largest_group": _Rule(
        lambda report: report["summary"]["largest_group"], _SPLIT, (1.0, float("inf"))
    ),
    "min_level_1_perplexity": _Rule(
        lambda report: report["levels"][0]["perplexity"] / report["levels"][0]["size"], _EVEN
    ),
    "min_used_codes": _Rule(
        lambda report: min(level["used"] / level["size"] for level in _quantized(report)), _EVEN
    ),
    "max_gini": _Rule(lambda report: max(level["gini"] for level in _quantized(report)), _EVEN),
    "min_co_click_lift": _Rule(
        lambda report: report["summary"]["co_click_lift"],
        "choose an embedder or text_template nearer to what users do",
        (0.0, float("inf")),
    ),
    "max_reconstruction_error": _Rule(
        lambda report: report["summary"]["reconstruction_error"],
        "raise codes_per_level or levels",
        (0.0, float("inf")),
    ),
    "max_identical_embeddings": _Rule(
        _identical_share, "choose a text_template whose fields tell items apart"
    ),
}


def check_thresholds(report: dict[str, Any], thresholds: Thresholds) -> list[Check]:
    """One check per limit that is set, in the order of the fields."""
    checks = []
    for name, limit in thresholds.given().items():
        measured = _RULES[name].measure(report)
        if measured is None:
            passed = False
        else:
            passed = measured <= limit if name.startswith("max_") else measured >= limit
        checks.append(Check(name, measured, limit, passed))
    return checks


def failure_message(checks: list[Check], report_path: str) -> str | None:
    """One line for an InputError: every limit that was missed, what to change for the first, where the
    report is; None when all passed.
    """
    missed = [check for check in checks if not check.passed]
    if not missed:
        return None
    parts = []
    for check in missed:
        if check.measured is None:
            parts.append(
                f"thresholds.{check.name}: there is nothing to measure it on (limit {check.limit:g})"
            )
        else:
            side = "above" if check.name.startswith("max_") else "below"
            parts.append(f"thresholds.{check.name}: {check.measured:.4g} is {side} {check.limit:g}")
    fix = "drop that limit" if missed[0].measured is None else _RULES[missed[0].name].fix
    return f"{', '.join(parts)}; {fix} (see {report_path})"
