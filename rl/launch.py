"""What a launch can train by RL, checked before weights are read: as `sft.launch`, with whole weights on
every process where rollouts and rankings need them.

What was run: one process, DDP and FSDP2 on CPU with two (tests/rl/test_processes_rl.py,
tests/rl/test_processes_policy.py).
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sft.launch import check_machine, sharding_of
from sid_builder.errors import InputError

if TYPE_CHECKING:
    from rl.arguments import PolicyArgs


def check_sharding(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse ways of sharing the policy out under which no process could roll out with whole weights.

    Raises:
        InputError: naming what to launch with instead.
    """
    sharding = sharding_of(environment)
    refuse_parts(sharding)
    if sharding == "fsdp2" and environment.get("FSDP_STATE_DICT_TYPE") != "FULL_STATE_DICT":
        raise InputError(
            "fsdp_state_dict_type: must be FULL_STATE_DICT; launch with configs/accelerate/fsdp2.yaml"
        )
    if sharding.startswith("zero") and find_spec("deepspeed") is None:
        raise InputError(f"distributed_type: DEEPSPEED ({sharding}) is not installed; pip install deepspeed")


def refuse_parts(sharding: str) -> None:
    """InputError for a `sharding` under which a process has parts of the policy only."""
    if sharding in ("fsdp1", "zero3"):
        raise InputError(
            f"accelerate: rollouts need whole weights, which {sharding} shares out; launch with ddp.yaml, "
            "zero2.yaml or fsdp2.yaml of configs/accelerate"
        )


def check_launch(own: "PolicyArgs", args: Any) -> None:
    """Refuse flags of TRL's configuration that this launch or this machine cannot honour.

    Raises:
        InputError: naming the flag and what to give instead.
    """
    check_machine(args)
    if own.load_in_4bit and sharding_of() == "fsdp2":
        raise InputError(
            "load_in_4bit: weights in nf4 are not gathered for rollouts under FSDP2, and hardly worth to be "
            "shared out; launch with configs/accelerate/ddp.yaml"
        )
    if args.sync_ref_model and sharding_of() == "fsdp2":
        raise InputError(
            "sync_ref_model: true moves a reference that FSDP2 shares out, and no checkpoint would hold it; "
            "launch with configs/accelerate/ddp.yaml or zero2.yaml, or set false"
        )
