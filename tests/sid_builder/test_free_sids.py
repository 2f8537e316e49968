"""Free SIDs against a list of all of them."""

import itertools

import numpy as np
import pytest

from sid_builder.free_sids import FreeSids

SIZES = (3, 2, 4)


def overlap(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two SIDs are the same or one is the beginning of the other."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def pad(sids: list[tuple[int, ...]]) -> np.ndarray:
    return np.array([[*sid, *[-1] * (3 - len(sid))] for sid in sids], dtype=np.int32)


def all_sids(lengths) -> list[tuple[int, ...]]:
    return [sid for length in lengths for sid in itertools.product(*(range(size) for size in SIZES[:length]))]


def by_rank(ranks: list[list[int]]):
    """The same order of codes under every prefix of a level."""
    return lambda prefix: np.array(ranks[len(prefix)])


@pytest.mark.parametrize("lengths", [(3,), (2,), (2, 3)])
@pytest.mark.parametrize("seed", range(5))
def test_every_free_sid_is_given_once_and_nothing_else(seed, lengths):
    rng = np.random.default_rng(seed)
    everything = all_sids((1, 2, 3))
    taken: list[tuple[int, ...]] = []
    for place in rng.permutation(len(everything)):
        sid = everything[place]
        if len(taken) < 4 and not any(overlap(sid, other) for other in taken):
            taken.append(sid)
    taken.append(taken[0])  # a collision of the catalogue's
    free = FreeSids(pad(taken), SIZES)
    order = by_rank([rng.permutation(size).tolist() for size in SIZES])
    given = []
    while True:
        wanted = tuple(int(rng.integers(size)) for size in SIZES[: lengths[0]])
        left = [
            sid for sid in all_sids(lengths) if not any(overlap(sid, other) for other in [*taken, *given])
        ]
        sid = free.nearest(wanted, lengths, order)
        if sid is None:
            break
        assert sid in left
        # No other free SID shares more of the wanted prefix.
        shared = max(_common(wanted, other) for other in left)
        assert _common(wanted, sid) == shared
        free.take(sid)
        given.append(sid)
    assert not left and given


def _common(one, other) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def test_the_nearest_code_comes_first_at_every_level():
    free = FreeSids(pad([(0, 0, 1), (2, 0, 0)]), SIZES)
    order = by_rank([[1, 0, 2], [1, 0], [3, 2, 1, 0]])
    assert free.nearest((0, 0, 1), (3,), order) == (0, 0, 3)
    for last in (0, 2, 3):
        free.take((0, 0, last))
    assert free.nearest((0, 0, 1), (3,), order) == (0, 1, 3)
    assert free.nearest((0, 0, 1), (2, 3), order) == (0, 1)
    free.take((0, 1))
    assert free.nearest((0, 0, 1), (3,), order) == (1, 1, 3)
    assert free.nearest((0, 1, 1), (3,), order) == (1, 1, 3), "(0, 1) is a short SID: nothing is below it"


def test_codes_that_are_left_out_are_no_choice():
    free = FreeSids(pad([(0, 0, 0)]), SIZES)
    assert free.nearest((0, 0, 0), (3,), lambda prefix: np.array([0])) is None
    assert free.nearest((0, 0, 2), (3,), lambda prefix: np.array([0])) == (0, 0, 2)


def test_more_places_than_64_bits_hold():
    codes_NL = np.full((3, 12), 4_000, dtype=np.int32)
    codes_NL[1, 11] = 0
    codes_NL[2, 5:] = -1
    codes_NL[2, 4] = 1
    free = FreeSids(codes_NL, (8192,) * 12)
    wanted = tuple(codes_NL[0].tolist())
    sid = free.nearest(wanted, (12,), lambda prefix: np.arange(8192))
    assert sid == (*wanted[:11], 1)
