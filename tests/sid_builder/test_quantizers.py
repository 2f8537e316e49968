"""What every quantizer must do, and the limits of RQ-KMeans."""

import faiss
import numpy as np
import pytest

from sid_builder import QUANTIZERS, cli
from sid_builder.errors import InputError
from sid_builder.quantizers.rq_kmeans import RQKMeans, RQKMeansConfig
from sid_builder.registry import options_class, resolve

SMALL = {"rq_kmeans": {"levels": 3, "codes_per_level": [16, 12, 8]}}


def make(name, seed=0, **options):
    made = resolve(QUANTIZERS, name, "quantizer")
    return made(cli.build_dataclass(options_class(made), SMALL[name] | options, "quantizer_args"), seed)


@pytest.fixture(scope="module")
def embeddings_ND():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 24))
    return (centres[rng.integers(20, size=1500)] + 0.4 * rng.normal(size=(1500, 24))).astype(np.float32)


@pytest.fixture(scope="module", params=sorted(QUANTIZERS))
def fitted(request, embeddings_ND):
    quantizer = make(request.param)
    quantizer.fit(embeddings_ND)
    return request.param, quantizer


def test_codes_are_in_range_and_used(fitted, embeddings_ND):
    _, quantizer = fitted
    codes_NL = quantizer.encode(embeddings_ND)
    assert codes_NL.dtype == np.int32 and codes_NL.shape == (1500, len(quantizer.level_sizes))
    assert (codes_NL >= 0).all() and (codes_NL < quantizer.level_sizes).all()
    assert all(
        len(np.unique(codes_NL[:, level])) > size / 2 for level, size in enumerate(quantizer.level_sizes)
    )


def test_codes_depend_on_the_seed_alone(fitted, embeddings_ND):
    name, quantizer = fitted
    codes_NL, threads = quantizer.encode(embeddings_ND), faiss.omp_get_max_threads()
    for count in (1, 2, 3):
        faiss.omp_set_num_threads(count)
        again = make(name)
        again.fit(embeddings_ND)
        np.testing.assert_array_equal(again.encode(embeddings_ND), codes_NL)
    faiss.omp_set_num_threads(threads)
    other = make(name, seed=1)
    other.fit(embeddings_ND)
    assert (other.encode(embeddings_ND) != codes_NL).any()


def test_encoding_some_rows_gives_their_codes(fitted, embeddings_ND):
    _, quantizer = fitted
    codes_NL = quantizer.encode(embeddings_ND)
    np.testing.assert_array_equal(quantizer.encode(embeddings_ND[40:43]), codes_NL[40:43])


def test_state_round_trips_without_pickle(fitted, embeddings_ND, tmp_path):
    _, quantizer = fitted
    quantizer.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".safetensors", ".npy", ".json"}
    back = type(quantizer).load(tmp_path)
    assert back.level_sizes == quantizer.level_sizes
    codes_NL = back.encode(embeddings_ND)
    np.testing.assert_array_equal(codes_NL, quantizer.encode(embeddings_ND))
    np.testing.assert_array_equal(back.reconstruct(codes_NL), quantizer.reconstruct(codes_NL))


def test_every_level_explains_more(fitted, embeddings_ND):
    _, quantizer = fitted
    codes_NL, prepared_ND = quantizer.encode(embeddings_ND), quantizer.prepare(embeddings_ND)
    errors = [
        ((prepared_ND - quantizer.reconstruct(codes_NL, levels)) ** 2).sum()
        for levels in range(len(quantizer.level_sizes) + 1)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]


def test_the_last_code_is_the_nearest_by_residual_distance(fitted, embeddings_ND):
    _, quantizer = fitted
    codes_NL = quantizer.encode(embeddings_ND)
    distance_NK = quantizer.last_level_distances(embeddings_ND, codes_NL)
    assert distance_NK.shape == (1500, quantizer.level_sizes[-1])
    chosen_N = np.take_along_axis(distance_NK, codes_NL[:, -1:].astype(np.int64), axis=1)[:, 0]
    np.testing.assert_allclose(chosen_N, distance_NK.min(axis=1), atol=1e-5)


@pytest.mark.parametrize("normalize", ["residuals", "input", "none"])
def test_normalisation_makes_length_irrelevant(embeddings_ND, normalize):
    quantizer = RQKMeans(RQKMeansConfig(codes_per_level=16, normalize=normalize))
    quantizer.fit(embeddings_ND)
    same = (quantizer.encode(embeddings_ND * 3) == quantizer.encode(embeddings_ND)).mean()
    assert same < 0.9 if normalize == "none" else same > 0.999


def test_fewer_items_than_codes_is_an_error(embeddings_ND):
    with pytest.raises(
        InputError, match="16 codes for 10 items with 10 distinct embeddings; give at most 10"
    ):
        make("rq_kmeans").fit(embeddings_ND[:10])
    with pytest.raises(InputError, match="16 codes for 40 items with 1 distinct"):
        make("rq_kmeans").fit(np.repeat(embeddings_ND[:1], 40, axis=0))


def test_items_that_equal_a_centroid_stay_finite():
    """As many codes as items: residuals are zero from the second level on."""
    embeddings_ND = np.eye(12, dtype=np.float32)
    quantizer = RQKMeans(RQKMeansConfig(levels=2, codes_per_level=12))
    quantizer.fit(embeddings_ND)
    codes_NL = quantizer.encode(embeddings_ND)
    assert np.isfinite(quantizer.reconstruct(codes_NL)).all() and len(np.unique(codes_NL[:, 0])) == 12


def test_shapes_that_contradict_are_named():
    with pytest.raises(InputError, match=r"codes_per_level: \[16, 8\] does not fit levels=3"):
        make("rq_kmeans", codes_per_level=[16, 8])
    with pytest.raises(InputError, match=r"quantizer_args\.normalize: 'rows' is not one of"):
        make("rq_kmeans", normalize="rows")
    with pytest.raises(
        InputError, match=r"quantizer_args\.code_per_level: unknown key; did you mean 'codes_per_level'"
    ):
        make("rq_kmeans", code_per_level=3)
