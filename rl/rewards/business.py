"""`business`: what showing an item is worth, by a column of the catalogue (price) or by feedback in train.

    rewards: {rule: 1.0, business: 0.1}
    reward_args: {business: {column: margin}}
    reward_args: {business: {column: play_seconds, duration: seconds}}      # OneRec-V2: what length promises

Columns are those sources keep: of the catalogue `price` and all further columns, of interactions their
features, of which an item has the mean over train. Nothing of valid or test is in it.

Legend: N items, I interactions of train.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rl.rewards.completions import Completions
from rl.rewards.item_columns import catalog_numbers, mean_by_item, normalised_by_duration, percentiles
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex

_FIELD = "reward_args.business"


@dataclass(frozen=True)
class BusinessOptions:
    """Which column, and how it becomes a reward."""

    column: str = field(metadata={"help": "A column of the catalogue, or a feature of interactions."})
    table: Literal["catalog", "interactions"] | None = field(
        default=None, metadata={"help": "Where the column is; needed only if both have one of this name."}
    )
    duration: str | None = field(
        default=None,
        metadata={
            "help": "The column that says how long an item is. Feedback (a play time) is then a percentile "
            "among the user's feedback on items of about that length."
        },
    )
    transform: Literal["rank", "zscore", "log", "none"] = field(
        default="rank",
        metadata={
            "help": "rank: percentile among the items, 0..1; zscore: distance from their mean in standard "
            "deviations; log: log(1 + value); none: the value."
        },
    )
    prefer: Literal["high", "low"] = field(default="high", metadata={"help": "Low turns the sign around."})
    missing: Literal["mean", "lowest", "error"] = field(
        default="mean",
        metadata={"help": "Reward of an item without a value: the others' mean, their lowest, or an error."},
    )

    def check(self, prefix: str) -> None:
        """InputError for a duration where there is nothing it could normalise."""
        if self.duration is not None and self.table == "catalog":
            raise InputError(
                f"{prefix}.duration: normalises feedback, not a catalogue's column; drop one of them"
            )


class BusinessReward:
    """The transformed column; every item has a value once it is built."""

    def __init__(self, options: BusinessOptions, index: SidIndex, train: Interactions) -> None:
        value_N = _column(options, index, train)
        shelf_N = index.live_N & ~np.isnan(value_N)
        absent = int((index.live_N & np.isnan(value_N)).sum())
        if absent and options.missing == "error":
            raise InputError(
                f"{_FIELD}.missing: {absent} items have no {options.column!r}; add it, or set missing: mean"
            )
        known_K = value_N[shelf_N]
        if len(known_K) == 0 or np.ptp(known_K) == 0:
            raise InputError(
                f"{_FIELD}.column: {options.column!r} is not known of two items with different values, so it "
                "prefers none; name another column"
            )
        worth_K = _transformed(known_K, options)
        self.lowest = float(worth_K.min())
        self.value_N = np.full(len(value_N), worth_K.mean() if options.missing == "mean" else self.lowest)
        self.value_N[shelf_N] = worth_K

    def __call__(self, completions: Completions) -> np.ndarray:
        """Float64 [C], the mean over the items of the SID; any item's lowest for what is no item's SID."""
        _, item_P = completions.items
        return completions.mean_of_items(self.value_N[item_P], otherwise=self.lowest)


def _column(options: BusinessOptions, index: SidIndex, train: Interactions) -> np.ndarray:
    """The column as float64 [N], NaN where it is missing."""
    name = options.column
    table = options.table or (None if options.duration is None else "interactions")
    value_N, value_I = None, None
    if table != "interactions":
        value_N = catalog_numbers(index.catalog, name, f"{_FIELD}.column")
    if table != "catalog" and name in train.features_I:
        value_I = train.features_I[name].astype(np.float64)
    if value_N is not None and value_I is not None:
        raise InputError(f"{_FIELD}.table: both have a column {name!r}; say catalog or interactions")
    if value_N is not None:
        return value_N
    if value_I is None:
        raise _unknown("column", name, index, train)
    if options.duration is not None:
        value_I = normalised_by_duration(value_I, _duration(options.duration, index, train), train)
    return mean_by_item(value_I, train.items_I, index.catalog.num_items)


def _duration(column: str, index: SidIndex, train: Interactions) -> np.ndarray:
    """The duration of what each interaction is with, float64 [I]: its own feature, or its item's column."""
    if column in train.features_I:
        return train.features_I[column].astype(np.float64)
    of_catalog = catalog_numbers(index.catalog, column, f"{_FIELD}.duration")
    if of_catalog is None:
        raise _unknown("duration", column, index, train)
    return of_catalog[train.items_I]


def _unknown(option: str, column: str, index: SidIndex, train: Interactions) -> InputError:
    return InputError(
        f"{_FIELD}.{option}: {column!r} is no column with values; the catalogue has "
        f"{sorted(index.catalog.table.column_names)}, interactions have {sorted(train.features_I)}"
    )


def _transformed(value_K: np.ndarray, options: BusinessOptions) -> np.ndarray:
    """The values of the items that have one, as rewards."""
    if options.transform == "log" and (value_K < 0).any():
        raise InputError(
            f"{_FIELD}.transform: log of {options.column!r}, whose least value is {value_K.min()}; use rank "
            "or zscore"
        )
    if options.transform == "rank":
        value_K = percentiles(value_K, np.zeros((1, len(value_K)), dtype=np.int64))
    elif options.transform == "log":
        value_K = np.log1p(value_K)
    elif options.transform == "zscore":
        value_K = (value_K - value_K.mean()) / value_K.std()
    return value_K if options.prefer == "high" else -value_K
