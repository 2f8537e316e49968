"""The quality report against figures worked out by hand."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from sid_builder.artifact import to_json
from sid_builder.interactions import Interactions
from sid_builder.quantizers.rq_kmeans import RQKMeans, RQKMeansConfig
from sid_builder.report import co_click_lift, gini, level_use, quality_report, reconstruction_errors
from sid_builder.report_plot import plot_report
from sid_builder.semantic_ids import SemanticIds

# Items 0, 1 share an SID; 0, 1, 2 share the first code.
CODES = np.array([[0, 0], [0, 0], [0, 1], [1, 0], [2, 0]], dtype=np.int32)


@pytest.fixture
def sids():
    return SemanticIds(CODES, (4, 2))


@pytest.fixture
def interactions():
    sequences = [[0, 1, 2, 3, 4], [2, 0, 3, 4, 0], [3, 4, 3, 1, 1]]
    return Interactions.leave_one_out(["u", "v", "w"], [np.array(s, dtype=np.int32) for s in sequences])


def test_collisions_and_targets(sids, interactions):
    report = quality_report(sids, interactions)
    assert report["collisions"]["collision_rate"] == pytest.approx(1 - 4 / 5)
    assert report["collisions"]["items_sharing"] == pytest.approx(2 / 5)
    assert report["collisions"]["largest_groups"] == [{"sid": "<a_0><b_0>", "item_index": [0, 1]}]
    # Targets are 3, 4, 1 (valid) and 4, 0, 1 (test): three of six have the shared SID.
    assert report["targets"]["targets_sharing"] == pytest.approx(3 / 6)
    assert report["targets"]["items_per_target_sid"] == pytest.approx((3 * 2 + 3 * 1) / 6)
    assert report["targets"]["item_sid_ratio"] == pytest.approx((3 * 0.5 + 3) / 6)


def test_level_use():
    use = level_use(CODES[:, 0], 4)
    assert use["used"] == 3 and use["counts"] == [3, 1, 1, 0]
    shares = np.array([3, 1, 1]) / 5
    assert use["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert level_use(np.arange(4), 4)["perplexity"] == pytest.approx(4)
    assert level_use(np.array([0, 1, -1, -1]), 2)["perplexity"] == pytest.approx(2)


def test_gini():
    assert gini(np.array([5, 5, 5, 5])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)


def test_co_click_lift_uses_train_neighbours_only(sids, interactions):
    # Train pairs: 0-1, 1-2; 2-0, 0-3; 3-4, 4-3. First codes: 00 00 00 01 12 21.
    lift = co_click_lift(sids, interactions, depth=1)
    assert lift["pairs"] == 6 and lift["together"] == pytest.approx(3 / 6)
    assert lift["chance"] == pytest.approx(4 / 6 * 3 / 6 + 1 / 6 * 2 / 6 + 1 / 6 * 1 / 6)
    assert lift["lift"] == pytest.approx(lift["together"] / lift["chance"])


def test_random_codes_have_no_lift():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 400, 30).astype(np.int32) for _ in range(300)]
    sids = SemanticIds(rng.integers(0, 8, (400, 2)).astype(np.int32), (8, 8))
    interactions = Interactions.leave_one_out([str(u) for u in range(300)], sequences)
    assert co_click_lift(sids, interactions, 1)["lift"] == pytest.approx(1, abs=0.1)


def test_reconstruction_and_the_cost_of_repair():
    embeddings_ND = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    quantizer = RQKMeans(RQKMeansConfig(levels=2, codes_per_level=16))
    quantizer.fit(embeddings_ND)
    codes_NL = quantizer.encode(embeddings_ND)
    worse_NL = codes_NL.copy()
    worse_NL[:20, 1] = (worse_NL[:20, 1] + 1) % 16
    errors = reconstruction_errors(quantizer, embeddings_ND, codes_NL, worse_NL)
    assert 1 > errors["error_by_level"][0] > errors["error_by_level"][1] == errors["error"] > 0
    assert (
        errors["repair_cost"] == pytest.approx(errors["error_after_repair"] / errors["error"] - 1)
        and errors["repair_cost"] > 0
    )


@pytest.mark.parametrize("made_here", [True, False])
def test_the_picture_is_drawn_from_the_json(sids, interactions, tmp_path, made_here):
    report = to_json(quality_report(sids, interactions))
    policy = "last_level_assign" if made_here else "none"
    report["repair"] = {
        "policy": policy,
        "items_moved": 0,
        "groups_over_capacity": 0,
        "collision_rate_before": 0.2,
    }
    report["source"] = {"name": "test", "num_sequences": 3}
    if made_here:
        report["reconstruction"] = {"error_by_level": [0.5, 0.3], "error": 0.3, "error_after_repair": 0.31}
    plot_report(json.loads(json.dumps(report)), tmp_path / "report.png")
    pixels = imread(tmp_path / "report.png")
    assert pixels.shape[:2] == (950, 1500) and pixels[..., :3].std() > 0.05


def test_one_level_has_no_prefix(interactions, tmp_path):
    report = to_json(quality_report(SemanticIds(np.arange(5, dtype=np.int32)[:, None], (5,)), interactions))
    assert report["summary"]["co_click_lift"] is None and report["co_click"] == []
