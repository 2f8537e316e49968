"""Codes against what users do: neighbours in train share prefixes oftener than by chance, and collisions blur
the targets of valid and test.

Legend: N items, C cases (a history and its target), P pairs of items next to each other in train.
"""

from typing import Any

import numpy as np

from sid_builder.interactions import SPLITS, Interactions
from sid_builder.report.codebooks import prefix_ids
from sid_builder.semantic_ids import SemanticIds


def target_sharing(sharers_N: np.ndarray, interactions: Interactions) -> dict[str, Any]:
    """How collisions weigh on what is asked for: over valid and test targets, the share whose SID is shared
    and the mean number of items behind a target's SID. An item-level metric can at best be the SID-level one
    divided by that.

    Targets outside the catalogue (-1) are left out.
    """
    targets_C = np.concatenate([interactions.histories(split).targets_C for split in SPLITS[1:]])
    sharers_C = sharers_N[targets_C[targets_C >= 0]]
    if len(sharers_C) == 0:
        return {"cases": 0, "targets_sharing": 0.0, "items_per_target_sid": 1.0, "item_sid_ratio": 1.0}
    return {
        "cases": len(sharers_C),
        "targets_sharing": float((sharers_C > 1).mean()),
        "items_per_target_sid": float(sharers_C.mean()),
        # Item-level over SID-level hits at 1 to be expected when the items of an SID are drawn blindly.
        "item_sid_ratio": float((1.0 / sharers_C).mean()),
    }


def train_pairs(interactions: Interactions) -> tuple[np.ndarray, np.ndarray]:
    """Every train item with the item right before it, int32 [P] each: (before, after).

    A pair of the same item says nothing about codes and is left out.
    """
    cases = interactions.histories("train")
    after_C = cases.targets_C
    before_C = interactions.items_I[interactions.indptr_S1[cases.sequence_C] + cases.position_C - 1]
    keep = (after_C >= 0) & (before_C >= 0) & (after_C != before_C)
    return before_C[keep], after_C[keep]


def co_click_lift(sids: SemanticIds, interactions: Interactions, depth: int) -> dict[str, Any]:
    """How much oftener than by chance a train item shares the first `depth` codes with the item right before
    it.
    """
    return pair_lift(prefix_ids(sids.codes_NL[:, :depth])[:, -1], train_pairs(interactions), depth)


def pair_lift(prefix_N: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], depth: int) -> dict[str, Any]:
    """Share of pairs with the same prefix over what chance gives: the same pairs shuffled, sum over prefixes
    of P(prefix before) * P(prefix after).
    """
    before_P, after_P = (prefix_N[items] for items in pairs)
    if len(after_P) == 0:
        return {"depth": depth, "pairs": 0, "together": 0.0, "chance": 0.0, "lift": None}
    num_prefixes = int(prefix_N.max()) + 1
    share_before, share_after = (np.bincount(x, minlength=num_prefixes) / len(x) for x in (before_P, after_P))
    together, chance = float((before_P == after_P).mean()), float(share_before @ share_after)
    return {
        "depth": depth,
        "pairs": len(after_P),
        "together": together,
        "chance": chance,
        "lift": together / chance if chance > 0 else None,
    }
