"""Signals: what the co-occurrence contrast counts and computes, and that it moves codes towards behaviour."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from sid_builder import cli
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.quantizers import FitContext
from sid_builder.quantizers.rqvae import RQVAE, RQVAEConfig
from sid_builder.quantizers.signals import SignalBatch
from sid_builder.quantizers.signals.contrast import PairContrast
from sid_builder.quantizers.signals.cooccurrence import Cooccurrence, CooccurrenceConfig, cooccurring_rows
from sid_builder.report import co_click_lift
from sid_builder.semantic_ids import SemanticIds

NUM_ITEMS, NUM_KINDS = 400, 10
SMALL = {
    "codes_per_level": 16,
    "hidden_sizes": [64],
    "latent_dim": 8,
    "steps": 200,
    "learning_rate": 0.01,
    "batch_size": 200,
    "signal": "cooccurrence",
    "signal_args": {"pairs_per_step": 64},
    "signal_weight": 1.0,
}


def make(**options):
    return RQVAE(cli.build_dataclass(RQVAEConfig, SMALL | options, "quantizer_args"), seed=0)


def context_of(sequences, num_items, items=None, work_dir=None):
    catalog = Catalog.from_rows([{"item_id": str(i), "title": f"thing {i}"} for i in range(num_items)])
    interactions = Interactions.leave_one_out([str(i) for i in range(len(sequences))], sequences)
    return FitContext(
        catalog, interactions, np.arange(num_items) if items is None else np.array(items), work_dir
    )


@pytest.fixture(scope="module")
def shop():
    """Vectors say what an item is like; users buy along a weak part of them that length hides."""
    rng = np.random.default_rng(0)
    look_N, taste_N = rng.integers(NUM_KINDS, size=(2, NUM_ITEMS))
    looks, tastes = rng.normal(size=(2, NUM_KINDS, 16))
    embeddings_ND = np.concatenate([looks[look_N], 0.3 * tastes[taste_N]], axis=1)
    embeddings_ND += 0.1 * rng.normal(size=embeddings_ND.shape)
    by_taste = [np.flatnonzero(taste_N == taste) for taste in range(NUM_KINDS)]
    sequences = [rng.choice(by_taste[user % NUM_KINDS], 8, replace=False) for user in range(500)]
    return embeddings_ND.astype(np.float32), context_of(sequences, NUM_ITEMS)


def test_pairs_are_near_in_train_and_known():
    context = context_of([np.array([0, 1, 2, 2, 4, 5]), np.array([3]), np.array([4, 0])], 6)
    # Train of the first is 0 1 2 2; the last pair of the third user is train, since it is short.
    assert cooccurring_rows(context, 1).tolist() == [[0, 1], [1, 2], [4, 0]]
    assert cooccurring_rows(context, 2).tolist() == [[0, 1], [1, 2], [4, 0], [0, 2], [1, 2]]
    sample = dataclasses.replace(context, items_M=np.array([2, 1, 4]))
    assert cooccurring_rows(sample, 1).tolist() == [[1, 0]]


def test_valid_and_test_items_change_nothing(shop):
    embeddings_ND, context = shop
    interactions = context.interactions
    items_I = interactions.items_I.copy()
    ends = interactions.indptr_S1[1:]
    items_I[ends - 1] = items_I[ends - 2] = 7
    other = dataclasses.replace(context, interactions=dataclasses.replace(interactions, items_I=items_I))
    np.testing.assert_array_equal(cooccurring_rows(context, 3), cooccurring_rows(other, 3))
    codes = []
    for given in (context, other):
        quantizer = make(steps=30)
        quantizer.fit(embeddings_ND, given)
        codes.append(quantizer.encode(embeddings_ND))
    np.testing.assert_array_equal(*codes)


def test_the_signal_raises_co_click_lift(shop):
    embeddings_ND, context = shop
    lifts = []
    for options in ({"signal": None, "signal_args": {}}, {}):
        quantizer = make(**options)
        quantizer.fit(embeddings_ND, context)
        sids = SemanticIds(quantizer.encode(embeddings_ND), quantizer.level_sizes)
        lifts.append(co_click_lift(sids, context.interactions, 1)["lift"])
    assert lifts[1] > 2 * lifts[0]


def test_contrast_is_the_formula():
    rng = np.random.default_rng(0)
    rows_B = np.array(
        [0, 1, 2, 3, 4, 0]
    )  # pairs (0, 3), (1, 4), (2, 0): item 0 is met twice, never twice in a column
    x_BD, decoded_BD = rng.normal(size=(2, 6, 5))
    x_BD[5], decoded_BD[5] = x_BD[0], decoded_BD[0]
    module = PairContrast(np.zeros((1, 2), dtype=np.int64), 3).double()
    batch = SignalBatch(
        rows_B, torch.from_numpy(x_BD), torch.empty(0), None, torch.empty(0), torch.from_numpy(decoded_BD)
    )

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def cross_entropy(queries, keys):
        logits = unit(queries) @ unit(keys).T / 0.07
        return np.mean(np.log(np.exp(logits).sum(axis=1)) - np.diag(logits))

    (x_i, x_j), (d_i, d_j) = (np.split(rows, 2) for rows in (x_BD, decoded_BD))
    expected = np.mean(
        [
            (cross_entropy(d_i, d_j) + cross_entropy(d_j, d_i)) / 2,
            (cross_entropy(d_i, x_j) + cross_entropy(d_j, x_i)) / 2,
            (cross_entropy(d_i, x_i) + cross_entropy(d_j, x_j)) / 2,
        ]
    )
    loss = module(batch)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert (module.log_scales.grad != 0).all()


def test_an_item_is_not_its_own_negative():
    x_BD = torch.eye(4)[[0, 0, 1, 1]]  # the pair (0, 1), drawn twice
    module = PairContrast(np.zeros((1, 2), dtype=np.int64), 2)
    batch = SignalBatch(np.array([0, 0, 1, 1]), x_BD, x_BD, None, x_BD, x_BD)
    assert module(batch).item() == 0


def test_drawn_rows_are_pairs():
    pairs_P2 = np.array([[1, 2], [3, 4], [5, 6]])
    rows_B = PairContrast(pairs_P2, 50).rows(np.random.default_rng(0), np.arange(8))
    first, second = np.split(rows_B, 2)
    assert len(rows_B) == 100 and set(first) == {1, 3, 5} and (second == first + 1).all()


def test_a_signal_without_interactions_is_an_error(shop):
    embeddings_ND, _ = shop
    with pytest.raises(InputError, match="signal: 'cooccurrence' learns from catalogue and interactions"):
        make().fit(embeddings_ND)
    alone = context_of([np.array([item]) for item in range(NUM_ITEMS)], NUM_ITEMS)
    with pytest.raises(InputError, match="signal: 'cooccurrence' found no two different items"):
        make().fit(embeddings_ND, alone)
    with pytest.raises(InputError, match=r"signal_args\.window: 0 is below 1; give at least 1"):
        Cooccurrence(CooccurrenceConfig(window=0))


@dataclasses.dataclass(frozen=True)
class PullConfig:
    strength: float = 1.0


class Pull:
    """A signal from outside the registry: it listens to the reconstruction batch and has state of its own."""

    def __init__(self, config: PullConfig, seed: int = 0) -> None:
        self.config = config

    def prepare(self, context: FitContext) -> nn.Module:
        return PullModule(self.config.strength)


class PullModule(nn.Module):
    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.weight = nn.Parameter(torch.ones(8))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def rows(self, rng: np.random.Generator, batch_B: np.ndarray) -> np.ndarray:
        return batch_B

    def forward(self, batch: SignalBatch) -> torch.Tensor:
        self.passes += 1
        return self.strength * ((batch.quantized_BE * self.weight) ** 2).mean()


def test_a_signal_from_outside_trains_and_keeps_its_state(shop, tmp_path):
    from safetensors.torch import load_file

    embeddings_ND, context = shop
    options = {"signal": f"{__name__}:Pull", "signal_args": {"strength": 0.5}, "steps": 20}
    quantizer = make(**options)
    quantizer.fit(embeddings_ND, dataclasses.replace(context, work_dir=tmp_path))
    (path,) = tmp_path.glob("rqvae-*.safetensors")
    state = load_file(path)
    assert state["signal/passes"] == 20 and (state["signal/weight"] != 1).all()
