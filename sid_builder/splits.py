"""Which positions of a sequence train, valid and test ask for: leave-one-out, or one cut in time for all.

Legend: S sequences, I interactions; `indptr_S1` int64 marks where each sequence starts and ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sid_builder.errors import InputError

DEFAULT_SHARES = (8.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How sequences are split; options of sources inherit from it."""

    split: Literal["leave_one_out", "global_temporal"] = field(
        default="leave_one_out",
        metadata={
            "help": "leave_one_out: a user's last item is test's, the one before valid's; global_temporal: "
            "all targets sorted by time and cut by split_shares (needs timestamps)."
        },
    )
    split_shares: list[float] = field(
        default_factory=lambda: list(DEFAULT_SHARES),
        metadata={"help": "Shares of train, valid and test in global_temporal."},
    )

    def check(self) -> None:
        """InputError for shares that are not three positive numbers, or that would have no effect."""
        shares = self.split_shares
        if len(shares) != 3 or not all(0 < share < float("inf") for share in shares):
            raise InputError(
                f"source_args.split_shares: {shares}; give three positive numbers such as {DEFAULT_SHARES}"
            )
        if self.split == "leave_one_out" and tuple(shares) != DEFAULT_SHARES:
            raise InputError(
                f"source_args.split_shares: {shares} has no effect on leave_one_out; "
                "set split: global_temporal or drop it"
            )

    @property
    def split_name(self) -> str:
        """What manifests and reports call the split."""
        if self.split == "leave_one_out":
            return "leave-one-out"
        return "global-temporal " + ":".join(f"{share:g}" for share in self.split_shares)

    def bounds(self, indptr_S1: np.ndarray, timestamps_I: np.ndarray | None) -> dict[str, np.ndarray]:
        """Positions per split and sequence: `train_lo_S`, `train_hi_S`, `valid_lo_S`, ..., int64 [S].

        Raises:
            InputError: for a global-temporal split of interactions without timestamps.
        """
        if self.split == "leave_one_out":
            return leave_one_out(np.diff(indptr_S1))
        if timestamps_I is None:
            raise InputError(
                "source_args.split: global_temporal needs timestamps, but the data has none; "
                "give their column or use leave_one_out"
            )
        return global_temporal(indptr_S1, timestamps_I, self.split_shares)


def leave_one_out(lengths_S: np.ndarray) -> dict[str, np.ndarray]:
    """Of s_1..s_n, n >= 3, train is s_1..s_{n-2}, valid asks s_{n-1}, test s_n; shorter: train."""
    split = lengths_S >= 3
    return _ranges(np.where(split, lengths_S - 2, lengths_S), split, split)


def global_temporal(
    indptr_S1: np.ndarray, timestamps_I: np.ndarray, shares: Sequence[float] = DEFAULT_SHARES
) -> dict[str, np.ndarray]:
    """Sort all windows (positions with a history) by the time of their target and cut them by `shares`.

    Equal times are cut in the order of sequences and, inside one, of positions, so a split's positions in a
    sequence are neighbours. A first position, which no split can ask for, belongs to the split whose
    stretch of the order it falls into: train counts it only if it came before the first cut.
    The cuts are floor(n * train share) and floor(n * valid share) windows, as MiniOneRec's
    `amazon18_data_process.py` has them; test gets the rest.
    """
    lengths_S = np.diff(indptr_S1)
    first_I = np.zeros(len(timestamps_I), dtype=bool)
    first_I[indptr_S1[:-1][lengths_S > 0]] = True
    assert (first_I[1:] | (np.diff(timestamps_I) >= 0)).all(), "sequences are sorted by time"
    order = np.argsort(timestamps_I, kind="stable")
    window = ~first_I[order]
    windows_before = np.cumsum(window) - window
    num_windows = int(window.sum())
    train = int(num_windows * shares[0] / sum(shares))
    valid = int(num_windows * shares[1] / sum(shares))
    split_I = np.empty(len(order), dtype=np.int8)
    split_I[order] = (windows_before >= train).astype(np.int8) + (windows_before >= train + valid)
    sequence_I = np.repeat(np.arange(len(lengths_S)), lengths_S)
    counts = (np.bincount(sequence_I[split_I == k], minlength=len(lengths_S)) for k in range(3))
    return _ranges(*counts)


def _ranges(train_S: np.ndarray, valid_S: np.ndarray, test_S: np.ndarray) -> dict[str, np.ndarray]:
    """Neighbouring ranges of these lengths, train's from position 0."""
    ends = np.cumsum([train_S, valid_S, test_S], axis=0, dtype=np.int64)
    return {
        "train_lo_S": np.zeros_like(ends[0]),
        "train_hi_S": ends[0],
        "valid_lo_S": ends[0],
        "valid_hi_S": ends[1],
        "test_lo_S": ends[1],
        "test_hi_S": ends[2],
    }
