"""A 64-bit hash of each row's bytes: counts distinct vectors without sorting them, and draws random codes.

Legend: N rows, D dimensions.
"""

import numpy as np

_BLOCK_BYTES = 64 << 20  # of widened words at a time


def row_hashes(rows_ND: np.ndarray, seed: int = 0) -> np.ndarray:
    """uint64 [N], equal for equal float32 rows (0.0 and -0.0 are equal), whatever else is in the matrix.

    Multilinear hashing of 32-bit words modulo 2^64 (Dietzfelbinger 1996), then splitmix64's finaliser. Two
    different rows share a hash with a probability of about 2^-33 by the former's bound; it is one in 2^64 for
    words not chosen against it.
    """
    num_dims = rows_ND.shape[1]
    keys_D = np.random.default_rng([seed, num_dims]).integers(0, 1 << 64, num_dims, dtype=np.uint64)
    hashes_N = np.empty(len(rows_ND), dtype=np.uint64)
    step = max(1, _BLOCK_BYTES // (8 * num_dims))
    for low in range(0, len(rows_ND), step):
        block = np.ascontiguousarray(rows_ND[low : low + step], dtype=np.float32) + np.float32(0)
        hashes_N[low : low + step] = (block.view(np.uint32) * keys_D).sum(axis=1, dtype=np.uint64)
    return mix(hashes_N)


def mix(values_N: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser on uint64 [N]: neighbouring values come out unrelated."""
    z = values_N.copy()
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def num_distinct(rows_ND: np.ndarray) -> int:
    """How many different rows there are, by hash."""
    return len(np.unique(row_hashes(rows_ND)))
