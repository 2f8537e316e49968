"""The quality report as plain values; `sid_builder.report` documents the keys."""

from typing import Any

import numpy as np

from sid_builder.catalog import Catalog
from sid_builder.interactions import Interactions
from sid_builder.quantizers import Quantizer
from sid_builder.report.behaviour import pair_lift, target_sharing, train_pairs
from sid_builder.report.codebooks import branching, collisions, level_use, named_items, prefix_ids
from sid_builder.report.labels import category_labels, domain_label, domain_use, label_agreement
from sid_builder.report.vectors import (
    nearest_to_prefixes,
    neighbour_hit_rate,
    reconstruction_errors,
    same_vectors,
    without_appended,
)
from sid_builder.semantic_ids import SemanticIds

EXAMPLES = 12
SHOWN_PREFIXES = 12
SHOWN_NEAREST = 6


def quality_report(
    sids: SemanticIds,
    interactions: Interactions,
    catalog: Catalog | None = None,
    embeddings_ND: np.ndarray | None = None,
    quantizer: Quantizer | None = None,
    first_NL: np.ndarray | None = None,
) -> dict[str, Any]:
    """How good SIDs are, as plain JSON values; every section that what is given allows.

    Codes and interactions give use, collisions, targets and co-click lift. A catalogue adds names, categories
    and domains; embeddings (float32 [N, D], may be memory-mapped) add identical vectors and the neighbours of
    prefixes; a quantizer adds reconstruction errors and the neighbour hit rate.

    Args:
        first_NL: codes before repair, where they differ from those of `sids`.

    Train alone decides lift and hit rate; valid and test targets decide the target-weighted figures. All
    shares are in 0..1.
    """
    prefix_NL = prefix_ids(sids.codes_NL)
    sid_N = prefix_NL[:, -1]
    pairs = train_pairs(interactions)
    vector_N = None if embeddings_ND is None else same_vectors(embeddings_ND)
    quantized = sids.depth if quantizer is None else len(quantizer.level_sizes)
    report: dict[str, Any] = {
        "levels": [
            level_use(sids.codes_NL[:, level], size) | {"appended": level >= quantized}
            for level, size in enumerate(sids.level_sizes)
        ],
        "tree": branching(sids.codes_NL, prefix_NL),
        "collisions": collisions(sids, sid_N, catalog, vector_N),
        "targets": target_sharing(np.bincount(sid_N)[sid_N], interactions),
        "co_click": [pair_lift(prefix_NL[:, depth - 1], pairs, depth) for depth in range(1, sids.depth)],
    }
    if catalog is not None:
        report["examples"] = _examples(sids, catalog)
        report["prefixes"] = _prefixes(sids, prefix_NL[:, 0], interactions, catalog, embeddings_ND)
        report["labels"] = [label_agreement(label, prefix_NL) for label in category_labels(catalog)]
        domain = domain_label(catalog)
        if domain is not None:
            report["labels"].append(label_agreement(domain, prefix_NL))
            report["domains"] = domain_use(domain, sids, sid_N)
    if vector_N is not None:
        report["identical_embeddings"] = _identical(vector_N, catalog)
    if quantizer is not None and embeddings_ND is not None:
        first_NL = sids.codes_NL if first_NL is None else first_NL
        report["reconstruction"] = reconstruction_errors(quantizer, embeddings_ND, first_NL, sids.codes_NL)
        kept_NL = without_appended(first_NL, sids.codes_NL)
        report["neighbours"] = neighbour_hit_rate(quantizer, embeddings_ND, kept_NL, pairs)
    report["summary"] = _summary(sids, report)
    return report


def _summary(sids: SemanticIds, report: dict[str, Any]) -> dict[str, Any]:
    levels, lifts = report["levels"], report["co_click"]
    return {
        "num_items": sids.num_items,
        "num_distinct": sids.num_distinct,
        "level_sizes": list(sids.level_sizes),
        "example": sids.spell(0),
        "collision_rate": sids.collision_rate,
        "items_sharing": report["collisions"]["items_sharing"],
        "largest_group": report["collisions"]["largest_group"],
        "targets_sharing": report["targets"]["targets_sharing"],
        "level_1_used": levels[0]["used"],
        "level_1_perplexity": levels[0]["perplexity"],
        "co_click_lift": lifts[0]["lift"] if lifts else None,
        "reconstruction_error": report.get("reconstruction", {}).get("error_after_repair"),
    }


def _examples(sids: SemanticIds, catalog: Catalog) -> list[dict[str, Any]]:
    """Items at even distances through the catalogue, with their SIDs."""
    items = np.unique(np.linspace(0, sids.num_items - 1, EXAMPLES).astype(np.int64))
    return [
        item | {"sid": sids.spell(int(index))}
        for item, index in zip(named_items(catalog, items), items, strict=True)
    ]


def _prefixes(
    sids: SemanticIds,
    first_N: np.ndarray,
    interactions: Interactions,
    catalog: Catalog,
    embeddings_ND: np.ndarray | None,
) -> list[dict[str, Any]]:
    """A dozen first codes, from the one with most items to the one with fewest, and the items nearest to the
    centre of each; without embeddings its items most frequent in train.
    """
    size_P = np.bincount(first_N)
    by_size = np.argsort(-size_P, kind="stable")
    shown = by_size[np.unique(np.linspace(0, len(by_size) - 1, SHOWN_PREFIXES).astype(np.int64))]
    members = [np.flatnonzero(first_N == prefix) for prefix in shown]
    extra: list[list[dict[str, Any]]]
    candidates: int | None = None
    if embeddings_ND is None:
        counts_N = interactions.train_counts(sids.num_items)
        nearest = [group[np.argsort(-counts_N[group], kind="stable")[:SHOWN_NEAREST]] for group in members]
        extra = [[{"train_count": int(counts_N[item])} for item in items] for items in nearest]
    else:
        found, candidates = nearest_to_prefixes(embeddings_ND, members, SHOWN_NEAREST)
        nearest = [items for items, _ in found]
        extra = [
            [
                {"cosine": float(cosine), "inside": bool(first_N[item] == prefix)}
                for item, cosine in zip(items, cosines, strict=True)
            ]
            for prefix, (items, cosines) in zip(shown, found, strict=True)
        ]
    rows = []
    for group, items, more in zip(members, nearest, extra, strict=True):
        named = named_items(catalog, items)
        rows.append(
            {
                "prefix": sids.token(0, int(sids.codes_NL[group[0], 0])),
                "items": len(group),
                "candidates": candidates,
                "nearest": [
                    name | {"sid": sids.spell(int(item))} | figures
                    for name, item, figures in zip(named, items, more, strict=True)
                ],
            }
        )
    return rows


def _identical(vector_N: np.ndarray, catalog: Catalog | None) -> dict[str, Any]:
    """Items whose embedding another item has as well: no quantizer can tell them apart."""
    size_M = np.bincount(vector_N)
    shared = size_M[vector_N] > 1
    result: dict[str, Any] = {
        "items": int(shared.sum()),
        "groups": int((size_M > 1).sum()),
        "largest_group": int(size_M.max()),
    }
    if catalog is not None:
        # The group that comes first in the catalogue among the largest ones.
        largest = np.flatnonzero(size_M[vector_N] == size_M.max())[:1]
        members = np.flatnonzero(vector_N == vector_N[largest[0]]) if shared.any() else largest[:0]
        result["largest"] = named_items(catalog, members[:EXAMPLES])
    return result
