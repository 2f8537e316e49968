"""What every quantizer must do, and what some of them do beyond it."""

import numpy as np
import pytest
import torch

from sid_builder import QUANTIZERS, cli
from sid_builder.errors import InputError
from sid_builder.quantizers import load_quantizer
from sid_builder.quantizers.rq_kmeans import RQKMeans, RQKMeansConfig
from sid_builder.registry import options_class, resolve

TRAINED = {"codes_per_level": [16, 12, 8], "steps": 40, "batch_size": 256, "revive_after": 10}
SMALL = {
    "rq_kmeans": {"codes_per_level": [16, 12, 8]},
    "rqvae": TRAINED
    | {"steps": 120, "learning_rate": 0.01, "warm_up_share": 0.3}
    | {"hidden_sizes": [64], "latent_dim": 24},
    "rvq": TRAINED,
    "rq_kmeans_plus": TRAINED | {"hidden_sizes": [32]},
    "hierarchical_kmeans": {"depth": 3, "branching": [12, 6, 4]},
    "opq": {"levels": 3, "codes_per_level": [16, 12, 8], "rotations": 2},
    "rq_opq": {"levels": 2, "codes_per_level": [16, 12], "tail_codes": 8, "rotations": 2},
    "random": {"codes_per_level": [16, 12, 8]},
}
# Codes of the control stand for nothing; children of a node are as many as its items allow.
CONTROLS = {"random"}


def make(name, seed=0, **options):
    made = resolve(QUANTIZERS, name, "quantizer")
    return made(cli.build_dataclass(options_class(made), SMALL[name] | options, "quantizer_args"), seed)


@pytest.fixture(scope="module")
def embeddings_ND():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 24))
    return (centres[rng.integers(20, size=900)] + 0.4 * rng.normal(size=(900, 24))).astype(np.float32)


@pytest.fixture(scope="module", params=sorted(QUANTIZERS))
def fitted(request, embeddings_ND):
    quantizer = make(request.param)
    quantizer.fit(embeddings_ND)
    return request.param, quantizer


@pytest.fixture
def threads():
    """Sets how many threads torch has, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_codes_are_in_range_and_used(fitted, embeddings_ND):
    _, quantizer = fitted
    codes_NL = quantizer.encode(embeddings_ND)
    assert codes_NL.dtype == np.int32 and codes_NL.shape == (900, len(quantizer.level_sizes))
    assert (codes_NL >= 0).all() and (codes_NL < quantizer.level_sizes).all()
    assert all(
        len(np.unique(codes_NL[:, level])) > size / 2 for level, size in enumerate(quantizer.level_sizes)
    )


def test_codes_depend_on_the_seed_alone(fitted, embeddings_ND, threads):
    name, quantizer = fitted
    codes_NL = quantizer.encode(embeddings_ND)
    for count in (1, 2, 3):
        threads(count)
        again = make(name)
        again.fit(embeddings_ND)
        np.testing.assert_array_equal(again.encode(embeddings_ND), codes_NL)
    other = make(name, seed=1)
    other.fit(embeddings_ND)
    assert (other.encode(embeddings_ND) != codes_NL).any()


def test_encoding_some_rows_gives_their_codes(fitted, embeddings_ND):
    _, quantizer = fitted
    codes_NL = quantizer.encode(embeddings_ND)
    for rows in (slice(40, 43), slice(899, 900), np.arange(800, 0, -7)):
        np.testing.assert_array_equal(quantizer.encode(embeddings_ND[rows]), codes_NL[rows])
    assert quantizer.encode(embeddings_ND[:0]).shape == (0, codes_NL.shape[1])


def test_a_memory_map_gives_the_same_codes(fitted, embeddings_ND, tmp_path):
    name, quantizer = fitted
    np.save(tmp_path / "embeddings.npy", embeddings_ND)
    mapped_ND = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    codes_NL = quantizer.encode(embeddings_ND)
    np.testing.assert_array_equal(quantizer.encode(mapped_ND), codes_NL)
    again = make(name)
    again.fit(mapped_ND)
    np.testing.assert_array_equal(again.encode(embeddings_ND), codes_NL)


def test_state_round_trips_without_pickle(fitted, embeddings_ND, tmp_path):
    _, quantizer = fitted
    quantizer.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".safetensors", ".npy", ".json"}
    back = load_quantizer(tmp_path)
    assert type(back) is type(quantizer) and back.level_sizes == quantizer.level_sizes
    codes_NL = back.encode(embeddings_ND)
    np.testing.assert_array_equal(codes_NL, quantizer.encode(embeddings_ND))
    np.testing.assert_array_equal(back.reconstruct(codes_NL), quantizer.reconstruct(codes_NL))


def test_every_level_explains_more(fitted, embeddings_ND):
    name, quantizer = fitted
    codes_NL, prepared_ND = quantizer.encode(embeddings_ND), quantizer.prepare(embeddings_ND)
    assert prepared_ND.dtype == np.float32 and prepared_ND.shape == embeddings_ND.shape
    errors = [
        ((prepared_ND - quantizer.reconstruct(codes_NL, levels)) ** 2).sum()
        for levels in range(len(quantizer.level_sizes) + 1)
    ]
    if name in CONTROLS:
        assert len(set(errors)) == 1
    else:
        assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]


def test_the_last_code_is_the_nearest_by_residual_distance(fitted, embeddings_ND):
    _, quantizer = fitted
    codes_NL = quantizer.encode(embeddings_ND)
    distance_NK = quantizer.last_level_distances(embeddings_ND, codes_NL)
    assert distance_NK.shape == (900, quantizer.level_sizes[-1]) and distance_NK.dtype == np.float32
    chosen_N = np.take_along_axis(distance_NK, codes_NL[:, -1:].astype(np.int64), axis=1)[:, 0]
    np.testing.assert_allclose(chosen_N, distance_NK.min(axis=1), atol=1e-5)


def test_identical_vectors_share_their_codes(fitted, embeddings_ND):
    name, _ = fitted
    quantizer = make(name)
    doubled_ND = np.concatenate([embeddings_ND[:400], embeddings_ND[:400]])
    quantizer.fit(doubled_ND)
    codes_NL = quantizer.encode(doubled_ND)
    np.testing.assert_array_equal(codes_NL[:400], codes_NL[400:])


def test_values_that_are_not_finite_are_named(fitted, embeddings_ND):
    name, quantizer = fitted
    for value in (np.nan, np.inf):
        broken_ND = embeddings_ND.copy()
        broken_ND[703, 5] = value
        with pytest.raises(InputError, match="row 703 holds NaN or infinite values"):
            make(name).fit(broken_ND)
        with pytest.raises(InputError, match="row 703 holds NaN or infinite values"):
            quantizer.encode(broken_ND)


def test_fewer_vectors_than_codes_is_an_error(fitted, embeddings_ND):
    """All but the control, whose codes need no vectors, refuse; codebooks never shrink silently."""
    name, quantizer = fitted
    size = quantizer.level_sizes[0]
    few = f"{size} codes for 10 items with 10 distinct embeddings; give at most 10"
    for vectors_ND, message in (
        (embeddings_ND[:10], few),
        (np.repeat(embeddings_ND[:1], 40, axis=0), f"{size} codes for 40 items with 1 distinct"),
    ):
        if name in CONTROLS:
            make(name).fit(vectors_ND)
            continue
        with pytest.raises(InputError, match=message):
            make(name).fit(vectors_ND)


def test_vectors_of_another_length_are_refused(fitted, embeddings_ND):
    _, quantizer = fitted
    with pytest.raises(InputError, match="embeddings: 20 dimensions, but the quantizer was fitted on 24"):
        quantizer.encode(embeddings_ND[:, :20])


@pytest.mark.parametrize("normalize", ["residuals", "input", "none"])
def test_normalisation_makes_length_irrelevant(embeddings_ND, normalize):
    quantizer = RQKMeans(RQKMeansConfig(codes_per_level=16, normalize=normalize))
    quantizer.fit(embeddings_ND)
    same = (quantizer.encode(embeddings_ND * 3) == quantizer.encode(embeddings_ND)).mean()
    assert same < 0.9 if normalize == "none" else same > 0.999


def test_items_that_equal_a_centroid_stay_finite():
    """As many codes as items: residuals are zero from the second level on."""
    embeddings_ND = np.eye(12, dtype=np.float32)
    quantizer = RQKMeans(RQKMeansConfig(levels=2, codes_per_level=12))
    quantizer.fit(embeddings_ND)
    codes_NL = quantizer.encode(embeddings_ND)
    assert np.isfinite(quantizer.reconstruct(codes_NL)).all() and len(np.unique(codes_NL[:, 0])) == 12
    np.testing.assert_allclose(quantizer.reconstruct(codes_NL), embeddings_ND, atol=1e-6)


def test_shapes_that_contradict_are_named():
    with pytest.raises(InputError, match=r"codes_per_level: \[16, 8\] does not fit levels=3"):
        make("rq_kmeans", codes_per_level=[16, 8])
    with pytest.raises(InputError, match=r"branching: \[16, 8\] does not fit depth=3"):
        make("hierarchical_kmeans", branching=[16, 8])
    with pytest.raises(InputError, match=r"quantizer_args\.normalize: 'rows' is not one of"):
        make("rq_kmeans", normalize="rows")
    with pytest.raises(
        InputError, match=r"quantizer_args\.code_per_level: unknown key; did you mean 'codes_per_level'"
    ):
        make("rq_kmeans", code_per_level=3)
    with pytest.raises(InputError, match="30 digits for embeddings of 24 dimensions"):
        made = make("opq", levels=30, codes_per_level=4)
        made.fit(np.random.default_rng(0).normal(size=(50, 24)).astype(np.float32))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_that_is_not_there_is_named(embeddings_ND):
    with pytest.raises(InputError, match=r"quantizer_args\.device: 'cuda' is not available"):
        make("rq_kmeans", device="cuda").fit(embeddings_ND)
