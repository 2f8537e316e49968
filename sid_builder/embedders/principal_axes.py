"""Mean, covariance and principal axes of rows that come in blocks; PCA and ZCA whitening are made of them.

Legend: r rows of one block, N rows, D dimensions, E axes kept.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from sid_builder.errors import InputError

# Directions with less of the largest variance than this are rounding, not data.
_RANK_TOLERANCE = 1e-9

Blocks = Callable[[], Iterable[np.ndarray]]  # each call goes through all rows once, in blocks [r, D]


@dataclass(frozen=True)
class PrincipalAxes:
    """Axes are the columns of `axes_DE`, orthonormal, by falling variance; all float64.

    An axis points where its largest entry (by size) is positive, so that the sign does not depend on the
    linear algebra at hand.
    """

    mean_D: np.ndarray
    variances_E: np.ndarray
    axes_DE: np.ndarray
    explained: float  # share of the total variance the axes hold

    @staticmethod
    def of(blocks: Blocks, num_axes: int | None, field: str) -> "PrincipalAxes":
        """Of all rows, in two passes and float64: the mean first, then the covariance of centred rows.

        Args:
            num_axes: how many to keep; None: all.
            field: the option that asked for them, for messages.

        Raises:
            InputError: if more are asked for than there are independent directions.
        """
        mean_D = mean_of(blocks())
        covariance_DD = np.zeros((len(mean_D), len(mean_D)))
        count = 0
        for block_rD in blocks():
            centred_rD = block_rD - mean_D
            covariance_DD += centred_rD.T @ centred_rD
            count += len(block_rD)
        variances_D, axes_DD = np.linalg.eigh(covariance_DD / count)
        variances_D, axes_DD = variances_D[::-1], axes_DD[:, ::-1]
        rank = int(np.count_nonzero(variances_D > _RANK_TOLERANCE * max(variances_D[0], 0.0)))
        wanted = len(mean_D) if num_axes is None else num_axes
        if wanted > rank:
            raise InputError(
                f"{field}: needs {wanted} dimensions, but {count} vectors of size {len(mean_D)} span {rank} "
                f"independent ones; set embedder_args.pca to at most {rank}"
            )
        axes_DE = axes_DD[:, :wanted]
        largest = axes_DE[np.abs(axes_DE).argmax(axis=0), np.arange(wanted)]
        explained = float(variances_D[:wanted].sum() / variances_D.clip(min=0).sum())
        return PrincipalAxes(mean_D, variances_D[:wanted], axes_DE * np.sign(largest), explained)

    def whitening(self, rotate_back: bool) -> np.ndarray:
        """Matrix [D, E] that gives centred rows unit covariance: on the axes (PCA), or turned back (ZCA)."""
        scaled_DE = self.axes_DE / np.sqrt(self.variances_E)
        return scaled_DE @ self.axes_DE.T if rotate_back else scaled_DE


def mean_of(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Mean of all rows, float64 [D]."""
    total, count = 0.0, 0
    for block_rD in blocks:
        total = total + block_rD.sum(axis=0, dtype=np.float64)
        count += len(block_rD)
    return np.asarray(total) / count


def row_ranges(num_rows: int, row_bytes: int, block_bytes: int) -> Iterator[slice]:
    """Consecutive slices whose rows take at most `block_bytes` together (one row at least)."""
    step = max(1, block_bytes // row_bytes)
    for low in range(0, num_rows, step):
        yield slice(low, min(low + step, num_rows))
