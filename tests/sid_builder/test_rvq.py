"""R-VQ: gradient-trained codebooks in the input space against RQ-KMeans', and what its options change."""

import numpy as np
import pytest

from sid_builder import cli
from sid_builder.quantizers import load_quantizer
from sid_builder.quantizers.rq_kmeans import RQKMeans, RQKMeansConfig
from sid_builder.quantizers.rvq import RVQ, RVQConfig

SMALL = {"codes_per_level": 16, "steps": 150, "batch_size": 256, "learning_rate": 0.003}


def make(seed=0, **options):
    return RVQ(cli.build_dataclass(RVQConfig, SMALL | options, "quantizer_args"), seed)


@pytest.fixture(scope="module")
def embeddings_MD():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 24))
    return (centres[rng.integers(20, size=800)] + 0.4 * rng.normal(size=(800, 24))).astype(np.float32)


def error(quantizer, embeddings_MD, levels=None):
    prepared_MD = quantizer.prepare(embeddings_MD)
    rest_MD = prepared_MD - quantizer.reconstruct(quantizer.encode(embeddings_MD), levels)
    return (rest_MD**2).sum() / (prepared_MD**2).sum()


@pytest.mark.parametrize("normalize", ["residuals", "input"])
def test_training_gains_on_rq_kmeans(embeddings_MD, normalize):
    """Later levels pull at the earlier codes, which k-means fixes before it looks at what they leave."""
    trained, clustered = (
        make(normalize=normalize),
        RQKMeans(RQKMeansConfig(codes_per_level=16, normalize=normalize)),
    )
    for quantizer in (trained, clustered):
        quantizer.fit(embeddings_MD)
    assert error(trained, embeddings_MD) < error(clustered, embeddings_MD)


def test_codes_are_vectors_of_the_input_space(embeddings_MD):
    quantizer = make(normalize="none")
    quantizer.fit(embeddings_MD)
    codes_NL = quantizer.encode(embeddings_MD)
    codes = [weights.numpy() for weights in quantizer.network.codebooks.codes]
    expected_ND = codes[0][codes_NL[:, 0]] + codes[1][codes_NL[:, 1]]
    np.testing.assert_allclose(quantizer.reconstruct(codes_NL, 2), expected_ND, rtol=1e-5, atol=1e-6)
    assert not quantizer.reconstruct(codes_NL, 0).any()


def test_scales_restore_the_length_of_residuals(embeddings_MD):
    quantizer = make()
    quantizer.fit(embeddings_MD)
    scales = quantizer.network.codebooks.scales.numpy()
    rest_MD = quantizer.prepare(embeddings_MD) - quantizer.reconstruct(quantizer.encode(embeddings_MD), 1)
    assert scales[0] == 1 and scales[1] == pytest.approx(np.linalg.norm(rest_MD, axis=1).mean(), rel=0.1)


def test_without_k_means_revival_spreads_the_codes(embeddings_MD):
    quantizer = make(kmeans_init=False, revive_below=0.3, revive_after=10, steps=300)
    quantizer.fit(embeddings_MD)
    codes_NL = quantizer.encode(embeddings_MD)
    assert all(len(np.unique(codes_NL[:, level])) >= 12 for level in range(3))


def test_saved_and_loaded_by_type(embeddings_MD, tmp_path):
    quantizer = make(steps=5)
    quantizer.fit(embeddings_MD)
    quantizer.save(tmp_path)
    back = load_quantizer(tmp_path)
    assert isinstance(back, RVQ)
    np.testing.assert_array_equal(back.encode(embeddings_MD), quantizer.encode(embeddings_MD))
