"""What is done about items that share a semantic ID.

`none` keeps the collisions. `last_level_assign` gives the items of a prefix (all codes but the last)
different last codes, chosen together so that the sum of squared residual distances is smallest; groups
without a collision are not touched.

Legend: N items, L levels, G items of one prefix group, K codes of the last level.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from sid_builder.errors import InputError

POLICIES = ("none", "last_level_assign")


@dataclass(frozen=True)
class RepairStats:
    """What a policy did. `groups_over_capacity` have more items than last codes, so some still share."""

    policy: str
    groups_repaired: int = 0
    items_moved: int = 0
    groups_over_capacity: int = 0
    items_over_capacity: int = 0


def repair_codes(
    policy: str,
    codes_NL: np.ndarray,
    last_size: int,
    distances: Callable[[np.ndarray], np.ndarray] | None,
) -> tuple[np.ndarray, RepairStats]:
    """Apply a policy to fixed-length codes int32 [N, L].

    Args:
        last_size: K, the codebook size of the last level.
        distances: item indices [G] -> squared distances [G, K] of their residuals to the last level's
            centroids.

    Returns:
        New codes and what was done. Deterministic: no randomness, groups in order of their prefix.
    """
    check_policy(policy)
    if policy == "none":
        return codes_NL, RepairStats(policy)
    if distances is None:
        raise InputError(f"repair: {policy!r} needs a quantizer with residual distances; use repair: none")
    repaired_NL = codes_NL.copy()
    over_groups = over_items = 0
    groups = [group for group in _prefix_groups(codes_NL) if len(np.unique(codes_NL[group, -1])) < len(group)]
    for group in tqdm(groups, desc="repairing prefixes", unit="prefix", disable=not groups):
        repaired_NL[group, -1] = assign_last_codes(distances(group), last_size)
        if len(group) > last_size:
            over_groups += 1
            over_items += len(group) - last_size
    moved = int((repaired_NL != codes_NL).any(axis=1).sum())
    return repaired_NL, RepairStats(policy, len(groups), moved, over_groups, over_items)


def assign_last_codes(distance_GK: np.ndarray, last_size: int) -> np.ndarray:
    """Last codes int32 [G] with the least total distance among those that repeat as little as possible.

    With G <= K all differ. With G > K every code is used and none more than once oftener than another.
    """
    num_items = len(distance_GK)
    copies = -(-num_items // last_size)
    # A second copy of a code costs more than any choice of distances can save, so first copies are all taken
    # first.
    penalty = float(distance_GK.max() + 1.0) * num_items
    cost = np.concatenate([distance_GK.astype(np.float64) + copy * penalty for copy in range(copies)], axis=1)
    _, column_G = linear_sum_assignment(cost)
    return (column_G % last_size).astype(np.int32)


def check_policy(policy: str) -> None:
    if policy not in POLICIES:
        raise InputError(f"repair: {policy!r} is not one of {list(POLICIES)}")


def _prefix_groups(codes_NL: np.ndarray) -> list[np.ndarray]:
    """Item indices (ascending) of every prefix, in order of the prefix."""
    _, group_N = np.unique(codes_NL[:, :-1], axis=0, return_inverse=True)
    order = np.argsort(group_N.reshape(-1), kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group_N.reshape(-1)[order])) + 1)
