"""Limits on a report: what is measured against them, what passes, what the message says."""

import numpy as np
import pytest

from sid_builder import thresholds as limits
from sid_builder.cli import build_dataclass
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.report import quality_report
from sid_builder.semantic_ids import SemanticIds
from sid_builder.thresholds import Thresholds, check_thresholds, failure_message


@pytest.fixture(scope="module")
def report():
    # Two of five SIDs are alike; level 1 uses 3 of 4 codes, level 2 both.
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 0], [2, 0]], dtype=np.int32)
    sequences = [[0, 1, 2, 3, 4], [2, 0, 3, 4, 0], [3, 4, 3, 1, 1]]
    interactions = Interactions.leave_one_out(
        ["u", "v", "w"], [np.array(s, dtype=np.int32) for s in sequences]
    )
    embeddings_ND = np.array([[1, 0], [1, 0], [0, 1], [1, 1], [2, 1]], dtype=np.float32)
    report = quality_report(SemanticIds(codes, (4, 2)), interactions, None, embeddings_ND)
    report["summary"]["reconstruction_error"] = 0.25
    return report


SHARES = np.array([3, 1, 1]) / 5
MEASURED = {
    "max_collision_rate": 0.2,
    "max_items_sharing": 0.4,
    "max_targets_sharing": 0.5,
    "max_largest_group": 2,
    "min_level_1_perplexity": np.exp(-(SHARES * np.log(SHARES)).sum()) / 4,
    "min_used_codes": 0.75,
    "max_gini": 0.45,
    "min_co_click_lift": 0.5 / ((4 * 3 + 2 + 1) / 36),
    "max_reconstruction_error": 0.25,
    "max_identical_embeddings": 0.4,
}


def test_every_limit_has_a_case():
    assert set(MEASURED) == set(limits._RULES) == set(Thresholds.__dataclass_fields__)


@pytest.mark.parametrize("name", MEASURED)
def test_a_limit_is_compared_on_the_right_side(report, name):
    measured = MEASURED[name]
    step = 1 if name == "max_largest_group" else 0.01
    beyond = step if name.startswith("min") else -step
    for limit, passes in ((measured + beyond, False), (measured - beyond, True)):
        (check,) = check_thresholds(report, Thresholds(**{name: limit}))
        assert check.name == name and check.limit == limit and check.passed == passes
        assert check.measured == pytest.approx(measured)


def test_a_limit_itself_passes(report):
    assert all(
        c.passed for c in check_thresholds(report, Thresholds(max_items_sharing=0.4, min_used_codes=0.75))
    )
    assert check_thresholds(report, Thresholds()) == []


def test_appended_levels_do_not_count(report):
    level = {"appended": True, "used": 1, "size": 100, "gini": 0.99}
    longer = report | {"levels": [*report["levels"], level]}
    given = Thresholds(max_gini=0.5, min_used_codes=0.7)
    assert all(check.passed for check in check_thresholds(longer, given))


def test_what_cannot_be_measured_does_not_pass(report):
    bare = report | {"summary": report["summary"] | {"co_click_lift": None, "reconstruction_error": None}}
    bare.pop("identical_embeddings")
    given = Thresholds(min_co_click_lift=1, max_reconstruction_error=1, max_identical_embeddings=1)
    checks = check_thresholds(bare, given)
    assert [check.measured for check in checks] == [None] * 3 and not any(check.passed for check in checks)
    message = failure_message(checks[:1], "r.html")
    assert message.startswith("thresholds.min_co_click_lift: there is nothing to measure it on (limit 1); ")


def test_the_message_names_all_that_missed(report):
    given = Thresholds(max_collision_rate=0.0, max_gini=0.4, min_used_codes=0.5)
    message = failure_message(check_thresholds(report, given), "out/sids.rejected/report.html")
    assert message == (
        "thresholds.max_collision_rate: 0.2 is above 0, thresholds.max_gini: 0.45 is above 0.4; "
        "raise codes_per_level or use repair: last_level_assign (see out/sids.rejected/report.html)"
    )
    assert failure_message(check_thresholds(report, Thresholds(min_used_codes=0.5)), "x") is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"max_collision_rate": 2.0},
            r"thresholds\.max_collision_rate: 2\.0 is outside 0\.\.1; give a share",
        ),
        ({"min_level_1_perplexity": 200}, r"thresholds\.min_level_1_perplexity: 200\.0 is outside 0\.\.1"),
        ({"max_largest_group": 0}, r"thresholds\.max_largest_group: 0 is outside 1 and above"),
        ({"max_gini": float("nan")}, r"thresholds\.max_gini: nan is outside"),
        (
            {"max_collisions": 0},
            r"thresholds\.max_collisions: unknown key; did you mean 'max_collision_rate'\?",
        ),
        ({"max_gini": "low"}, r"thresholds\.max_gini: 'low' is not of type float"),
    ],
)
def test_a_senseless_limit_is_refused(given, message):
    with pytest.raises(InputError, match=message) as caught:
        build_dataclass(Thresholds, given, "thresholds")
    assert "\n" not in str(caught.value)
