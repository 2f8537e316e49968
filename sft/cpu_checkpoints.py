"""Checkpoints of several processes without a GPU.

accelerate 1.15 calls the CPU of torchrun's second process cpu:1, which torch 2.13 loads nothing onto: no
checkpoint could be resumed. Delete this when test_torch_still_knows_one_cpu fails.
"""

from functools import cache

import torch


@cache
def load_onto_numbered_cpus() -> None:
    """Let torch load what is to go to cpu:N."""
    torch.serialization.register_package(
        100, lambda storage: None, lambda storage, place: storage if place.startswith("cpu:") else None
    )
