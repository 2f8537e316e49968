"""How many levels of how many codes a catalogue needs, from its size and the measured skew.

Codes are used unevenly, and unevenly again under each prefix: 3 x 256 has 65,536 prefixes of two codes, but
two items of Beauty share theirs as often as if there were 5,400. So two million such items would meet 370
others under their prefix, where 256 last codes are to tell them apart. What counts is that number: a shape
holds a catalogue when items find few others under their prefix compared with the last level's codes, because
then every item can get an SID of its own (`repair`).

The effective number of prefixes is one over the chance that two items share one, which a sample shows without
bias. Level by level it is the effective number of codes given the codes before, and grows with a power of the
codebook size, so that two quick runs of k-means foretell other shapes.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sid_builder.errors import InputError
from sid_builder.quantizers.row_hash import num_distinct
from sid_builder.quantizers.rq_kmeans import RQKMeans, RQKMeansConfig

AUTO = "auto"
HEADROOM = 0.25  # of the last level's codes may be taken where an item is; crowded prefixes hold far more
LARGEST_CODEBOOK = 8192  # beyond it another level costs the vocabulary less (OpenOneRec: 3 x 8192)
USUAL_CODEBOOK = 256  # of the field; not more than a code for 16 items
ITEMS_PER_CODE = 16
FEWEST_LEVELS, MOST_LEVELS = 3, 8
FEWEST_MEASURED = 64  # distinct embeddings; the skew of fewer is noise
_SAMPLE_ROWS = 32768
_QUICK_ITERATIONS = 10
_MEASURED_LEVELS = 3


@dataclass(frozen=True)
class Skew:
    """Effective codes of each level, given the codes before it: `effective[l]` with `codes_per_level` codes,
    times (K / codes_per_level) ** `exponents[l]` with K. Further levels are like the last one.
    """

    codes_per_level: int
    effective: tuple[float, ...]
    exponents: tuple[float, ...]

    def prefixes(self, level_sizes: Sequence[int]) -> float:
        """Effective number of different prefixes that levels of these sizes make."""
        total = 1.0
        for level, size in enumerate(level_sizes):
            at = min(level, len(self.effective) - 1)
            codes = self.effective[at] * (size / self.codes_per_level) ** self.exponents[at]
            total *= min(max(codes, 1.0), size)
        return total


# Amazon 2014 Beauty, titles through MiniLM, normalised residuals: what is assumed where nothing was measured.
BEAUTY = Skew(256, (176.0, 30.8, 6.9), (0.87, 0.21, -0.11))


@dataclass(frozen=True)
class Shape:
    """Levels and what they mean for a catalogue.

    Attributes:
        prefix_load: items under the prefix (all codes but the last) of an item, itself included, on average
            over items.
        verdict: "ample"; "tight" when `prefix_load` is above a quarter of the last codebook; "impossible"
            when there are more items than SIDs.
    """

    level_sizes: tuple[int, ...]
    prefix_load: float
    verdict: Literal["ample", "tight", "impossible"]


def measure_skew(embeddings_ND: np.ndarray, seed: int = 0) -> Skew:
    """Quick residual k-means with two codebook sizes on up to 32,768 rows; takes seconds.

    Fewer than 64 distinct embeddings show no skew: it is taken to be Beauty's.
    """
    rows = np.arange(len(embeddings_ND))
    if len(rows) > _SAMPLE_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), _SAMPLE_ROWS, replace=False))
    sample = np.ascontiguousarray(embeddings_ND[rows], dtype=np.float32)
    distinct = num_distinct(sample)
    if distinct < FEWEST_MEASURED:
        return BEAUTY
    large = min(USUAL_CODEBOOK, _power_of_two(distinct // ITEMS_PER_CODE))
    small = large // 4
    few, many = (_effective_codes(sample, size, seed) for size in (small, large))
    exponents = np.log(many / few) / math.log(large / small)
    return Skew(large, tuple(many.tolist()), tuple(exponents.tolist()))


def judge(level_sizes: Sequence[int], num_items: int, skew: Skew = BEAUTY) -> Shape:
    """What a shape means for so many items."""
    load = 1 + (num_items - 1) / skew.prefixes(level_sizes[:-1])
    verdict: Literal["ample", "tight", "impossible"] = "ample"
    if num_items > math.prod(level_sizes):
        verdict = "impossible"
    elif load > HEADROOM * level_sizes[-1]:
        verdict = "tight"
    return Shape(tuple(level_sizes), load, verdict)


def propose(num_items: int, skew: Skew = BEAUTY, levels: int | None = None) -> Shape:
    """The fewest levels (three at least), then the smallest equal codebooks, a power of two, that are ample.

    Codebooks have 256 codes or more where there are 16 items per code, and 8,192 at most.

    Raises:
        InputError: if `levels` were given and no codebook size is ample with them.
    """
    smallest = min(USUAL_CODEBOOK, _power_of_two(max(num_items // ITEMS_PER_CODE, 4), up=True))
    depths = range(FEWEST_LEVELS, MOST_LEVELS + 1) if levels is None else [levels]
    for depth in depths:
        size = smallest
        while size <= LARGEST_CODEBOOK:
            shape = judge((size,) * depth, num_items, skew)
            if shape.verdict == "ample":
                return shape
            size *= 2
    raise InputError(
        f"quantizer_args.levels: {depths[-1]} levels of {LARGEST_CODEBOOK} codes are too few for {num_items} "
        "items with this skew; give more levels"
    )


def fill_in(quantizer_args: dict[str, Any], num_items: int, skew: Skew = BEAUTY) -> dict[str, Any]:
    """Options with `codes_per_level: auto` and `levels: auto` replaced by what `propose` says."""
    codes, levels = quantizer_args.get("codes_per_level"), quantizer_args.get("levels")
    if codes != AUTO and levels != AUTO:
        return quantizer_args
    if codes != AUTO:
        raise InputError(
            f"quantizer_args.levels: 'auto' needs codes_per_level: auto as well, not {codes!r}; "
            "set both or give a number of levels"
        )
    shape = propose(num_items, skew, None if levels in (AUTO, None) else levels)
    return quantizer_args | {"levels": len(shape.level_sizes), "codes_per_level": shape.level_sizes[0]}


def advice(level_sizes: Sequence[int], num_items: int, skew: Skew = BEAUTY) -> str | None:
    """What to tell whoever gave a tight shape, one line with the proposal; None when it is ample.

    Raises:
        InputError: the same, when the shape is impossible.
    """
    given = judge(level_sizes, num_items, skew)
    if given.verdict == "ample":
        return None
    better = propose(num_items, skew)
    shapes = " x ".join(map(str, level_sizes))
    fix = f"use levels: {len(better.level_sizes)}, codes_per_level: {better.level_sizes[0]}"
    if given.verdict == "impossible":
        raise InputError(
            f"quantizer_args.codes_per_level: {shapes} makes {math.prod(level_sizes)} SIDs for {num_items} "
            f"items; {fix}"
        )
    return (
        f"quantizer_args.codes_per_level: with {shapes} codes an item shares its prefix with "
        f"{given.prefix_load - 1:.0f} others on average, and {level_sizes[-1]} last codes are to tell them "
        f"apart; {fix}"
    )


def to_report(given: Sequence[int], num_items: int, skew: Skew) -> dict[str, Any]:
    """Plain values for the quality report: the skew, the shape used and the one proposed."""
    return {
        "skew": dataclasses.asdict(skew),
        "used": dataclasses.asdict(judge(given, num_items, skew)),
        "proposed": dataclasses.asdict(propose(num_items, skew)),
    }


def _effective_codes(sample_ND: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Per level, how many times more effective prefixes there are than one level up, float64 [3]."""
    config = RQKMeansConfig(levels=_MEASURED_LEVELS, codes_per_level=size, iterations=_QUICK_ITERATIONS)
    quantizer = RQKMeans(config, seed)
    quantizer.fit(sample_ND)
    codes_NL = quantizer.encode(sample_ND)
    prefixes = [1.0]
    for depth in range(1, _MEASURED_LEVELS + 1):
        _, counts = np.unique(codes_NL[:, :depth], axis=0, return_counts=True)
        pairs, together = len(codes_NL) * (len(codes_NL) - 1), (counts * (counts - 1)).sum()
        prefixes.append(pairs / max(int(together), 1))
    return np.array(prefixes[1:]) / np.array(prefixes[:-1])


def _power_of_two(number: int, up: bool = False) -> int:
    """The largest power of two not above a number, or the smallest not below it."""
    return 1 << ((number - 1).bit_length() if up else number.bit_length() - 1)
