"""One tiny model directory for every RL test."""

from pathlib import Path

import pytest

from tests.rl.builders import make_model_dir


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    return make_model_dir(tmp_path_factory.mktemp("rl"))
