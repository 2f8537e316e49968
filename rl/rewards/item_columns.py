"""Numbers that data came with, per item or per interaction: what a business reward reads.

Legend: N items, I interactions of train.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sources.columns import numbers

# Longest to shortest duration in a bucket. Of play times that grow with duration, percentiles then still
# correlate with it by .02; by .06 within a factor of 2.
_BUCKET = 1.5


def catalog_numbers(catalog: Catalog, column: str, field: str) -> np.ndarray | None:
    """A catalogue column as float64 [N], NaN where an item has none; None: no such column, or none has any.

    Raises:
        InputError: naming `field` and the first item whose entry is no finite number.
    """
    if column not in catalog.table.column_names:
        return None
    cells = catalog.table.column(column).combine_chunks()
    if pa.types.is_string(cells.type):  # a source's further columns are kept as texts
        cells = pc.if_else(pc.equal(cells, ""), None, cells)
    if cells.null_count == len(cells):
        return None
    value_N, valid_N = numbers(cells)
    if not valid_N.all():
        item = int(np.argmin(valid_N))
        raise InputError(
            f"{field}: {column!r} of item {catalog.item_ids[item]!r} is {cells[item].as_py()!r}; expected a "
            "finite number or nothing"
        )
    return value_N


def mean_by_item(value_I: np.ndarray, items_I: np.ndarray, num_items: int) -> np.ndarray:
    """Mean over each item's interactions that have a value (not NaN), float64 [N]; NaN where none has."""
    given = ~np.isnan(value_I)
    count_N = np.bincount(items_I[given], minlength=num_items)
    total_N = np.bincount(items_I[given], weights=value_I[given], minlength=num_items)
    return np.where(count_N > 0, total_N / np.maximum(count_N, 1), np.nan)


def normalised_by_duration(played_I: np.ndarray, duration_I: np.ndarray, train: Interactions) -> np.ndarray:
    """How long something was played, beside what its user played of about the same length; float64 [I], 0..1.

    OneRec-V2's duration-aware feedback: durations fall into buckets on a logarithmic scale, and a play counts
    by its percentile among the user's plays in the bucket. A play alone in its bucket is at 0.5. NaN without
    a play time or a duration above 0.
    """
    user_S = train.users.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    user_I = np.repeat(user_S, np.diff(train.indptr_S1))
    known = ~np.isnan(played_I) & (duration_I > 0) & np.isfinite(duration_I)
    bucket_I = np.floor(np.log(duration_I[known]) / np.log(_BUCKET)).astype(np.int64)
    result_I = np.full(len(played_I), np.nan)
    result_I[known] = percentiles(played_I[known], np.stack([user_I[known], bucket_I]))
    return result_I


def percentiles(value_I: np.ndarray, group_XI: np.ndarray) -> np.ndarray:
    """(rank - 0.5) / size of each value within its group, float64 [I]; equal values share their mean rank.

    Args:
        group_XI: the columns of this array, [X, I], tell groups apart.
    """
    order = np.lexsort((value_I, *group_XI))
    new_group = np.ones(len(order), dtype=bool)
    new_group[1:] = (np.diff(group_XI[:, order], axis=1) != 0).any(axis=0)
    new_value = new_group.copy()
    new_value[1:] |= np.diff(value_I[order]) != 0
    group_I, run_I = np.cumsum(new_group) - 1, np.cumsum(new_value) - 1
    size_I = np.bincount(group_I)[group_I]
    place_I = np.arange(len(order)) - np.flatnonzero(new_group)[group_I] + 0.5
    shared_I = (np.bincount(run_I, weights=place_I) / np.bincount(run_I))[run_I]
    result_I = np.empty(len(order))
    result_I[order] = shared_I / size_I
    return result_I
