"""One tiny model directory for every RL test, and GRPO trainers with a batch to step on."""

from pathlib import Path

import pytest

from tests.rl.builders import grpo_trainer, make_model_dir
from tests.rl.update_cases import scored_batch


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    return make_model_dir(tmp_path_factory.mktemp("rl"))


@pytest.fixture(scope="module")
def plain_step(model_dir, tmp_path_factory):
    """Trainer, policy and a batch. A module's own: runs of others reset what accelerate keeps globally."""
    flags = ["--rewards", '{"ranking": 1.0}', "--steps_per_generation", "2", "--beta", "0.05"]
    trainer, policy = grpo_trainer(model_dir, tmp_path_factory.mktemp("updates"), *flags)
    return trainer, policy, scored_batch(trainer, policy)


@pytest.fixture(scope="module")
def trie_step(model_dir, tmp_path_factory):
    """The same under `log_probs: trie`, at another temperature."""
    update = '{"log_probs": "trie", "truth_weight": 0.5, "advantages": "pass_at_k", "k": 3}'
    rollout = '{"mode": "sample", "temperature": 1.5}'
    flags = ["--update", update, "--rollout", rollout, "--steps_per_generation", "2", "--num_iterations", "2"]
    trainer, policy = grpo_trainer(model_dir, tmp_path_factory.mktemp("trie"), *flags)
    return trainer, policy, scored_batch(trainer, policy)
