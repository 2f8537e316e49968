"""Repair policies: one conformance suite over the registry, and what each of them promises beyond it.

Legend: N items, L levels, G items of a group, K codes, S items in search of a place.
"""

import dataclasses
import itertools
import time

import numpy as np
import pytest

from sid_builder import REPAIRS, cli
from sid_builder.errors import InputError
from sid_builder.registry import options_class, resolve
from sid_builder.repairs import Repaired, RepairInput, sinkhorn
from sid_builder.repairs.last_level_assign import assign_exactly
from sid_builder.repairs.prefix_groups import colliding_groups, nearest_with_room
from sid_builder.repairs.sinkhorn import sinkhorn_assign
from sid_builder.semantic_ids import SemanticIds
from sid_builder.trie import SidTrie

VARIANTS = [
    ("none", {}),
    ("append_token", {}),
    ("append_token", {"only_colliding": True, "extra_codes": 3}),
    ("last_level_assign", {}),
    ("last_level_assign", {"spill": True}),
    ("last_level_assign", {"sinkhorn_above": 1}),
    ("knn_capacity", {}),
    ("knn_capacity", {"capacity": 3}),
    ("random", {}),
    ("random", {"capacity": 2}),
]
SIZES = (3, 4, 6)


class Points:
    """Distances between random points: one per item, one per code of each level, whatever the prefix."""

    def __init__(self, num_items: int, sizes: tuple[int, ...], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.items = rng.normal(size=(num_items, 2))
        self.codes = [rng.normal(size=(size, 2)) for size in sizes]

    def __call__(self, items_G, prefix):
        difference = self.items[items_G][:, None] - self.codes[len(prefix)][None]
        return (difference**2).sum(axis=2).astype(np.float32)


def given(seed: int, short: bool, num_items: int = 60, sizes=SIZES) -> RepairInput:
    """Random codes with many collisions; with `short`, SIDs of one, two and three levels."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, size, num_items) for size in sizes], axis=1).astype(np.int32)
    if short:
        codes[codes[:, 0] == 0, 1:] = -1
        codes[(codes[:, 0] == 1) & (codes[:, 1] < 2), 2:] = -1
    return RepairInput(codes, sizes, Points(num_items, sizes, seed), seed)


def apply(policy: str, options: dict, repair_input: RepairInput) -> Repaired:
    repair = resolve(REPAIRS, policy, "repair")
    return repair(cli.build_dataclass(options_class(repair), options, "repair_args"), repair_input)


def sids_of(codes_NL: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(code for code in row if code >= 0) for row in codes_NL.tolist()]


def test_every_policy_is_in_the_suite():
    assert {name for name, _ in VARIANTS} == set(REPAIRS)


@pytest.mark.parametrize("short", [False, True], ids=["fixed", "variable"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("policy, options", VARIANTS, ids=str)
def test_conformance(policy, options, seed, short):
    before = given(seed, short)
    untouched = before.codes_NL.copy()
    result = apply(policy, options, before)
    np.testing.assert_array_equal(before.codes_NL, untouched)
    old = SemanticIds(before.codes_NL, before.level_sizes)
    new = SemanticIds(result.codes_NL, result.level_sizes)  # checks ranges and padding
    SidTrie.build(result.codes_NL)  # prefix-free
    assert new.collision_rate <= old.collision_rate
    assert old.collision_rate > 0.1, "the input has something to repair"

    old_sids, new_sids = sids_of(old.codes_NL), sids_of(new.codes_NL)
    if policy == "append_token":
        assert all(mine[: len(theirs)] == theirs for mine, theirs in zip(new_sids, old_sids, strict=True))
        assert new.collision_rate == 0
    elif policy != "none":
        working = {item for group in colliding_groups(old.codes_NL, SIZES) for item in group.items_G.tolist()}
        assert working
        for item in set(range(old.num_items)) - working:
            assert new_sids[item] == old_sids[item]
        if not options.get("spill"):
            assert [sid[:-1] for sid in new_sids] == [sid[:-1] for sid in old_sids]
        assert list(map(len, new_sids)) == list(map(len, old_sids))

    stats = result.stats
    assert stats.policy == policy
    assert stats.items_moved == sum(a != b for a, b in zip(new_sids, old_sids, strict=True))
    capacity = options.get("capacity", 1)
    if policy not in ("none", "append_token"):
        _, counts = np.unique(new.codes_NL, axis=0, return_counts=True)
        assert stats.items_over_capacity == np.maximum(counts - capacity, 0).sum()
        assert stats.groups_over_capacity <= stats.groups_repaired
        assert (stats.groups_over_capacity > 0) == (stats.items_over_capacity > 0)

    again = apply(policy, options, given(seed, short))
    np.testing.assert_array_equal(again.codes_NL, result.codes_NL)
    assert again.level_sizes == result.level_sizes and again.stats == stats


@pytest.mark.parametrize("policy, options", VARIANTS, ids=str)
def test_codes_without_a_collision_stay_as_they_are(policy, options):
    codes_NL = np.array(list(itertools.product(range(3), range(4), range(2))), dtype=np.int32)
    result = apply(policy, options, RepairInput(codes_NL, SIZES, Points(len(codes_NL), SIZES, 0)))
    np.testing.assert_array_equal(result.codes_NL[:, :3], codes_NL)
    if policy == "append_token" and not options:
        assert (result.codes_NL[:, 3] == 0).all() and result.level_sizes == (*SIZES, 1)
    else:
        assert result.codes_NL.shape[1] == 3 and result.stats.items_moved == 0


@pytest.mark.parametrize("policy, options", VARIANTS, ids=str)
def test_a_hundred_thousand_items_take_seconds(policy, options):
    sizes = (128, 128, 256)
    before = given(1, False, 100_000, sizes)
    started = time.process_time()
    result = apply(policy, options, before)
    assert time.process_time() - started < 20
    if policy != "none" and options.get("capacity", 1) == 1:
        assert SemanticIds(result.codes_NL, result.level_sizes).collision_rate == 0


# append_token


def test_append_token_counts_within_each_sid():
    codes_NL = np.array([[0, 1], [2, 2], [0, 1], [0, 1], [2, 0]], dtype=np.int32)
    result = apply("append_token", {}, RepairInput(codes_NL, (3, 3)))
    assert result.codes_NL[:, 2].tolist() == [0, 0, 1, 2, 0] and result.level_sizes == (3, 3, 3)
    assert dataclasses.astuple(result.stats) == ("append_token", 1, 5, 0, 0)
    some = apply("append_token", {"only_colliding": True, "extra_codes": 2}, RepairInput(codes_NL, (3, 3)))
    assert some.codes_NL[:, 2].tolist() == [0, -1, 1, 2, -1] and some.level_sizes == (3, 3, 5)
    assert some.stats.items_moved == 3


def test_append_token_behind_short_sids_uses_the_next_level():
    codes_NL = np.array([[0, -1], [0, -1], [0, -1], [1, 1], [1, 1], [1, 0]], dtype=np.int32)
    result = apply("append_token", {}, RepairInput(codes_NL, (2, 2)))
    assert sids_of(result.codes_NL) == [(0, 0), (0, 1), (0, 2), (1, 1, 0), (1, 1, 1), (1, 0, 0)]
    assert result.level_sizes == (2, 3, 2)
    short_alone = apply("append_token", {"only_colliding": True}, RepairInput(codes_NL[[0, 1, 3]], (2, 2)))
    assert sids_of(short_alone.codes_NL) == [(0, 0), (0, 1), (1, 1)] and short_alone.level_sizes == (2, 2)


# last_level_assign


@pytest.mark.parametrize("sinkhorn_above", [1000, 1], ids=["exact", "sinkhorn"])
def test_each_prefix_repeats_as_little_as_possible(sinkhorn_above):
    before = given(5, False, 90)
    result = apply("last_level_assign", {"sinkhorn_above": sinkhorn_above}, before)
    over = 0
    for prefix in itertools.product(range(3), range(4)):
        group = (before.codes_NL[:, :2] == prefix).all(axis=1)
        counts = np.bincount(result.codes_NL[group, 2], minlength=6)
        if group.sum() > 6:
            over += group.sum() - 6
            assert counts.max() - counts.min() <= 1
        else:
            assert counts.max(initial=0) <= 1
    assert result.stats.items_over_capacity == over > 0


def test_a_short_sid_never_takes_a_code_that_longer_ones_go_through():
    codes_NL = np.array([[0, -1], [0, -1], [1, 0], [1, 1], [2, 2]], dtype=np.int32)
    for policy in ("last_level_assign", "knn_capacity", "random"):
        result = apply(policy, {}, RepairInput(codes_NL, (4, 3), Points(5, (4, 3), 0)))
        assert sorted(sids_of(result.codes_NL[:2])) == [(0,), (3,)]
        crowded = apply(policy, {}, RepairInput(codes_NL, (3, 3), Points(5, (3, 3), 0)))
        assert sids_of(crowded.codes_NL) == sids_of(codes_NL) and crowded.stats.items_over_capacity == 1


def test_the_assignment_is_the_cheapest():
    distance_GK = np.random.default_rng(1).random((4, 6))
    chosen = assign_exactly(distance_GK)
    best = min(itertools.permutations(range(6), 4), key=lambda codes: distance_GK[range(4), codes].sum())
    assert chosen.tolist() == list(best)


@pytest.mark.parametrize("num_items, num_codes", [(700, 16), (500, 60), (300, 130), (120, 150)])
def test_sinkhorn_is_within_three_percent_of_the_exact_assignment(num_items, num_codes, monkeypatch):
    monkeypatch.setattr(sinkhorn, "_FEW", 30)
    rng = np.random.default_rng(0)
    items = rng.normal(size=(num_items, 8)) * np.linspace(1, 0.1, 8) + (rng.random((num_items, 1)) < 0.7)
    codes = rng.normal(size=(num_codes, 8))
    distance = ((items[:, None] - codes) ** 2).sum(axis=2).astype(np.float32)
    chosen = sinkhorn_assign(distance)
    np.testing.assert_array_equal(chosen, sinkhorn_assign(distance))
    counts = np.bincount(chosen, minlength=num_codes)
    assert counts.max() == -(-num_items // num_codes) and counts.min() == num_items // num_codes
    rows = np.arange(num_items)
    exact = distance[rows, assign_exactly(distance)].sum()
    assert exact <= distance[rows, chosen].sum() * (1 + 1e-6)
    assert distance[rows, chosen].sum() <= 1.03 * exact
    assert distance[rows, rng.permutation(num_items) % num_codes].sum() > 1.2 * exact, (
        "the bound says something"
    )


@pytest.mark.parametrize("assign", [assign_exactly, sinkhorn_assign])
def test_identical_items_get_different_codes(assign):
    codes = assign(np.tile(np.arange(4.0), (4, 1)))
    assert sorted(codes.tolist()) == [0, 1, 2, 3]
    many = assign(np.tile(np.random.default_rng(0).random(8), (300, 1)))
    assert set(np.bincount(many).tolist()) == {37, 38}


def test_spill_ends_collisions_at_any_skew():
    """Everything under one first code and one prefix of it: three quarters have to go elsewhere."""
    rng = np.random.default_rng(0)
    codes_NL = np.zeros((200, 3), dtype=np.int32)
    codes_NL[:, 2] = rng.integers(0, 6, 200)
    codes_NL[:20, 1] = 1
    sizes = (5, 8, 6)
    before = RepairInput(codes_NL, sizes, Points(200, sizes, 0))
    stuck = apply("last_level_assign", {}, before)
    assert stuck.stats.groups_over_capacity == 2 and stuck.stats.items_over_capacity == 200 - 12
    result = apply("last_level_assign", {"spill": True}, before)
    assert SemanticIds(result.codes_NL, sizes).collision_rate == 0 == result.stats.items_over_capacity
    # Nobody leaves while there is a place at home, and the second level is filled before the first is left.
    assert (result.codes_NL[:, :2] == [0, 0]).all(axis=1).sum() == 6
    assert (result.codes_NL[:, 0] == 0).sum() == 8 * 6
    full = apply("last_level_assign", {"spill": True}, dataclasses.replace(before, level_sizes=(3, 8, 6)))
    assert full.stats.items_over_capacity == 200 - 3 * 8 * 6 and full.stats.groups_over_capacity == 1


def test_spill_goes_to_the_nearest_prefix_with_room():
    codes_NL = np.array([[0, 0], [0, 0], [0, 0], [2, 0], [2, 1]], dtype=np.int32)

    def distances(items_G, prefix):
        rows = {(): [[0.0, 9.0, 1.0, 4.0]], (0,): [[1.0, 2.0]], (3,): [[5.0, 3.0]]}
        return np.repeat(np.array(rows[tuple(prefix)]), len(items_G), axis=0)

    result = apply("last_level_assign", {"spill": True}, RepairInput(codes_NL, (4, 2), distances))
    # Item 2 (a tie: the last) leaves; 2 is nearer than 3 but full; under 3 the second code is nearer.
    assert sids_of(result.codes_NL) == [(0, 0), (0, 1), (3, 1), (2, 0), (2, 1)]


# knn_capacity and random


@pytest.mark.parametrize("capacity", [1, 2, 5])
def test_knn_capacity_keeps_the_nearest_and_bounds_every_sid(capacity):
    before = given(3, False, 70)
    result = apply("knn_capacity", {"capacity": capacity}, before)
    moved = (result.codes_NL != before.codes_NL).any(axis=1)
    for sid in set(sids_of(before.codes_NL)):
        group = np.flatnonzero((before.codes_NL == sid).all(axis=1))
        own = before.distances(group, sid[:2])[:, sid[2]]
        if moved[group].any():
            nearest = np.argsort(own, kind="stable")[:capacity]
            assert len(nearest) == capacity and not moved[group[nearest]].any()
    _, counts = np.unique(result.codes_NL, axis=0, return_counts=True)
    assert (counts.max() <= capacity) == (result.stats.items_over_capacity == 0)


def test_surplus_goes_to_the_nearest_code_with_room():
    distance_SO = np.array([[1.0, 2.0, 9.0], [0.5, 3.0, 7.0], [0.1, 0.2, 0.3], [4.0, 4.0, 4.0]])
    assert nearest_with_room(distance_SO, np.array([1, 1, 1])).tolist() == [1, -1, 0, 2]
    assert nearest_with_room(distance_SO, np.array([1, 1, 2])).tolist() == [1, 2, 0, 2]
    assert nearest_with_room(distance_SO, np.array([0, 0, 4])).tolist() == [2, 2, 2, 2]
    assert nearest_with_room(distance_SO, np.array([0, 0, 0])).tolist() == [-1] * 4
    same = nearest_with_room(np.ones((500, 400)), np.ones(400, dtype=int))
    assert sorted(same[:400].tolist()) == list(range(400)) and (same[400:] == -1).all()


def test_random_depends_on_the_seed_and_needs_no_distances():
    before = given(3, False)
    results = [
        apply("random", {}, dataclasses.replace(before, distances=None, seed=seed)).codes_NL
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()


@pytest.mark.parametrize(
    "policy, options, message",
    [
        ("pray", {}, r"repair: 'pray' is not known; use one of \['append_token', 'knn_capacity'"),
        ("knn_capacity", {"capacity": 0}, r"repair_args\.capacity: 0; an SID holds at least 1 item"),
        ("random", {"capacity": -1}, r"repair_args\.capacity: -1"),
        ("append_token", {"extra_codes": -1}, r"repair_args\.extra_codes: -1; give 0 or more"),
        ("last_level_assign", {"sinkhorn_above": 0}, r"repair_args\.sinkhorn_above: 0; give at least 1"),
        ("last_level_assign", {"spil": True}, r"repair_args\.spil: unknown key; did you mean 'spill'\?"),
        ("none", {"capacity": 1}, r"repair_args\.capacity: unknown key"),
    ],
)
def test_what_cannot_be_asked_for_is_named(policy, options, message):
    with pytest.raises(InputError, match=message) as caught:
        apply(policy, options, given(0, False))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("policy", ["last_level_assign", "knn_capacity"])
def test_given_sids_have_no_distances(policy):
    with pytest.raises(InputError, match=f"repair: '{policy}' needs a quantizer's distances"):
        apply(policy, {}, dataclasses.replace(given(0, False), distances=None))
