"""The quality report against figures worked out by hand."""

import re

import numpy as np
import pytest

from sid_builder import report as report_package
from sid_builder.artifact import to_json
from sid_builder.catalog import Catalog
from sid_builder.interactions import Interactions
from sid_builder.quantizers.rq_kmeans import RQKMeans, RQKMeansConfig
from sid_builder.report import co_click_lift, gini, level_use, quality_report, reconstruction_errors
from sid_builder.report import vectors as report_vectors
from sid_builder.report.codebooks import branching, prefix_ids
from sid_builder.report.labels import category_labels, domain_label, label_agreement
from sid_builder.report.vectors import (
    nearest_to_prefixes,
    neighbour_hit_rate,
    project,
    same_vectors,
    without_appended,
)
from sid_builder.semantic_ids import SemanticIds

# Items 0, 1 share an SID; 0, 1, 2 share the first code.
CODES = np.array([[0, 0], [0, 0], [0, 1], [1, 0], [2, 0]], dtype=np.int32)
TITLES = ("red shoes", "red shoes, wide", "blue shoes", "tent", "stove")


@pytest.fixture
def sids():
    return SemanticIds(CODES, (4, 2))


@pytest.fixture
def interactions():
    sequences = [[0, 1, 2, 3, 4], [2, 0, 3, 4, 0], [3, 4, 3, 1, 1]]
    return Interactions.leave_one_out(["u", "v", "w"], [np.array(s, dtype=np.int32) for s in sequences])


@pytest.fixture
def catalog():
    kinds = (["shop", "wear"], ["shop", "wear"], ["shop", "wear"], ["shop", "camp"], ["shop"])
    return Catalog.from_rows(
        [
            {"item_id": f"i{n}", "title": title, "categories": kind, "domain": "a" if n < 3 else "b"}
            for n, (title, kind) in enumerate(zip(TITLES, kinds, strict=True))
        ]
    )


def test_collisions_and_targets(sids, interactions):
    report = quality_report(sids, interactions)
    assert report["collisions"]["collision_rate"] == pytest.approx(1 - 4 / 5)
    assert report["collisions"]["items_sharing"] == pytest.approx(2 / 5)
    assert report["collisions"]["largest_groups"] == [{"sid": "<a_0><b_0>", "size": 2, "item_index": [0, 1]}]
    assert report["collisions"]["group_sizes"] == {"2": 1}
    # Targets are 3, 4, 1 (valid) and 4, 0, 1 (test): three of six have the shared SID.
    assert report["targets"]["targets_sharing"] == pytest.approx(3 / 6)
    assert report["targets"]["items_per_target_sid"] == pytest.approx((3 * 2 + 3 * 1) / 6)
    assert report["targets"]["item_sid_ratio"] == pytest.approx((3 * 0.5 + 3) / 6)


def test_groups_are_largest_first_and_named(interactions, catalog):
    codes = np.array([[1], [0], [0], [1], [1]], dtype=np.int32)
    embeddings_ND = np.array([[1, 0], [0, 1], [-0.0, 1], [1, 0], [1, 1]], dtype=np.float32)
    report = quality_report(SemanticIds(codes, (2,)), interactions, catalog, embeddings_ND)
    large, small = report["collisions"]["largest_groups"]
    assert [item["item_id"] for item in large["items"]] == ["i0", "i3", "i4"]
    assert [item["title"] for item in small["items"]] == ["red shoes, wide", "blue shoes"]
    # 0.0 and -0.0 are one embedding; the large group could have been split.
    assert small["identical_embeddings"] and not large["identical_embeddings"]
    assert report["identical_embeddings"] == {
        "items": 4,
        "groups": 2,
        "largest_group": 2,
        "largest": [{"item_id": "i0", "title": "red shoes"}, {"item_id": "i3", "title": "tent"}],
    }


def test_level_use():
    use = level_use(CODES[:, 0], 4)
    assert use["used"] == 3 and use["dead"] == 1 and use["counts"] == [3, 1, 1, 0] and use["most"] == 3
    shares = np.array([3, 1, 1]) / 5
    assert use["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert level_use(np.arange(4), 4)["perplexity"] == pytest.approx(4)
    assert level_use(np.array([0, 1, -1, -1]), 2)["perplexity"] == pytest.approx(2)
    assert level_use(np.array([-1, -1]), 2)["perplexity"] == 0.0


def test_gini():
    assert gini(np.array([5, 5, 5, 5])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert gini(np.array([0, 0])) == 0


def test_prefixes_are_numbered_in_order_of_their_codes():
    codes = np.random.default_rng(0).integers(0, 5, (300, 3)).astype(np.int32)
    codes[:40, 2] = -1
    for depth in range(1, 4):
        _, expected = np.unique(codes[:, :depth], axis=0, return_inverse=True)
        np.testing.assert_array_equal(prefix_ids(codes)[:, depth - 1], expected.reshape(-1))


def test_branching_counts_children_and_not_the_end():
    # Root: 0, 1, 2. Under 0: 0, 1; under 1: 5; 2 ends. Under 0-0: 0, 1, 2.
    codes = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, -1], [1, 5, -1], [2, -1, -1]], dtype=np.int32)
    root, second, third = branching(codes, prefix_ids(codes))
    assert (root["nodes"], root["mean"], root["max"], root["single_child"]) == (1, 3, 3, 0)
    assert (second["nodes"], second["mean"], second["max"], second["single_child"]) == (2, 1.5, 2, 0.5)
    assert (third["nodes"], third["median"], third["max"]) == (1, 3, 3)


def test_levels_that_repair_appended_are_marked(sids, interactions):
    quantizer = RQKMeans(RQKMeansConfig(levels=1, codes_per_level=4))
    levels = quality_report(sids, interactions, quantizer=quantizer)["levels"]
    assert [level["appended"] for level in levels] == [False, True]


def test_co_click_lift_uses_train_neighbours_only(sids, interactions):
    # Train pairs: 0-1, 1-2; 2-0, 0-3; 3-4, 4-3. First codes: 00 00 00 01 12 21.
    lift = co_click_lift(sids, interactions, depth=1)
    assert lift["pairs"] == 6 and lift["together"] == pytest.approx(3 / 6)
    assert lift["chance"] == pytest.approx(4 / 6 * 3 / 6 + 1 / 6 * 2 / 6 + 1 / 6 * 1 / 6)
    assert lift["lift"] == pytest.approx(lift["together"] / lift["chance"])
    assert quality_report(sids, interactions)["co_click"] == [lift]


def test_random_codes_have_no_lift():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 400, 30).astype(np.int32) for _ in range(300)]
    sids = SemanticIds(rng.integers(0, 8, (400, 2)).astype(np.int32), (8, 8))
    interactions = Interactions.leave_one_out([str(u) for u in range(300)], sequences)
    assert co_click_lift(sids, interactions, 1)["lift"] == pytest.approx(1, abs=0.1)


def test_labels_leave_out_what_all_items_have(catalog):
    (label,) = category_labels(catalog)
    assert label.name == "category 2" and label.values == ["wear", "camp"]
    assert label.value_N.tolist() == [0, 0, 0, 1, -1]
    domain = domain_label(catalog)
    assert domain is not None and domain.value_N.tolist() == [0, 0, 0, 1, 1]
    assert domain_label(Catalog.from_rows([{"item_id": "1"}, {"item_id": "2"}])) is None


def test_a_category_of_one_item_and_none_at_all():
    catalog = Catalog.from_rows([{"item_id": "1", "categories": ["a"]}, {"item_id": "2", "categories": "b"}])
    (label,) = category_labels(catalog)
    depth = label_agreement(label, np.array([[0], [0]]))["depths"][0]
    assert depth["purity"] == 0.5 and depth["together"] == 0 and depth["lift"] is None
    assert category_labels(Catalog.from_rows([{"item_id": "1"}, {"item_id": "2"}])) == []


def test_agreement_with_labels(sids, catalog):
    # First codes 0 0 0 1 2, values w w w c -: the four items that have one.
    (label,) = category_labels(catalog)
    agreement = label_agreement(label, prefix_ids(sids.codes_NL))
    first, both = agreement["depths"]
    assert agreement["largest"] == pytest.approx(3 / 4) and agreement["items"] == 4
    assert first["purity"] == 1.0 and first["nmi"] == pytest.approx(1.0)
    # 6 of the 12 ordered pairs have one value; all 6 pairs with one prefix do.
    assert first["together"] == 1.0 and first["chance"] == pytest.approx(0.5) and first["lift"] == 2.0
    # Prefixes of two codes: {0, 1}, {2}, {3}.
    entropy_prefix = 0.5 * np.log(2) + 0.5 * np.log(4)
    entropy_value = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert both["nmi"] == pytest.approx(2 * entropy_value / (entropy_prefix + entropy_value))


def test_domains_share_codebooks(sids, interactions, catalog):
    report = quality_report(sids, interactions, catalog)
    first, second = report["domains"]
    assert (first["domain"], first["items"], first["used"]) == ("a", 3, [1, 2])
    assert first["collision_rate"] == pytest.approx(1 / 3) and first["own_level_1"] == 1.0
    assert (second["domain"], second["used"], second["collision_rate"]) == ("b", [2, 1], 0.0)
    assert report["labels"][-1]["label"] == "domain"


def fitted(embeddings_ND, levels=2, codes=16):
    quantizer = RQKMeans(RQKMeansConfig(levels=levels, codes_per_level=codes))
    quantizer.fit(embeddings_ND)
    return quantizer


def test_reconstruction_and_the_cost_of_repair():
    embeddings_ND = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    quantizer = fitted(embeddings_ND)
    codes_NL = quantizer.encode(embeddings_ND)
    worse_NL = codes_NL.copy()
    worse_NL[:20, 1] = (worse_NL[:20, 1] + 1) % 16
    errors = reconstruction_errors(quantizer, embeddings_ND, codes_NL, worse_NL)
    assert 1 > errors["error_by_level"][0] > errors["error_by_level"][1] == errors["error"] > 0
    target_ND, guess_ND = quantizer.prepare(embeddings_ND), quantizer.reconstruct(codes_NL)
    assert errors["error"] == pytest.approx(((target_ND - guess_ND) ** 2).sum() / (target_ND**2).sum())
    assert (
        errors["repair_cost"] == pytest.approx(errors["error_after_repair"] / errors["error"] - 1)
        and errors["repair_cost"] > 0
    )
    appended_NL = np.concatenate([codes_NL, np.zeros((200, 1), dtype=np.int32)], axis=1)
    assert reconstruction_errors(quantizer, embeddings_ND, codes_NL, appended_NL)["repair_cost"] == 0


def test_an_appended_code_stands_for_nothing():
    first_NL = np.array([[3, 1], [2, -1], [2, -1]], dtype=np.int32)
    final_NL = np.array([[3, 0, 0], [2, 0, -1], [2, 1, -1]], dtype=np.int32)
    assert without_appended(first_NL, final_NL).tolist() == [[3, 0], [2, -1], [2, -1]]


def test_memory_mapped_embeddings_are_sampled_in_blocks(tmp_path, monkeypatch):
    np.save(tmp_path / "embeddings.npy", np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32))
    embeddings_ND = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    quantizer = fitted(np.array(embeddings_ND))
    codes_NL = quantizer.encode(embeddings_ND)
    whole = reconstruction_errors(quantizer, embeddings_ND, codes_NL, codes_NL)
    monkeypatch.setattr(report_vectors, "BLOCK", 64)
    blocks = reconstruction_errors(quantizer, embeddings_ND, codes_NL, codes_NL)
    assert blocks["error"] == pytest.approx(whole["error"]) and blocks["items"] == 500
    monkeypatch.setattr(report_vectors, "ERROR_ITEMS", 300)
    sampled = reconstruction_errors(quantizer, embeddings_ND, codes_NL, codes_NL)
    assert sampled["items"] == 300 and sampled["error"] == pytest.approx(whole["error"], rel=0.1)
    assert len(np.unique(same_vectors(embeddings_ND))) == 500


class Rounding:
    """A quantizer of one code: the sign of the first dimension; every item becomes (1, 0) or (-1, 0)."""

    level_sizes = (2,)

    def prepare(self, embeddings_ND):
        return embeddings_ND

    def reconstruct(self, codes_NL, levels=None):
        return np.where(codes_NL[:, :1] == 1, [[1.0, 0.0]], [[-1.0, 0.0]]).astype(np.float32)


def test_neighbour_hit_rate_counts_ties_by_chance(monkeypatch):
    monkeypatch.setattr(report_vectors, "CUTOFFS", (1, 2))
    angle_N = np.radians([0, 10, 30, 180, 190])
    embeddings_ND = np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1).astype(np.float32)
    codes_NL = (embeddings_ND[:, :1] > 0).astype(np.int32)
    pairs = np.array([0, 3, 0]), np.array([2, 4, 3])  # second nearest; nearest; among the last two
    rate = neighbour_hit_rate(Rounding(), embeddings_ND, codes_NL, pairs)
    one, two = rate["at"]
    assert rate["pairs"] == 3 and rate["candidates"] == 5 and one["chance"] == 0.25
    assert one["embeddings"] == pytest.approx(1 / 3) and two["embeddings"] == pytest.approx(2 / 3)
    # Quantized, 1 and 2 tie as neighbours of 0 (one half), 4 is the only one of 3, 3 is never near 0.
    assert one["quantized"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert two["quantized"] == pytest.approx((1 + 1 + 0) / 3)
    none = np.array([], dtype=np.int32)
    assert neighbour_hit_rate(Rounding(), embeddings_ND, codes_NL, (none, none)) is None


def test_a_lossless_quantizer_keeps_all_neighbours(monkeypatch):
    embeddings_ND = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    quantizer = fitted(embeddings_ND, levels=1, codes=64)
    pairs = tuple(np.random.default_rng(1).permutation(64)[:40].reshape(2, 20))
    monkeypatch.setattr(report_vectors, "BLOCK", 10)
    monkeypatch.setattr(report_vectors, "CANDIDATES", 30)
    rate = neighbour_hit_rate(quantizer, embeddings_ND, quantizer.encode(embeddings_ND), pairs)
    assert rate["at"][0]["quantized"] == rate["at"][0]["embeddings"] < 1
    assert 30 <= rate["candidates"] < 64


def test_items_nearest_to_a_prefix_may_have_another(interactions, catalog):
    embeddings_ND = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [-1, 0]], dtype=np.float32)
    sids = SemanticIds(np.array([[0], [0], [1], [2], [2]], dtype=np.int32), (3,))
    prefixes = quality_report(sids, interactions, catalog, embeddings_ND)["prefixes"]
    by_prefix = {prefix["prefix"]: prefix for prefix in prefixes}
    assert list(by_prefix) == ["<a_0>", "<a_2>", "<a_1>"]  # two have two items, the lower code first
    nearest = by_prefix["<a_1>"]["nearest"]
    assert [item["item_id"] for item in nearest[:2]] == ["i2", "i3"]
    assert [item["inside"] for item in nearest[:2]] == [True, False] and nearest[0]["cosine"] == 1.0
    without = quality_report(sids, interactions, catalog)["prefixes"]
    # In train item 3 occurs three times, item 4 once.
    assert [(item["item_id"], item["train_count"]) for item in without[1]["nearest"]] == [
        ("i3", 3),
        ("i4", 1),
    ]
    found, candidates = nearest_to_prefixes(embeddings_ND, [np.array([4])], show=1)
    assert candidates == 5 and found[0][0].tolist() == [4]


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_the_map_keeps_far_groups_apart(method):
    rng = np.random.default_rng(0)
    centre_2D = np.eye(2, 6)
    embeddings_ND = (np.repeat(centre_2D, 30, axis=0) + rng.normal(scale=0.05, size=(60, 6))).astype(
        np.float32
    )
    place_R2, variance = project(embeddings_ND, np.arange(60), method)
    spread = np.linalg.norm(place_R2[:30] - place_R2[:30].mean(axis=0), axis=1).max()
    assert np.linalg.norm(place_R2[:30].mean(axis=0) - place_R2[30:].mean(axis=0)) > 2 * spread
    assert (variance is None) == (method == "tsne") and (variance or 1) > 0.8


def test_one_level_has_no_prefix(interactions):
    report = to_json(quality_report(SemanticIds(np.arange(5, dtype=np.int32)[:, None], (5,)), interactions))
    assert report["summary"]["co_click_lift"] is None and report["co_click"] == []


def _keys(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            if key not in ("group_sizes", "most_frequent"):  # their keys are data
                yield from _keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item)


def test_every_key_is_documented(interactions, catalog):
    embeddings_ND = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    quantizer = fitted(embeddings_ND, codes=2)
    codes_NL = quantizer.encode(embeddings_ND)
    sids = SemanticIds(codes_NL, (2, 2))
    report = quality_report(sids, interactions, catalog, embeddings_ND, quantizer, codes_NL)
    documented = set(re.findall(r"\w+", report_package.__doc__))
    assert not set(_keys(report)) - documented
