"""What most files of this folder train on: 40 items, 30 users."""

import numpy as np
import pytest

from sid_builder.sid_index import SidIndex
from tests.builders import make_index
from tests.sft.builders import make_interactions, write_sids


@pytest.fixture(scope="session")
def index() -> SidIndex:
    """40 items under 3 x 8 codes, each with an SID of its own."""
    rng = np.random.default_rng(5)
    return make_index(rng.permutation(np.unique(rng.integers(0, 8, (60, 3)), axis=0))[:40], (8, 8, 8))


@pytest.fixture(scope="session")
def sids(index, tmp_path_factory):
    """The index, interactions and item embeddings as sid_builder.build leaves them. Not to be written to."""
    vectors_ND = np.random.default_rng(8).normal(size=(40, 6)).astype(np.float32)
    return write_sids(tmp_path_factory.mktemp("sids") / "sids", index, make_interactions(40), vectors_ND)
