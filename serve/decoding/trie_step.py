"""The trie on a device: children of beams, filters, the choice of the next beams. Shared by every decoder.

Legend: R rows (beams of all requests, request-major), E candidate children of all rows, B requests, K beams.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prompts.vocabulary import SidVocabulary
from serve.decoding.ranking import ItemFilter
from sid_builder.trie import END, SidTrie


@dataclass(frozen=True)
class Candidates:
    """Legal continuations by row: `row_E`, child node `child_E`, token id `token_E` (-1: SID has ended)."""

    row_E: torch.Tensor
    child_E: torch.Tensor
    token_E: torch.Tensor


class DeviceTrie:
    """Tensors of a trie and its tokens on one device; int16/int32, expanded to int64 only where gathered."""

    def __init__(self, trie: SidTrie, vocabulary: SidVocabulary, device: torch.device | str = "cpu") -> None:
        self.trie = trie
        self.vocabulary = vocabulary
        self.device = torch.device(device)
        self.tok = [torch.from_numpy(np.array(tok).view(np.int16)).to(self.device) for tok in trie.tok]
        self.indptr = [torch.from_numpy(np.array(ptr).view(np.int32)).to(self.device) for ptr in trie.indptr]
        self.token_ids = [torch.from_numpy(ids).to(self.device) for ids in vocabulary.token_ids]
        self.sid_token_ids = torch.from_numpy(vocabulary.all_ids).to(self.device)

    @property
    def depth(self) -> int:
        return self.trie.depth

    def children(self, nodes_R: torch.Tensor, level: int) -> Candidates:
        """All children of nodes of `level`; a ragged gather whose cost is the number of children."""
        indptr = self.indptr[level]
        start = indptr[nodes_R].long()
        count = indptr[nodes_R + 1].long() - start
        row = torch.repeat_interleave(torch.arange(len(nodes_R), device=self.device), count)
        before = torch.cumsum(count, 0) - count
        child = torch.arange(len(row), device=self.device) + (start - before)[row]
        code = self.tok[level][child].long() & 0xFFFF
        ended = code == END
        token = self.token_ids[level][code.masked_fill(ended, 0)].masked_fill(ended, -1)
        return Candidates(row, child, token)

    def leaf_ranges(self, nodes: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Leaves [low, high) below nodes of `level`, int64."""
        low, high = nodes, nodes + 1
        for indptr in self.indptr[level:]:
            low, high = indptr[low].long(), indptr[high].long()
        return low, high


class LeafFilters:
    """Filters of a batch of requests, exact at every level: a child is legal iff a legal leaf lies below it.

    Each request's leaves are kept as sorted keys `request * (M + 1) + leaf`; how many lie in a leaf range is
    the difference of two binary searches, so an inner node is never kept without a way down. A leaf with
    several items is excluded only when all of them are.
    """

    def __init__(self, trie: DeviceTrie, filters: Sequence[ItemFilter | None]) -> None:
        self.trie = trie
        self.stride = trie.trie.num_leaves + 1
        excluded, allowed, has_allow = [], [], []
        for request, item_filter in enumerate(filters):
            has_allow.append(item_filter is not None and item_filter.allow is not None)
            if item_filter is None:
                continue
            if item_filter.allow is not None:
                kept = item_filter.allow[item_filter.keeps(item_filter.allow)]
                allowed.append(request * self.stride + np.unique(self._leaves(kept)))
            elif len(item_filter.exclude):
                leaves, count = np.unique(self._leaves(np.unique(item_filter.exclude)), return_counts=True)
                excluded.append(request * self.stride + leaves[count == trie.trie.leaf_size_M[leaves]])
        self.excluded = self._keys(excluded)
        self.allowed = self._keys(allowed)
        self.has_allow_B = torch.tensor(has_allow, device=trie.device)
        self.active = bool(len(self.excluded)) or any(has_allow)

    def _leaves(self, items: np.ndarray) -> np.ndarray:
        leaves = self.trie.trie.leaf_of_item_N[items].astype(np.int64)
        return leaves[leaves >= 0]  # a history may name items that were removed since

    def _keys(self, parts: list[np.ndarray]) -> torch.Tensor:
        joined = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        return torch.from_numpy(joined).to(self.trie.device)

    def keep(self, candidates: Candidates, request_E: torch.Tensor, level: int) -> Candidates:
        """Drop candidates (children of nodes of `level`) below which the request has no legal leaf."""
        if not self.active:
            return candidates
        low, high = self.trie.leaf_ranges(candidates.child_E, level + 1)
        low, high = low + request_E * self.stride, high + request_E * self.stride

        def inside(keys: torch.Tensor) -> torch.Tensor:
            return torch.searchsorted(keys, high) - torch.searchsorted(keys, low)

        legal = high - low > inside(self.excluded)
        if len(self.allowed) or bool(self.has_allow_B.any()):
            legal = torch.where(self.has_allow_B[request_E], inside(self.allowed) > 0, legal)
        return Candidates(candidates.row_E[legal], candidates.child_E[legal], candidates.token_E[legal])


def select_beams(
    scores_E: torch.Tensor, request_E: torch.Tensor, child_E: torch.Tensor, num_requests: int, num_beams: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best candidates of each request: score descending, then child (hence codes) ascending.

    Args:
        request_E: ascending.

    Returns:
        Candidate positions int64 [B, K'] with K' = min(num_beams, most candidates of a request), -1 where a
        request has fewer; and their scores, -inf there.
    """
    counts = torch.bincount(request_E, minlength=num_requests)
    width = int(counts.max()) if len(request_E) else 0
    if width == 0:
        empty = torch.empty(num_requests, 0, device=scores_E.device)
        return empty.long(), empty
    num_kept = min(num_beams, width)
    positions = torch.arange(len(request_E), device=scores_E.device)
    slot = positions - (torch.cumsum(counts, 0) - counts)[request_E]
    dense = torch.full((num_requests, width), -torch.inf, dtype=scores_E.dtype, device=scores_E.device)
    dense[request_E, slot] = scores_E
    # Everything at or above the K-th score, so that ties at the border are decided by codes and not by topk.
    threshold = dense.topk(num_kept, dim=1).values[:, -1]
    near = positions[(scores_E >= threshold[request_E]) & (scores_E > -torch.inf)]
    order = torch.argsort(child_E[near], stable=True)
    order = order[torch.argsort(scores_E[near][order], descending=True, stable=True)]
    order = order[torch.argsort(request_E[near][order], stable=True)]
    near = near[order]
    owner = request_E[near]
    near_counts = torch.bincount(owner, minlength=num_requests)
    rank = torch.arange(len(near), device=near.device) - (torch.cumsum(near_counts, 0) - near_counts)[owner]
    first = rank < num_kept
    chosen = torch.full((num_requests, num_kept), -1, dtype=torch.long, device=near.device)
    chosen[owner[first], rank[first]] = near[first]
    best = torch.full((num_requests, num_kept), -torch.inf, dtype=scores_E.dtype, device=near.device)
    best[owner[first], rank[first]] = scores_E[near[first]]
    return chosen, best
