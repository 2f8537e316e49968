"""Options of rollouts: how many candidates they ask for, and what is refused."""

from importlib.util import find_spec

import pytest

from rl.rollout_options import RolloutOptions, check_group_size
from sid_builder.errors import InputError

G = 8


@pytest.mark.parametrize(
    ("options", "enough"),
    [
        ({}, 8),
        ({"oversample": 1.5}, 12),
        ({"mode": "mixed"}, 8),
        ({"mode": "mixed", "oversample": 2.0}, 16),
        ({"mode": "sample", "oversample": 1.5}, 1),
    ],
)
def test_groups_that_cannot_be_filled_are_refused(options, enough):
    check_group_size(RolloutOptions(**options), G, enough + 5, longest_history=5)
    with pytest.raises(InputError, match=f"num_generations: 8 .*only {enough - 1} are left.*choose fewer"):
        check_group_size(RolloutOptions(**options), G, enough + 4, longest_history=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "sample", "temperature": 0.0}, "rollout.temperature: 0.0; give a positive number"),
        ({"mode": "sample", "temperature": float("nan")}, "rollout.temperature: nan"),
        ({"temperature": 0.7}, "rollout.temperature: 0.7 has no effect with mode: beam"),
        ({"mode": "mixed", "sampled": 1.2}, "rollout.sampled: 1.2"),
        ({"mode": "sample", "sampled": 0.3}, "rollout.sampled: 0.3 has no effect with mode: sample"),
        ({"oversample": 0.9}, "rollout.oversample: 0.9"),
        ({"idle_groups": "resample", "resample_rounds": 0}, "rollout.resample_rounds: 0"),
        ({"resample_rounds": 5}, "rollout.resample_rounds: 5 has no effect"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        RolloutOptions(**options).check()


def test_parts_of_a_group():
    assert RolloutOptions(oversample=1.5).parts(16) == (24, 0)
    assert RolloutOptions("sample", oversample=1.5).parts(15) == (0, 23)
    assert RolloutOptions("mixed", sampled=0.25, oversample=1.5).parts(16) == (12, 12)
    assert RolloutOptions("mixed", sampled=1.0).parts(16) == (0, 16)


@pytest.mark.skipif(not find_spec("vllm"), reason="vllm is not installed")
def test_trl_still_sends_weights_to_gpus_alone(monkeypatch):
    """When this fails, `use_vllm` may be let through: a server on a CPU could have the policy's weights.

    TRL 1.16's client refuses any device but CUDA before a byte is sent, whatever server it is told of.
    """
    from trl.generation.vllm_client import VLLMClient

    client = VLLMClient.__new__(VLLMClient)
    client.base_url, client.group_port, client.communicator = "http://localhost:8000", 51216, None
    monkeypatch.setattr(client, "get_server_info", lambda: {"weight_transfer_config": {"backend": "nccl"}})
    monkeypatch.setattr(client, "get_world_size", lambda: 1)
    with pytest.raises(NotImplementedError, match="needs a CUDA device, got 'cpu'"):
        client.init_communicator(device="cpu")
