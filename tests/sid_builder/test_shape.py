"""The proposal of levels and codes."""

import math

import numpy as np
import pytest

from sid_builder import shape
from sid_builder.errors import InputError


@pytest.mark.parametrize(
    "num_items, levels, codes",
    [
        (512, 3, 32),
        (4_000, 3, 256),
        (12_101, 3, 256),
        (2_000_000, 3, 1024),
        (100_000_000, 3, 4096),
        (1_000_000_000, 4, 8192),
    ],
)
def test_proposals_by_the_skew_of_beauty(num_items, levels, codes):
    proposed = shape.propose(num_items)
    assert proposed.level_sizes == (codes,) * levels and proposed.verdict == "ample"
    assert proposed.prefix_load <= shape.HEADROOM * codes and math.prod(proposed.level_sizes) > 5 * num_items


def test_given_levels_are_kept_if_they_can_be():
    assert shape.propose(2_000_000, levels=4).level_sizes == (256,) * 4
    with pytest.raises(InputError, match="2 levels of 8192 codes are too few for 100000000 items"):
        shape.propose(100_000_000, levels=2)


def test_tight_and_impossible_shapes_get_a_proposal():
    assert shape.advice((256, 256, 256), 12_101) is None
    tight = shape.advice((256, 256, 256), 2_000_000)
    assert tight == (
        "quantizer_args.codes_per_level: with 256 x 256 x 256 codes an item shares its prefix with 369 "
        "others on average, and 256 last codes are to tell them apart; use levels: 3, codes_per_level: 1024"
    )
    with pytest.raises(InputError, match="16 x 16 x 16 makes 4096 SIDs for 12101 items; use levels: 3"):
        shape.advice((16, 16, 16), 12_101)


def test_less_skew_needs_fewer_codes():
    even = shape.Skew(256, (256.0, 256.0, 256.0), (1.0, 1.0, 1.0))
    assert even.prefixes((256, 256)) == 65536 and even.prefixes((512, 512, 512, 512)) == 512**4
    assert shape.propose(2_000_000, even).level_sizes == (256, 256, 256)


@pytest.fixture(scope="module")
def embeddings_ND():
    """Nested clusters with a few crowded ones, so that codes are used unevenly."""
    rng = np.random.default_rng(0)
    sizes = 1 / np.arange(1, 101)
    centres = rng.normal(size=(100, 16))[rng.choice(100, 6000, p=sizes / sizes.sum())]
    return (centres + 0.3 * rng.normal(size=(6000, 16))).astype(np.float32)


def test_measured_skew_foretells_other_shapes(embeddings_ND):
    from sid_builder.quantizers.rq_kmeans import RQKMeans, RQKMeansConfig

    skew = shape.measure_skew(embeddings_ND)
    assert skew.codes_per_level == 256 and skew.effective[0] < 240
    for size in (64, 128):
        quantizer = RQKMeans(RQKMeansConfig(levels=3, codes_per_level=size, iterations=10))
        quantizer.fit(embeddings_ND)
        prefixes = quantizer.encode(embeddings_ND)[:, :2]
        _, group_N, counts = np.unique(prefixes, axis=0, return_inverse=True, return_counts=True)
        load = counts[group_N.reshape(-1)].mean()
        assert shape.judge((size,) * 3, 6000, skew).prefix_load == pytest.approx(load, rel=0.25)


def test_too_few_embeddings_show_no_skew(embeddings_ND):
    assert shape.measure_skew(np.ones((500, 4), dtype=np.float32)) is shape.BEAUTY
    assert shape.measure_skew(embeddings_ND[:64]).codes_per_level == 4


def test_auto_is_filled_in():
    given = {"levels": 3, "codes_per_level": 64}
    assert shape.fill_in(given, 6000) is given
    assert shape.fill_in({"codes_per_level": "auto", "restarts": 2}, 2_000_000) == {
        "levels": 3,
        "codes_per_level": 1024,
        "restarts": 2,
    }
    auto = {"codes_per_level": "auto", "levels": "auto"}
    assert shape.fill_in(auto, 512) == {"levels": 3, "codes_per_level": 32}
    with pytest.raises(InputError, match="levels: 'auto' needs codes_per_level: auto as well, not 64"):
        shape.fill_in({"levels": "auto", "codes_per_level": 64}, 6000)


def test_the_report_holds_plain_values():
    report = shape.to_report((256, 256, 256), 12_101, shape.BEAUTY)
    assert report["used"]["verdict"] == "ample" and report["proposed"]["level_sizes"] == (256, 256, 256)
    assert report["skew"]["codes_per_level"] == 256
