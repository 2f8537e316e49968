"""The items a page can show one by one: their titles, codes, labels and places on the map.

One table, embedded in the page as JSON, feeds the tree, the map and the search box.

Legend: N items, R items in the table.
"""

from typing import Any

import numpy as np

from sid_builder.catalog import Catalog
from sid_builder.report.labels import Label, category_labels, domain_label
from sid_builder.report.vectors import project, sample_items
from sid_builder.semantic_ids import SemanticIds

SHOWN_VALUES = 11
TITLE_LENGTH = 100
GRID = 4095  # map coordinates are whole numbers 0..GRID on the longer axis


def item_table(
    catalog: Catalog, sids: SemanticIds, embeddings_ND: np.ndarray | None, limit: int, map_method: str
) -> dict[str, Any]:
    """JSON values of all items, or of a sample of `limit`.

    Keys: `total`, `pattern` (spelling of a token), `depth`; per item `ids`, `titles` (cut to `TITLE_LENGTH`),
    `codes` (flat, `depth` each, -1 pads); `labels`: name, values (the most frequent, then "other"), of (index
    per item, -1: none); `map`: method, x, y, variance, or null without embeddings.
    """
    items = sample_items(sids.num_items, limit)
    rows = catalog.table.select(["item_id", "title"]).take(items)
    labels = [*category_labels(catalog), domain_label(catalog)]
    return {
        "total": sids.num_items,
        "pattern": sids.pattern,
        "depth": sids.depth,
        "ids": rows.column("item_id").to_pylist(),
        "titles": [_cut(title) for title in rows.column("title").to_pylist()],
        "codes": sids.codes_NL[items].ravel().tolist(),
        "labels": [_shown(label, items) for label in labels if label is not None],
        "map": _map(embeddings_ND, items, map_method),
    }


def _cut(title: str) -> str:
    return title if len(title) <= TITLE_LENGTH else title[: TITLE_LENGTH - 1].rstrip() + "…"


def _shown(label: Label, items: np.ndarray) -> dict[str, Any]:
    # Values are in order of frequency: all behind the first few become one.
    more = len(label.values) > SHOWN_VALUES + 1
    values = [*label.values[:SHOWN_VALUES], "other"] if more else label.values
    return {
        "name": label.name,
        "values": values,
        "of": np.minimum(label.value_N[items], len(values) - 1).tolist(),
    }


def _map(embeddings_ND: np.ndarray | None, items: np.ndarray, method: str) -> dict[str, Any] | None:
    if embeddings_ND is None or len(items) < 3:
        return None
    place_R2, variance = project(embeddings_ND, items, method)
    low = place_R2.min(axis=0)
    extent = float((place_R2.max(axis=0) - low).max())
    grid_R2 = np.rint((place_R2 - low) / (extent or 1.0) * GRID).astype(int)
    return {
        "method": {"pca": "PCA", "tsne": "t-SNE"}[method],
        "variance": variance,
        "x": grid_R2[:, 0].tolist(),
        "y": (grid_R2[:, 1].max() - grid_R2[:, 1]).tolist(),  # screens count downwards
    }
