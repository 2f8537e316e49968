"""Who interacted with what in train, as a bipartite graph: its pairs, sparse matrices and negatives.

Legend: S sequences, U users, N items, P distinct (user, item) pairs, p pairs of one batch.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch

from sid_builder.errors import InputError
from sid_builder.interactions import Interactions


@dataclass(frozen=True)
class UserItemGraph:
    """Distinct pairs sorted by user, then item. `user_of_sequence_S` maps sequences to users: rows of
    pre-split data that name the same user belong together.
    """

    num_users: int
    num_items: int
    user_of_sequence_S: np.ndarray  # int64
    users_P: np.ndarray  # int64
    items_P: np.ndarray  # int64

    @staticmethod
    def of(interactions: Interactions, num_items: int) -> "UserItemGraph":
        """The pairs that train shows: what stands before `train_hi_S` in sequences with train positions.

        Raises:
            InputError: if there are none.
        """
        low_S, high_S = interactions.bounds_of("train")
        shown_S = np.where(high_S > low_S, high_S, 0)
        sequence = np.repeat(np.arange(interactions.num_sequences), shown_S)
        offset = np.arange(len(sequence)) - np.repeat(np.cumsum(shown_S) - shown_S, shown_S)
        items = interactions.items_I[interactions.indptr_S1[sequence] + offset].astype(np.int64)
        if len(items) == 0:
            raise InputError("interactions: train has none; check the split")
        names = interactions.users.dictionary_encode()
        user_of_sequence_S = names.indices.to_numpy().astype(np.int64)
        pairs = np.unique(user_of_sequence_S[sequence] << 32 | items)
        return UserItemGraph(
            len(names.dictionary), num_items, user_of_sequence_S, pairs >> 32, pairs & 0xFFFFFFFF
        )

    @cached_property
    def seen_items(self) -> np.ndarray:
        """Items of any pair, ascending, int64."""
        return np.unique(self.items_P)

    def normalised(self) -> sp.csr_matrix:
        """float32 [U, N]: 1 / sqrt(degree of user * degree of item) at every pair."""
        degree_U = np.bincount(self.users_P, minlength=self.num_users)
        degree_N = np.bincount(self.items_P, minlength=self.num_items)
        values_P = 1.0 / np.sqrt(degree_U[self.users_P] * degree_N[self.items_P])
        shape = (self.num_users, self.num_items)
        return sp.csr_matrix((values_P.astype(np.float32), (self.users_P, self.items_P)), shape)

    @cached_property
    def trainable_pairs(self) -> np.ndarray:
        """Pairs whose user left some seen item out, so that a negative exists: indices into P."""
        degree_U = np.bincount(self.users_P, minlength=self.num_users)
        return np.flatnonzero(degree_U[self.users_P] < len(self.seen_items))

    @cached_property
    def _gaps(self) -> tuple[np.ndarray, np.ndarray]:
        """Per pair (user, number of seen items below its item that the user left out) as one ascending key;
        and each user's first pair, int64 [U+1].
        """
        starts_U1 = np.searchsorted(self.users_P, np.arange(self.num_users + 1))
        rank_P = np.searchsorted(self.seen_items, self.items_P)
        left_out_P = rank_P - (np.arange(len(rank_P)) - starts_U1[self.users_P])
        return self.users_P * (len(self.seen_items) + 1) + left_out_P, starts_U1

    def negatives(self, pairs_p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each pair an item its user does not have, uniform over those seen in train, int64 [p].

        Exact, without rejection: the r-th left-out item has rank r + the pairs with at most r left out below.
        """
        keys_P, starts_U1 = self._gaps
        users_p = self.users_P[pairs_p]
        left_out_p = len(self.seen_items) - np.diff(starts_U1)[users_p]
        drawn_p = rng.integers(left_out_p)
        below = np.searchsorted(keys_P, users_p * (len(self.seen_items) + 1) + drawn_p, side="right")
        return self.seen_items[drawn_p + below - starts_U1[users_p]]


class SparseProduct(torch.autograd.Function):
    """`apply(matrix, transposed, dense)`: matrix @ dense with both directions as CSR.

    Left to autograd, the gradient would transpose the matrix in every step.
    """

    @staticmethod
    def forward(ctx, matrix: torch.Tensor, transposed: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        ctx.transposed = transposed
        return matrix @ dense

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # type: ignore[override]
        return None, None, ctx.transposed @ grad.contiguous()


def torch_csr(matrix: sp.csr_matrix, device: torch.device | str) -> torch.Tensor:
    """The same matrix as a sparse torch tensor, float32."""
    with warnings.catch_warnings():
        # Says only that CSR is new; the COO layout is seven times slower on a CPU.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data),
            matrix.shape,
            check_invariants=True,
        ).to(device)
