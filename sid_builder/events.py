"""From an event log to sequences: time window, rating filter, repeats, k-core, order, split; all counted.

    narrowed, dropped = narrow(log, options)           # what no catalogue can bring back goes early
    prepared = prepare(narrowed, catalogue_ids, options, dropped)

Legend: I interactions, U users, N items of the log, S sequences (users that are left), C catalogue rows.
"""

import datetime
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sid_builder.errors import InputError
from sid_builder.event_log import EventLog
from sid_builder.interactions import Interactions
from sid_builder.splits import SplitOptions


@dataclass(frozen=True, kw_only=True)
class EventOptions(SplitOptions):
    """What of a raw log is kept; the arguments of every source that reads one inherit these."""

    since: str | int | None = field(
        default=None,
        metadata={"help": "Keep interactions at or after this: ISO date or time (UTC), or seconds."},
    )
    until: str | int | None = field(
        default=None, metadata={"help": "Keep interactions before this: ISO date or time (UTC), or seconds."}
    )
    min_rating: float | None = field(
        default=None, metadata={"help": "Keep interactions rated at least this; unrated ones go."}
    )
    repeats: Literal["keep", "first", "last"] = field(
        default="keep",
        metadata={"help": "Which interactions of a user with the same item are kept: all, first or last."},
    )
    user_core: int = field(
        default=1, metadata={"help": "Keep users with at least this many interactions (k-core, iterated)."}
    )
    item_core: int = field(
        default=1, metadata={"help": "Keep items with at least this many interactions (k-core, iterated)."}
    )
    items_without_metadata: Literal["drop", "keep", "error"] = field(
        default="drop",
        metadata={
            "help": "Interactions with an item the items file lacks: drop them (counted), keep the item "
            "without text, or stop."
        },
    )
    items_without_interactions: Literal["drop", "keep"] = field(
        default="drop", metadata={"help": "Catalogue items that nobody touches in what is left."}
    )

    def check(self) -> None:
        """InputError for values that no log could satisfy."""
        super().check()
        since, until = seconds_of(self.since, "since"), seconds_of(self.until, "until")
        if since is not None and until is not None and since >= until:
            raise InputError(f"source_args.until: {self.until} is not after since {self.since}")
        for name in ("user_core", "item_core"):
            if getattr(self, name) < 1:
                raise InputError(f"source_args.{name}: {getattr(self, name)}; give at least 1 (1 keeps all)")


@dataclass(frozen=True)
class Prepared:
    """What is left of a log, over a dense catalogue.

    `item_rows_N[i]` is the row of item_index i among the catalogue's ids, or -1 for an item without metadata
    (these come last, in the log's order; without a catalogue the rows are those of `log.items`).
    """

    item_ids: pa.Array  # string, in order of item_index
    item_rows_N: np.ndarray  # int64
    interactions: Interactions
    notes: dict[str, Any]


def seconds_of(moment: str | int | None, name: str) -> int | None:
    """Seconds since 1970 of an ISO date or time (UTC unless it names a zone) or of a number of seconds."""
    if moment is None or isinstance(moment, int):
        return moment
    try:
        parsed = datetime.datetime.fromisoformat(moment)
    except ValueError as error:
        raise InputError(
            f"source_args.{name}: {moment!r} is no ISO date; write it as 2016-10-01 or as seconds"
        ) from error
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=datetime.UTC)
    return int(parsed.timestamp())


def k_core(user_I: np.ndarray, item_I: np.ndarray, user_core: int, item_core: int) -> np.ndarray:
    """Interactions of the largest part in which every user and item has that many, bool [I].

    Users and items below their core go, again and again until none is; repeats count as interactions.
    """
    rows = np.arange(len(user_I))
    while True:
        users, items = user_I[rows], item_I[rows]
        stays = (np.bincount(users)[users] >= user_core) & (np.bincount(items)[items] >= item_core)
        if stays.all():
            break
        rows = rows[stays]
    kept = np.zeros(len(user_I), dtype=bool)
    kept[rows] = True
    return kept


def narrow(log: EventLog, options: EventOptions) -> tuple[EventLog, dict[str, int]]:
    """Drop what the options exclude, whatever the catalogue; (the rest in the file's order, rows by reason).

    Raises:
        InputError: for an option the log has no column for, or when nothing is left.
    """
    options.check()
    if len(log) == 0:
        raise InputError("interactions: there are none that can be used; check the file")
    since, until = seconds_of(options.since, "since"), seconds_of(options.until, "until")
    dropped: dict[str, int] = {}

    def keep(log: EventLog, reason: str, kept_I: np.ndarray) -> EventLog:
        dropped[reason] = len(log) - int(np.count_nonzero(kept_I))
        return log.take(kept_I) if dropped[reason] else log

    if since is not None or until is not None:
        stamps_I = _column(log.timestamps_I, "since" if since is not None else "until", "timestamps")
        inside_I = (stamps_I >= since) if since is not None else np.ones(len(log), dtype=bool)
        if until is not None:
            inside_I &= stamps_I < until
        log = keep(log, "outside_time_window", inside_I)
    if options.min_rating is not None:
        ratings_I = _column(log.features_I.get("rating"), "min_rating", "ratings")
        log = keep(log, "below_min_rating", ratings_I >= np.float32(options.min_rating))
    if options.repeats != "keep":
        log = keep(log, "repeat", _without_repeats(log, options.repeats))
    if max(options.user_core, options.item_core) > 1:
        log = keep(log, "k_core", k_core(log.user_I, log.item_I, options.user_core, options.item_core))
    if len(log) == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items() if count)
        raise InputError(
            f"interactions: none are left (dropped: {reasons}); loosen the filters in source_args"
        )
    return log, dropped


def prepare(
    log: EventLog,
    catalogue_ids: pa.Array | None,
    options: EventOptions,
    dropped: Mapping[str, int] | None = None,
) -> Prepared:
    """Narrow the log, also to the catalogue, sort it into sequences and split them.

    A sequence is a user's interactions by time, equal times (or all, without timestamps) in the file's order;
    sequences are in order of the user's first appearance, items in the catalogue's order.

    Args:
        catalogue_ids: ids of the items with metadata, each once; None: the log's own items are the catalogue.
        dropped: rows dropped before by reason (malformed lines, an earlier `narrow`), for the notes.

    Raises:
        InputError: as `narrow`, and for an item without metadata where the options say so.
    """
    known = log.items if catalogue_ids is None else catalogue_ids
    row_N = pc.fill_null(pc.index_in(log.items, value_set=known), -1).to_numpy().astype(np.int64)
    narrowed, reasons = narrow(log, options)
    counts = Counter(dropped) + Counter(reasons)
    missing = np.flatnonzero(_touched(narrowed) & (row_N < 0))
    if len(missing) and options.items_without_metadata == "error":
        raise InputError(
            f"interactions: item {log.items[missing[0]].as_py()!r} is not in the items file (nor are "
            f"{len(missing) - 1} more); add them, or set items_without_metadata to drop or keep"
        )
    if len(missing) and options.items_without_metadata == "drop":
        has_metadata = row_N[narrowed.item_I] >= 0
        if not has_metadata.any():
            raise InputError(
                f"interactions: none of their {len(missing)} items is in the items file, not even "
                f"{log.items[missing[0]].as_py()!r}; give files whose ids agree"
            )
        counts["item_without_metadata"] = int(np.count_nonzero(~has_metadata))
        # A k-core of fewer items lies inside that of more: nothing that has gone could come back.
        narrowed, reasons = narrow(narrowed.take(has_metadata), options)
        counts += Counter(reasons)

    touched = _touched(narrowed)
    rows_C = np.zeros(len(known), dtype=bool)
    rows_C[row_N[touched & (row_N >= 0)]] = True
    without_interactions = len(known) - int(np.count_nonzero(rows_C))
    if options.items_without_interactions == "keep":
        rows_C[:] = True
    kept_rows, bare = np.flatnonzero(rows_C), np.flatnonzero(touched & (row_N < 0))
    index_N = np.full(len(row_N), -1, dtype=np.int32)
    index_N[touched] = np.searchsorted(kept_rows, row_N[touched])
    index_N[bare] = len(kept_rows) + np.arange(len(bare))

    interactions = _sequences(narrowed, index_N, options)
    notes = {
        "split": options.split_name,
        "rows_read": len(log) + sum((dropped or {}).values()),
        "rows_dropped": counts.total(),
        "rows_dropped_by": dict(counts),
        "users_dropped": len(log.users) - interactions.num_sequences,
        "items_without_metadata": len(missing),
        "items_without_interactions": without_interactions,
    }
    return Prepared(
        pa.concat_arrays([known.take(pa.array(kept_rows)), log.items.take(pa.array(bare))]),
        np.concatenate([kept_rows, np.full(len(bare), -1)]),
        interactions,
        notes,
    )


def _touched(log: EventLog) -> np.ndarray:
    """Which items have an interaction, bool [N]."""
    return np.bincount(log.item_I, minlength=len(log.items)) > 0


def _column(values: np.ndarray | None, option: str, what: str) -> np.ndarray:
    if values is None:
        raise InputError(f"source_args.{option}: the data has no {what}; give their column or drop {option}")
    return values


def _without_repeats(log: EventLog, which: str) -> np.ndarray:
    """The first or last interaction of each (user, item) by time, then by the file's order, bool [I]."""
    pair_I = log.user_I.astype(np.int64) << 32 | log.item_I
    if log.timestamps_I is None:
        order = np.argsort(pair_I, kind="stable")
    else:
        order = np.lexsort((log.timestamps_I, pair_I))
    differs = np.diff(pair_I[order]) != 0
    edge = np.ones(1, dtype=bool)
    kept = np.empty(len(log), dtype=bool)
    kept[order] = np.concatenate([edge, differs] if which == "first" else [differs, edge])
    return kept


def _sequences(log: EventLog, index_N: np.ndarray, options: EventOptions) -> Interactions:
    if log.timestamps_I is None:
        order = np.argsort(log.user_I, kind="stable")
    else:
        order = np.lexsort((log.timestamps_I, log.user_I))
    log = log.take(order)
    lengths_U = np.bincount(log.user_I, minlength=len(log.users))
    users = np.flatnonzero(lengths_U)
    return Interactions.from_csr(
        log.users.take(pa.array(users)),
        np.concatenate([[0], np.cumsum(lengths_U[users])]).astype(np.int64),
        index_N[log.item_I],
        log.timestamps_I,
        log.features_I,
        options,
    )
