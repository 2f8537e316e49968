"""Rows that are split already: each is a history and a target, and its file says which split asks for it.

Legend: S sequences (one per row), I interactions.
"""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sid_builder.errors import InputError
from sid_builder.interactions import SPLITS, Interactions, Split


class PresplitRows:
    """Collects rows into `Interactions` of one sequence per row, whose last position its split asks for.

    Only transitions into targets count for train: what stands in a history may be another row's test target.
    """

    def __init__(self) -> None:
        self._users: list[str] = []
        self._items = array("i")
        self._lengths = array("q")
        self._splits = array("b")

    def add(self, split: Split, user: str, items: Sequence[int]) -> None:
        """Append a row: item indices oldest first, the target last."""
        self._users.append(user)
        self._items.extend(items)
        self._lengths.append(len(items))
        self._splits.append(SPLITS.index(split))

    def finish(self, first_file: str) -> Interactions:
        """All rows in the order they were added; InputError, naming a file, when there are none."""
        if not self._users:
            raise InputError(f"{first_file}: has no rows; check the directory")
        lengths_S = np.array(self._lengths, dtype=np.int64)
        split_S = np.array(self._splits)
        bounds: dict[str, Any] = {}
        for number, split in enumerate(SPLITS):
            bounds[f"{split}_lo_S"] = lengths_S - 1
            bounds[f"{split}_hi_S"] = lengths_S - 1 + (split_S == number)
        return Interactions(
            users=pa.array(self._users, pa.string()),
            indptr_S1=np.concatenate([[0], np.cumsum(lengths_S)]).astype(np.int64),
            items_I=np.array(self._items, dtype=np.int32),
            **bounds,
        )
