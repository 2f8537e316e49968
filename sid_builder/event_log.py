"""Raw interactions in columns: ten million of them are a few hundred megabytes, with no object for each.

Legend: I interactions in the file's order, U users, N items; a code is a row number of `users` or `items`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class EventLog:
    """Who touched what and when, in the order of the file.

    `features_I` holds one float32 value per interaction under each name (rating, price, ...); NaN: not given.
    """

    users: pa.Array  # string [U], in order of first appearance
    items: pa.Array  # string [N], in order of first appearance
    user_I: np.ndarray  # int32
    item_I: np.ndarray  # int32
    timestamps_I: np.ndarray | None = None  # int64, seconds
    features_I: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user_I)

    def take(self, rows: np.ndarray) -> "EventLog":
        """The same users and items with some interactions only: a bool mask [I], or row numbers in order."""
        return EventLog(
            self.users,
            self.items,
            self.user_I[rows],
            self.item_I[rows],
            None if self.timestamps_I is None else self.timestamps_I[rows],
            {name: values[rows] for name, values in self.features_I.items()},
        )


class LogBuilder:
    """Collects batches of interactions into an `EventLog`; each name is kept once per batch, then once."""

    def __init__(self) -> None:
        self._users: list[pa.DictionaryArray] = []
        self._items: list[pa.DictionaryArray] = []
        self._timestamps: list[np.ndarray] = []
        self._features: dict[str, list[np.ndarray]] = {}

    def add(
        self,
        users: pa.Array,
        items: pa.Array,
        timestamps: np.ndarray | None = None,
        features: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Append a batch; every batch has the same features, and timestamps or none.

        Args:
            users, items: string arrays of one length, without nulls.
            timestamps: int64 seconds.
            features: float values (NaN: not given), kept as float32.
        """
        features = features or {}
        assert len(users) == len(items) and users.null_count == items.null_count == 0
        assert not self._users or (
            features.keys() == self._features.keys() and (timestamps is not None) == bool(self._timestamps)
        )
        self._users.append(users.dictionary_encode())
        self._items.append(items.dictionary_encode())
        if timestamps is not None:
            self._timestamps.append(timestamps.astype(np.int64))
        for name, values in features.items():
            self._features.setdefault(name, []).append(values.astype(np.float32))

    def finish(self) -> EventLog:
        """The log of all batches. The builder is empty afterwards."""
        users, user_I = _joined(self._users)
        items, item_I = _joined(self._items)
        log = EventLog(
            users,
            items,
            user_I,
            item_I,
            np.concatenate(self._timestamps) if self._timestamps else None,
            {name: np.concatenate(parts) for name, parts in self._features.items()},
        )
        self.__init__()  # type: ignore[misc]
        return log


def _joined(batches: list[pa.DictionaryArray]) -> tuple[pa.Array, np.ndarray]:
    """(names, code per row int32) over all batches; the list is emptied on the way."""
    if not batches:
        return pa.array([], pa.string()), np.empty(0, np.int32)
    whole = pa.chunked_array(batches).unify_dictionaries()
    batches.clear()
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in whole.chunks])
    return whole.chunk(0).dictionary, codes.astype(np.int32, copy=False)
