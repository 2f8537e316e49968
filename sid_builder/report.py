"""How good a set of semantic IDs is: use of the codebooks, collisions, agreement with what users click
together.

Legend: N items, L levels, K codes of a level, C cases (a history and its target).
"""

from typing import Any

import numpy as np

from sid_builder.interactions import SPLITS, Interactions
from sid_builder.quantizers import Quantizer
from sid_builder.semantic_ids import SemanticIds


def quality_report(sids: SemanticIds, interactions: Interactions) -> dict[str, Any]:
    """Figures as plain JSON values: `summary` (headlines), `levels`, `collisions`, `targets`, `co_click`.

    All shares are in 0..1. Train alone decides co-click lift; valid and test targets decide the
    target-weighted figures.
    """
    sharers_N = items_per_sid(sids)
    groups = sids.collision_groups()
    levels = [level_use(sids.codes_NL[:, level], size) for level, size in enumerate(sids.level_sizes)]
    targets = target_sharing(sharers_N, interactions)
    lifts = (
        [co_click_lift(sids, interactions, depth) for depth in range(1, sids.depth)] if sids.depth > 1 else []
    )
    collisions = {
        "collision_rate": sids.collision_rate,
        "items_sharing": float((sharers_N > 1).mean()),
        "groups": len(groups),
        "largest_group": len(groups[0]) if groups else 1,
        "group_sizes": np.bincount([len(group) for group in groups]).tolist() if groups else [],
        "largest_groups": [
            {"sid": sids.spell(int(group[0])), "item_index": group[:10].tolist()} for group in groups[:10]
        ],
    }
    summary = {
        "num_items": sids.num_items,
        "num_distinct": sids.num_distinct,
        "level_sizes": list(sids.level_sizes),
        "example": sids.spell(0),
        "collision_rate": sids.collision_rate,
        "items_sharing": collisions["items_sharing"],
        "targets_sharing": targets["targets_sharing"],
        "level_1_used": levels[0]["used"],
        "level_1_perplexity": levels[0]["perplexity"],
        "co_click_lift": lifts[0]["lift"] if lifts else None,
    }
    return {
        "summary": summary,
        "levels": levels,
        "collisions": collisions,
        "targets": targets,
        "co_click": lifts,
    }


def items_per_sid(sids: SemanticIds) -> np.ndarray:
    """For each item, how many items have its SID (itself included), int64 [N]."""
    _, group_N, counts = np.unique(sids.codes_NL, axis=0, return_inverse=True, return_counts=True)
    return counts[group_N.reshape(-1)]


def level_use(codes_N: np.ndarray, size: int) -> dict[str, Any]:
    """Used codes, perplexity (exp of entropy) and Gini over all `size` codes; -1 is left out."""
    counts_K = np.bincount(codes_N[codes_N >= 0], minlength=size)
    share_K = counts_K / counts_K.sum()
    positive = share_K[share_K > 0]
    return {
        "size": size,
        "used": int((counts_K > 0).sum()),
        "perplexity": float(np.exp(-(positive * np.log(positive)).sum())),
        "gini": gini(counts_K),
        "counts": np.sort(counts_K)[::-1].tolist(),
    }


def gini(counts_K: np.ndarray) -> float:
    """Gini coefficient of how unevenly items fall on codes: 0 all alike, towards 1 all on one code."""
    ordered = np.sort(counts_K).astype(np.float64)
    rank = np.arange(1, len(ordered) + 1)
    return float(((2 * rank - len(ordered) - 1) * ordered).sum() / (len(ordered) * ordered.sum()))


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


def co_click_lift(sids: SemanticIds, interactions: Interactions, depth: int) -> dict[str, Any]:
    """How much oftener than by chance a train item shares the first `depth` codes with the item right before
    it.

    Chance is the same pairs shuffled: sum over prefixes of P(prefix before) * P(prefix after). A pair of the
    same item says nothing about codes and is left out.
    """
    cases = interactions.histories("train")
    after_C = cases.targets_C
    before_C = interactions.items_I[interactions.indptr_S1[cases.sequence_C] + cases.position_C - 1]
    keep = (after_C >= 0) & (before_C >= 0) & (after_C != before_C)
    _, prefix_N = np.unique(sids.codes_NL[:, :depth], axis=0, return_inverse=True)
    prefix_N = prefix_N.reshape(-1)
    before_C, after_C = prefix_N[before_C[keep]], prefix_N[after_C[keep]]
    if len(after_C) == 0:
        return {"depth": depth, "pairs": 0, "together": 0.0, "chance": 0.0, "lift": None}
    num_prefixes = int(prefix_N.max()) + 1
    share_before, share_after = (np.bincount(x, minlength=num_prefixes) / len(x) for x in (before_C, after_C))
    together, chance = float((before_C == after_C).mean()), float(share_before @ share_after)
    return {
        "depth": depth,
        "pairs": len(after_C),
        "together": together,
        "chance": chance,
        "lift": together / chance if chance > 0 else None,
    }


def reconstruction_errors(
    quantizer: Quantizer, embeddings_ND: np.ndarray, first_NL: np.ndarray, final_NL: np.ndarray
) -> dict[str, Any]:
    """Squared error over squared length (0 perfect, 1 as bad as the zero vector) after each level, and what
    repair cost.

    `first_NL` are the codes before repair, `final_NL` after.
    """
    target_ND = quantizer.prepare(embeddings_ND)
    energy = float((target_ND.astype(np.float64) ** 2).sum())

    def error(codes_NL: np.ndarray, levels: int) -> float:
        return float(
            ((target_ND - quantizer.reconstruct(codes_NL, levels)).astype(np.float64) ** 2).sum() / energy
        )

    depth = len(quantizer.level_sizes)
    by_level = [error(first_NL, level) for level in range(1, depth + 1)]
    repaired = error(final_NL, depth)
    return {
        "error_by_level": by_level,
        "error": by_level[-1],
        "error_after_repair": repaired,
        "repair_cost": repaired / by_level[-1] - 1 if by_level[-1] > 0 else 0.0,
    }
