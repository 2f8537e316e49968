"""Shared fixtures: a small catalogue with SIDs, and tiny real models over it, built in memory."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest

from sid_builder.sid_index import SidIndex
from tests.builders import make_index, make_recommender


@pytest.fixture(scope="session")
def small_index() -> SidIndex:
    """300 items under 3 x 16 codes; four items share an SID with another."""
    rng = np.random.default_rng(7)
    codes = np.unique(rng.integers(0, 16, (340, 3)), axis=0)[:296]
    codes = np.concatenate([codes, codes[[5, 5, 80, 200]]])
    return make_index(codes, (16, 16, 16))


@pytest.fixture(scope="session")
def recommender(small_index):
    return make_recommender(small_index)


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_run(tmp_path_factory):
    """Vectors of tests stay out of the user's cache, and those of earlier runs out of the tests."""
    os.environ["SIDEREAL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
