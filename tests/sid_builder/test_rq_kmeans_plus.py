"""RQ-KMeans+: it starts as RQ-KMeans, and training only improves on that."""

import numpy as np
import pytest
import torch

from sid_builder import cli
from sid_builder.errors import InputError
from sid_builder.quantizers.neural.training import Trainer
from sid_builder.quantizers.rq_kmeans import RQKMeans, RQKMeansConfig
from sid_builder.quantizers.rq_kmeans_plus import RQKMeansPlus, RQKMeansPlusConfig

SMALL = {"codes_per_level": 16, "hidden_sizes": [32], "steps": 200, "batch_size": 256}


def make(**options):
    return RQKMeansPlus(cli.build_dataclass(RQKMeansPlusConfig, SMALL | options, "quantizer_args"), seed=0)


@pytest.fixture(scope="module")
def embeddings_MD():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 24))
    return (centres[rng.integers(20, size=800)] + 0.4 * rng.normal(size=(800, 24))).astype(np.float32)


def error(quantizer, embeddings_MD):
    prepared_MD = quantizer.prepare(embeddings_MD)
    rest_MD = prepared_MD - quantizer.reconstruct(quantizer.encode(embeddings_MD))
    return (rest_MD**2).sum() / (prepared_MD**2).sum()


def test_encoder_and_decoder_start_as_the_identity():
    network = make().make_network(24)
    x_BD = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network.encoder(x_BD), x_BD) and torch.equal(network.decoder(x_BD), x_BD)


@pytest.mark.parametrize("normalize", ["residuals", "input"])
def test_training_starts_at_rq_kmeans_and_gains_on_it(embeddings_MD, normalize, monkeypatch):
    clustered = RQKMeans(RQKMeansConfig(codes_per_level=16, normalize=normalize))
    clustered.fit(embeddings_MD)
    before = error(clustered, embeddings_MD)
    started, trained = make(normalize=normalize, steps=1), make(normalize=normalize, learning_rate=3e-3)
    monkeypatch.setattr(Trainer, "_rate", lambda self: 0.0)
    started.fit(embeddings_MD)
    monkeypatch.undo()
    trained.fit(embeddings_MD)
    assert error(started, embeddings_MD) == pytest.approx(before, rel=0.03)  # other draws of k-means
    assert error(trained, embeddings_MD) < 0.995 * error(started, embeddings_MD)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kmeans_init": False}, "kmeans_init: false contradicts rq_kmeans_plus, whose start is RQ-KMeans"),
        ({"hidden_sizes": [0]}, r"hidden_sizes: \[0\]; give at least one width, all above 0"),
    ],
)
def test_options_that_contradict_are_named(options, message):
    with pytest.raises(InputError, match=r"quantizer_args\." + message):
        make(**options)
