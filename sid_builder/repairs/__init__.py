"""What is done about items that share a semantic ID: one function per policy, `repair(options, given)`.

The annotation of `options` is the dataclass a policy's YAML is checked against. Every policy leaves SIDs
prefix-free, never makes more items share one, gives the same output for the same input, and leaves items
alone that share none (but for `append_token`, whose token every item gets).

Legend: N items, L levels, G items of one call, K codes of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sid_builder.errors import InputError


class Distances(Protocol):
    """How far items are from codes; `sid_builder.code_distances.CodeDistances` asks a quantizer."""

    def __call__(self, items_G: np.ndarray, prefix: Sequence[int]) -> np.ndarray:
        """Squared distance of what `prefix` leaves of each item to every code of the next level, [G, K]."""


@dataclass(frozen=True)
class RepairInput:
    """Codes int32 [N, L] (-1 pads short rows; no SID is the prefix of another) and what places need.

    `distances` is None where no quantizer made the codes.
    """

    codes_NL: np.ndarray
    level_sizes: tuple[int, ...]
    distances: Distances | None = None
    seed: int = 0

    def required_distances(self, policy: str) -> Distances:
        if self.distances is None:
            raise InputError(
                f"repair: {policy!r} needs a quantizer's distances, and these SIDs were given; "
                "use append_token, random or none"
            )
        return self.distances


@dataclass(frozen=True)
class RepairStats:
    """What a policy did.

    Attributes:
        groups_repaired: prefixes (SIDs for append_token) whose items shared an SID and were worked on.
        items_moved: items whose SID is another one now.
        groups_over_capacity, items_over_capacity: prefixes with more items than the policy found places for,
            and how many items too many: those share an SID still, or one with more items than allowed.
    """

    policy: str
    groups_repaired: int = 0
    items_moved: int = 0
    groups_over_capacity: int = 0
    items_over_capacity: int = 0


@dataclass(frozen=True)
class Repaired:
    """Codes int32 [N, L'], the sizes of their levels, and what was done."""

    codes_NL: np.ndarray
    level_sizes: tuple[int, ...]
    stats: RepairStats
