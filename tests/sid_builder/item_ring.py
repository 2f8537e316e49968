"""A ring of items in which each has one successor, and a SASRec small enough to learn it in a second."""

import numpy as np

from sid_builder import EMBEDDERS, cli
from sid_builder.collaborative import SASRecConfig
from sid_builder.interactions import Interactions
from sid_builder.registry import options_class, resolve
from tests.builders import make_index

NUM_ITEMS, UNSEEN = 41, 40
SMALL = SASRecConfig(
    dim=16,
    layers=1,
    dropout=0.1,
    max_history=8,
    learning_rate=2e-2,
    batch_targets=256,
    epochs=6,
    patience=None,
)


def follow_the_chain(num_users=150, seed=0):
    """Each item has one successor, a ring over 40 of 41 items; sequences of 5 to 12 steps along it."""
    rng = np.random.default_rng(seed)
    ring = rng.permutation(NUM_ITEMS - 1)
    sequences = [
        ring[(rng.integers(len(ring)) + np.arange(rng.integers(5, 13))) % len(ring)] for _ in range(num_users)
    ]
    return Interactions.leave_one_out([f"u{u}" for u in range(num_users)], sequences), ring


def weights_of(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def assert_same_weights(first, second):
    first, second = weights_of(first), weights_of(second)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


def make_embedder(seed=3, **options):
    made = resolve(EMBEDDERS, "sasrec", "embedder")
    return made(cli.build_dataclass(options_class(made), options, "embedder_args"), seed)


def catalog():
    return make_index(np.arange(NUM_ITEMS)[:, None], (NUM_ITEMS,)).catalog
