"""Codes against what the catalogue says of its items: categories, and domains that share a codebook.

Legend: N items, V values of a label (a category position, the domain), P prefixes of a depth.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sid_builder.catalog import Catalog
from sid_builder.report.codebooks import level_use
from sid_builder.semantic_ids import SemanticIds

POSITIONS = 3


@dataclass(frozen=True)
class Label:
    """One value per item: `value_N` int32 indexes `values`, -1 where an item has none."""

    name: str
    value_N: np.ndarray
    values: list[str]


def category_labels(catalog: Catalog) -> list[Label]:
    """The first `POSITIONS` places of the category path at which items differ ("category 1", the top, ...).

    A place where all items have the same value (the shop's own name, say) tells nothing and is left out.
    """
    column = catalog.table.column("categories").combine_chunks()
    offsets = column.offsets.to_numpy().astype(np.int64)
    start_N, length_N = offsets[:-1], np.diff(offsets)
    labels: list[Label] = []
    for position in range(int(length_N.max(initial=0))):
        has_N = length_N > position
        names = column.values.take(pa.array(start_N[has_N] + position))
        label = _label(f"category {position + 1}", names, np.flatnonzero(has_N), len(length_N))
        if len(label.values) > 1:
            labels.append(label)
        if len(labels) == POSITIONS:
            break
    return labels


def domain_label(catalog: Catalog) -> Label | None:
    """The data set each item came from, or None unless there are several."""
    column = catalog.table.column("domain").combine_chunks()
    label = _label("domain", column, np.arange(len(column)), len(column))
    return label if len(label.values) > 1 else None


def _label(name: str, texts: pa.Array, items: np.ndarray, num_items: int) -> Label:
    """Values in order of frequency, the most frequent first; an empty text is no value."""
    encoded = texts.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    index = encoded.indices.to_numpy()
    counts_V = np.bincount(index, minlength=len(names))
    order = sorted((v for v in range(len(names)) if names[v]), key=lambda v: (-counts_V[v], names[v]))
    rank_V = np.full(len(names), -1, dtype=np.int32)
    rank_V[order] = np.arange(len(order), dtype=np.int32)
    value_N = np.full(num_items, -1, dtype=np.int32)
    value_N[items] = rank_V[index]
    return Label(name, value_N, [names[v] for v in order])


def label_agreement(label: Label, prefix_NL: np.ndarray) -> dict[str, Any]:
    """How well prefixes tell a label, per depth, over the items that have one.

    `purity`: share of items with the most frequent value of their prefix (Manning et al., Introduction to
    Information Retrieval, 16.3); never below `largest`, the share of the most frequent value of all, and 1
    when every prefix has one item. `nmi`: normalised mutual information, arithmetic mean (same source); many
    more prefixes than values pull it down. `lift` depends on neither: of two different items with the same
    prefix, how much oftener they have the same value than any two items.
    """
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    has_N = label.value_N >= 0
    value_N, counts_V = label.value_N[has_N], np.bincount(label.value_N[has_N])
    chance = _same_pairs(counts_V) / _same_pairs(np.array([len(value_N)]))
    depths = []
    for depth in range(1, prefix_NL.shape[1] + 1):
        prefix_N = prefix_NL[has_N, depth - 1]
        table_PV = contingency_matrix(prefix_N, value_N, sparse=True, dtype=np.int64)
        pairs = _same_pairs(np.asarray(table_PV.sum(axis=1)).ravel())
        together = _same_pairs(table_PV.data) / pairs if pairs else None
        depths.append(
            {
                "depth": depth,
                "prefixes": table_PV.shape[0],
                "purity": float(table_PV.max(axis=1).sum() / len(value_N)),
                "nmi": float(normalized_mutual_info_score(value_N, prefix_N)),
                "together": together,
                "chance": chance,
                "lift": together / chance if together is not None and chance > 0 else None,
            }
        )
    return {
        "label": label.name,
        "values": len(label.values),
        "items": len(value_N),
        "largest": float(counts_V.max() / len(value_N)),
        "most_frequent": dict(zip(label.values[:12], counts_V[:12].tolist(), strict=False)),
        "depths": depths,
    }


def _same_pairs(counts: np.ndarray) -> float:
    """Ordered pairs of different items inside groups of these sizes."""
    return float((counts.astype(np.float64) * (counts - 1)).sum())


def domain_use(label: Label, sids: SemanticIds, sid_N: np.ndarray) -> list[dict[str, Any]]:
    """How each domain uses the shared codebooks: codes and perplexity per level, collisions inside it, and
    the share of its items whose level-1 code no other domain uses.
    """
    first_N = sids.codes_NL[:, 0]
    domains_K = np.zeros(sids.level_sizes[0], dtype=np.int64)
    for value in range(len(label.values)):
        domains_K[np.unique(first_N[label.value_N == value])] += 1
    rows = []
    for value, name in enumerate(label.values):
        of_N = label.value_N == value
        uses = [level_use(sids.codes_NL[of_N, level], size) for level, size in enumerate(sids.level_sizes)]
        rows.append(
            {
                "domain": name,
                "items": int(of_N.sum()),
                "used": [use["used"] for use in uses],
                "perplexity": [use["perplexity"] for use in uses],
                "collision_rate": 1.0 - len(np.unique(sid_N[of_N])) / int(of_N.sum()),
                "own_level_1": float((domains_K[first_N[of_N]] == 1).mean()),
            }
        )
    return rows
