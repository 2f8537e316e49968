"""Who interacted with what, in which order, and which interactions train, valid and test may use.

Legend: S sequences, I interactions, C cases (a history and its target), N items.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sid_builder.errors import InputError
from sid_builder.splits import SplitOptions

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class Histories:
    """Cases of a split: c asks for position `position_C[c]` of sequence `sequence_C[c]`, given all before."""

    interactions: "Interactions"
    sequence_C: np.ndarray  # int64
    position_C: np.ndarray  # int64, offset inside the sequence, >= 1

    def __len__(self) -> int:
        return len(self.sequence_C)

    def history(self, case: int, max_history: int | None = None) -> np.ndarray:
        """Item indices before the target, oldest first, int32; the newest `max_history` if given.

        A valid target that is not in the catalogue (-1) is left out of the test history it would be part of.
        """
        start = int(self.interactions.indptr_S1[self.sequence_C[case]])
        end = start + int(self.position_C[case])
        if max_history is not None:
            start = max(start, end - max_history)
        items = self.interactions.items_I[start:end]
        return items if (items >= 0).all() else items[items >= 0]

    @cached_property
    def targets_C(self) -> np.ndarray:
        """Target item index per case, int32; -1 when the target is not in the catalogue."""
        return self.interactions.items_I[self.interactions.indptr_S1[self.sequence_C] + self.position_C]

    def take(self, cases: np.ndarray) -> "Histories":
        return Histories(self.interactions, self.sequence_C[cases], self.position_C[cases])


@dataclass(frozen=True)
class Interactions:
    """Sequences (oldest first) in CSR form with split boundaries.

    In sequence s, a split asks for the positions `lo <= p < hi`: `train_lo_S[s]`, `train_hi_S[s]` and so on
    (lo = hi: none). Leave-one-out, a global cut in time and pre-split rows (MiniOneRec) are all this.
    """

    users: pa.Array  # string, one per sequence
    indptr_S1: np.ndarray  # int64
    items_I: np.ndarray  # int32
    train_lo_S: np.ndarray  # int64
    train_hi_S: np.ndarray  # int64
    valid_lo_S: np.ndarray  # int64
    valid_hi_S: np.ndarray  # int64
    test_lo_S: np.ndarray  # int64
    test_hi_S: np.ndarray  # int64
    timestamps_I: np.ndarray | None = None  # int64, seconds
    features_I: Mapping[str, np.ndarray] = field(default_factory=dict)  # rating, price, ...: one value each

    @property
    def num_sequences(self) -> int:
        return len(self.indptr_S1) - 1

    @property
    def num_interactions(self) -> int:
        return len(self.items_I)

    @staticmethod
    def from_csr(
        users: pa.Array,
        indptr_S1: np.ndarray,
        items_I: np.ndarray,
        timestamps_I: np.ndarray | None = None,
        features_I: Mapping[str, np.ndarray] | None = None,
        options: SplitOptions | None = None,
    ) -> "Interactions":
        """Split sequences (each oldest first) as `options` say, leave-one-out by default.

        Raises:
            InputError: if there are no interactions, or no timestamps for a split in time.
        """
        if len(items_I) == 0:
            raise InputError("interactions: there are none; check the sequences file")
        return Interactions(
            users=users,
            indptr_S1=indptr_S1,
            items_I=items_I,
            timestamps_I=timestamps_I,
            features_I=features_I or {},
            **(options or SplitOptions()).bounds(indptr_S1, timestamps_I),
        )

    @staticmethod
    def leave_one_out(
        users: list[str], sequences: list[np.ndarray], timestamps: list[np.ndarray] | None = None
    ) -> "Interactions":
        """`from_csr` for sequences in a list: what generated data and small tests have at hand."""
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        return Interactions.from_csr(
            pa.array(users, pa.string()),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.concatenate([np.empty(0, np.int32), *sequences]).astype(np.int32),
            np.concatenate(timestamps).astype(np.int64) if timestamps is not None else None,
        )

    def histories(self, split: Split, first: int = 0, end: int | None = None) -> Histories:
        """Cases of a split, in sequence order: every position it asks for that has a history.

        Args:
            first, end: only sequences `first <= s < end`; all by default.
        """
        if split not in SPLITS:
            raise InputError(f"split: {split!r} is not one of {list(SPLITS)}")
        low, high = (bound_S[first:end] for bound_S in self.bounds_of(split))
        low = np.maximum(low, 1)
        counts = np.maximum(high - low, 0)
        sequence = np.repeat(first + np.arange(len(counts)), counts)
        before = np.repeat(np.cumsum(counts) - counts, counts)
        return Histories(self, sequence, np.repeat(low, counts) + np.arange(counts.sum()) - before)

    def bounds_of(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Positions [lo, hi) a split asks for, per sequence."""
        return getattr(self, f"{split}_lo_S"), getattr(self, f"{split}_hi_S")

    def without_last_train(self) -> "Interactions":
        """The same sequences, each one's last train interaction taken from train (it keeps at least one).

        What a first stage of training leaves to a second one, unseen as targets.

        Raises:
            InputError: when no sequence has two train interactions (pre-split rows have one each).
        """
        spare = self.train_hi_S - self.train_lo_S > 1
        if not spare.any():
            raise InputError(
                "hold_out_last: no sequence has two train interactions to hold one out of; set it to false"
            )
        return dataclasses.replace(self, train_hi_S=self.train_hi_S - spare)

    def only_train(self) -> "Interactions":
        """What training may look at: of every sequence with train positions, all that stands before their
        end. Nothing of valid or test is left in it, nor a sequence that only they ask for.
        """
        kept_S = self.train_hi_S > self.train_lo_S
        end_S = np.where(kept_S, self.train_hi_S, 0)
        offset_I = np.arange(self.num_interactions) - np.repeat(self.indptr_S1[:-1], np.diff(self.indptr_S1))
        kept_I = offset_I < np.repeat(end_S, np.diff(self.indptr_S1))
        nothing = np.zeros(int(kept_S.sum()), dtype=np.int64)
        return Interactions(
            users=self.users.filter(pa.array(kept_S)),
            indptr_S1=np.concatenate([[0], np.cumsum(end_S[kept_S])]).astype(np.int64),
            items_I=self.items_I[kept_I],
            train_lo_S=self.train_lo_S[kept_S],
            train_hi_S=self.train_hi_S[kept_S],
            valid_lo_S=nothing,
            valid_hi_S=nothing,
            test_lo_S=nothing,
            test_hi_S=nothing,
            timestamps_I=None if self.timestamps_I is None else self.timestamps_I[kept_I],
            features_I={name: values[kept_I] for name, values in self.features_I.items()},
        )

    def train_counts(self, num_items: int) -> np.ndarray:
        """How often each item occurs among train's interactions, int64 [N]."""
        items = self.items_I[self._asked_by("train")]
        return np.bincount(items[items >= 0], minlength=num_items)

    def _asked_by(self, split: Split) -> np.ndarray:
        """Which interactions are positions of a split, bool [I]."""
        low, high = self.bounds_of(split)
        change = np.zeros(self.num_interactions + 1, dtype=np.int64)
        some = high > low
        np.add.at(change, self.indptr_S1[:-1][some] + low[some], 1)
        np.add.at(change, self.indptr_S1[:-1][some] + high[some], -1)
        return np.cumsum(change[:-1]) > 0

    @cached_property
    def has_repeats(self) -> bool:
        """Whether any sequence holds an item twice; decides whether evaluation excludes the history."""
        rows = np.repeat(np.arange(self.num_sequences, dtype=np.int64), np.diff(self.indptr_S1))
        known = self.items_I >= 0
        pairs = np.sort(rows[known] << 32 | self.items_I[known].astype(np.int64))
        return bool((pairs[1:] == pairs[:-1]).any())

    def check(self, num_items: int) -> None:
        """InputError for an index outside the catalogue (-1, unknown, is fine as a valid or test target)."""
        bad = (self.items_I >= num_items) | (self.items_I < -1)
        if bad.any():
            value = int(self.items_I[np.argmax(bad)])
            raise InputError(
                f"interactions: item_index {value} is outside the catalogue of {num_items} items"
            )
        if ((self.items_I < 0) & ~(self._asked_by("valid") | self._asked_by("test"))).any():
            raise InputError(
                "interactions: an item of train or of a history is not in the catalogue; drop it or add it"
            )

    def save(self, directory: Path) -> None:
        """Write `interactions.parquet` (row: interaction) and `sequences.parquet` (row: sequence)."""
        columns = {"item_index": pa.array(self.items_I)}
        if self.timestamps_I is not None:
            columns["timestamp"] = pa.array(self.timestamps_I)
        columns |= {f"feature_{name}": pa.array(values) for name, values in self.features_I.items()}
        pq.write_table(pa.table(columns), directory / "interactions.parquet", compression="zstd")
        rows = {"user": self.users, "length": np.diff(self.indptr_S1)}
        for split in SPLITS:
            rows[f"{split}_lo"], rows[f"{split}_hi"] = self.bounds_of(split)
        pq.write_table(pa.table(rows), directory / "sequences.parquet", compression="zstd")

    @staticmethod
    def load(directory: Path) -> "Interactions":
        columns = pq.read_table(directory / "interactions.parquet")
        rows = pq.read_table(directory / "sequences.parquet")
        stamps = columns.column("timestamp").to_numpy() if "timestamp" in columns.column_names else None
        return Interactions(
            users=rows.column("user").combine_chunks(),
            indptr_S1=np.concatenate([[0], np.cumsum(rows.column("length").to_numpy())]).astype(np.int64),
            items_I=columns.column("item_index").to_numpy(),
            timestamps_I=stamps,
            features_I={
                name.removeprefix("feature_"): columns.column(name).to_numpy()
                for name in columns.column_names
                if name.startswith("feature_")
            },
            **{
                f"{split}_{end}_S": rows.column(f"{split}_{end}").to_numpy()
                for split in SPLITS
                for end in ("lo", "hi")
            },
        )
