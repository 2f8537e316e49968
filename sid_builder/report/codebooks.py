"""How codes are used: every codebook by itself, the tree of prefixes, items that share an SID.

Legend: N items, L levels, K codes of a level, P prefixes (nodes of the tree) of a depth, M distinct SIDs.
"""

from typing import Any

import numpy as np

from sid_builder.catalog import Catalog
from sid_builder.semantic_ids import SemanticIds

SHOWN_GROUPS = 50
SHOWN_MEMBERS = 20


def level_use(codes_N: np.ndarray, size: int) -> dict[str, Any]:
    """Used and dead codes, perplexity (exp of entropy), Gini and items per code, in code order, over all
    `size` codes. -1, the padding of a short SID, is left out; with nothing else perplexity is 0.
    """
    counts_K = np.bincount(codes_N[codes_N >= 0], minlength=size)
    positive = counts_K[counts_K > 0] / max(counts_K.sum(), 1)
    used = int((counts_K > 0).sum())
    return {
        "size": size,
        "used": used,
        "dead": size - used,
        "perplexity": float(np.exp(-(positive * np.log(positive)).sum())) if used else 0.0,
        "gini": gini(counts_K),
        "items": int(counts_K.sum()),
        "most": int(counts_K.max()),
        "counts": counts_K.tolist(),
    }


def gini(counts_K: np.ndarray) -> float:
    """Gini coefficient of how unevenly items fall on codes: 0 all alike (or no items), towards 1 all on one
    code.
    """
    ordered = np.sort(counts_K).astype(np.float64)
    rank = np.arange(1, len(ordered) + 1)
    spread = float(((2 * rank - len(ordered) - 1) * ordered).sum())
    return spread / (len(ordered) * float(ordered.sum())) if spread else 0.0


def prefix_ids(codes_NL: np.ndarray) -> np.ndarray:
    """Number of each item's prefix at every depth, int64 [N, L]: column d numbers the distinct first d + 1
    codes 0..P-1 in ascending order.

    One sort per level; rows are never compared as a whole, which is slow for millions of them.
    """
    prefix_NL = np.empty(codes_NL.shape, dtype=np.int64)
    parent_N = np.zeros(len(codes_NL), dtype=np.int64)
    for level in range(codes_NL.shape[1]):
        code_N = codes_NL[:, level].astype(np.int64) + 1  # padding, -1, comes first
        _, parent_N = np.unique(parent_N * (int(code_N.max()) + 1) + code_N, return_inverse=True)
        prefix_NL[:, level] = parent_N
    return prefix_NL


def branching(codes_NL: np.ndarray, prefix_NL: np.ndarray) -> list[dict[str, Any]]:
    """Children of the tree's nodes, one entry per level: the nodes that continue there (level 0: the root),
    the mean, quantiles and maximum of their children, and the share that has a single one.
    """
    levels = []
    for level in range(codes_NL.shape[1]):
        _, first_P = np.unique(prefix_NL[:, level], return_index=True)
        parent_P = prefix_NL[first_P, level - 1] if level else np.zeros(len(first_P), dtype=np.int64)
        children = np.bincount(parent_P[codes_NL[first_P, level] >= 0])
        children = children[children > 0]
        if len(children) == 0:
            break  # every SID has ended before the last level
        low, middle, high = np.quantile(children, (0.1, 0.5, 0.9))
        levels.append(
            {
                "nodes": len(children),
                "mean": float(children.mean()),
                "p10": float(low),
                "median": float(middle),
                "p90": float(high),
                "max": int(children.max()),
                "single_child": float((children == 1).mean()),
            }
        )
    return levels


def collisions(
    sids: SemanticIds,
    sid_N: np.ndarray,
    catalog: Catalog | None = None,
    same_vector_N: np.ndarray | None = None,
) -> dict[str, Any]:
    """How many items share an SID, and who: the largest groups with their items.

    Args:
        sid_N: number of each item's SID, the last column of `prefix_ids`.
        catalog: gives the items of a group their names.
        same_vector_N: number of each item's embedding; tells the groups that no quantizer could split.
    """
    size_M = np.bincount(sid_N)
    shared = np.flatnonzero(size_M > 1)
    order = np.argsort(sid_N, kind="stable")
    start_M = np.cumsum(size_M) - size_M
    # Largest first; among equals the group that holds the lowest item index.
    shared = shared[np.lexsort((order[start_M[shared]], -size_M[shared]))]
    groups = []
    for sid in shared[:SHOWN_GROUPS]:
        members = order[start_M[sid] : start_M[sid] + size_M[sid]]
        group: dict[str, Any] = {
            "sid": sids.spell(int(members[0])),
            "size": len(members),
            "item_index": members[:SHOWN_MEMBERS].tolist(),
        }
        if catalog is not None:
            group["items"] = named_items(catalog, members[:SHOWN_MEMBERS])
        if same_vector_N is not None:
            group["identical_embeddings"] = len(np.unique(same_vector_N[members])) == 1
        groups.append(group)
    sizes, number = np.unique(size_M[shared], return_counts=True)
    return {
        "collision_rate": sids.collision_rate,
        "items_sharing": float(size_M[shared].sum() / sids.num_items),
        "groups": len(shared),
        "largest_group": int(size_M.max()),
        "group_sizes": {str(size): int(count) for size, count in zip(sizes, number, strict=True)},
        "largest_groups": groups,
    }


def named_items(catalog: Catalog, items: np.ndarray) -> list[dict[str, str]]:
    """`item_id` and `title` of some items, without making lists of the whole catalogue."""
    return catalog.table.select(["item_id", "title"]).take(items).to_pylist()
