"""Draws from a policy under a trie, each prompt read once (`tree_model`).

The policy under the trie is the model's next-token distribution over the legal tokens of each step (those
below which a legal SID lies, also under a filter), at a temperature. `Draws` are independent, `DistinctDraws`
without replacement, `GivenSids` follow given SIDs; they may share one walk, with a beam too. Whatever the
temperature, scores are log-probs over the whole vocabulary at temperature 1: what a beam ranks by.

All random numbers come from numpy generators of the requests' own, so what is drawn for a request depends
neither on the device nor on the requests beside it.

Legend: B requests, D draws, K slots (distinct prefixes of a request), R rows (slots of all requests),
E candidates, L levels.
"""

from collections.abc import Sequence

import numpy as np
import torch

from serve.decoding.tree_model import row_log_softmax
from serve.decoding.trie_step import Candidates, DeviceTrie, select_beams
from sid_builder.errors import InputError


class Draws:
    """`count` independent draws per request; draws that share a prefix share its row."""

    def __init__(
        self, count: int, rngs: Sequence[np.random.Generator], temperature: float, device: torch.device
    ) -> None:
        assert temperature > 0
        self.rngs, self.temperature = rngs, temperature
        self.slot_BD = torch.zeros(len(rngs), count, dtype=torch.long, device=device)
        self.scores_BD = torch.zeros(len(rngs), count, device=device)

    def choose(self, candidates: Candidates, width: int, step_E: torch.Tensor) -> torch.Tensor:
        num_requests, count = self.slot_BD.shape
        request = torch.arange(num_requests, device=step_E.device)[:, None]
        row_BD = request * width + self.slot_BD
        size_R = torch.bincount(candidates.row_E, minlength=num_requests * width)
        _check_some_left(size_R[row_BD[:, 0]])
        log_p_E = row_log_softmax(step_E.double() / self.temperature, candidates.row_E, len(size_R))
        # Row r's cumulative probabilities lie in (r, r + 1]: one binary search finds every draw's candidate.
        start_R = size_R.cumsum(0) - size_R
        below_E = log_p_E.exp().cumsum(0)
        base_R = torch.cat([below_E.new_zeros(1), below_E])[start_R]
        uniform_BD = torch.from_numpy(np.stack([rng.random(count) for rng in self.rngs])).to(step_E.device)
        place_E = candidates.row_E + below_E - base_R[candidates.row_E]
        pick_BD = torch.searchsorted(place_E, row_BD + uniform_BD, right=True)
        # Rounding may leave a row's last place below its end, or push a draw just there.
        first_BD = start_R[row_BD]
        pick_BD = torch.minimum(torch.maximum(pick_BD, first_BD), first_BD + size_R[row_BD] - 1)
        self.scores_BD = self.scores_BD + step_E[pick_BD]

        kept_U, slot_BD = torch.unique(pick_BD, return_inverse=True)  # ascending, so request by request
        owner_U = candidates.row_E[kept_U] // width
        size_B = torch.bincount(owner_U, minlength=num_requests)
        first_B = size_B.cumsum(0) - size_B
        self.slot_BD = slot_BD - first_B[:, None]
        chosen_BK = pick_BD.new_full((num_requests, int(size_B.max())), -1)
        chosen_BK[owner_U, torch.arange(len(kept_U), device=kept_U.device) - first_B[owner_U]] = kept_U
        return chosen_BK

    def found(self, leaves_BK: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
        """Leaves and scores per request, of the leaves at which the walk has ended."""
        leaves_BD = torch.gather(leaves_BK, 1, self.slot_BD)
        return list(zip(leaves_BD.cpu().numpy(), self.scores_BD.cpu().numpy(), strict=True))


class DistinctDraws:
    """`count` draws without replacement, in the order in which they would be drawn one after the other.

    Stochastic beam search (Kool, van Hoof, Welling, "Stochastic Beams and Where to Find Them", 2019): the
    best leaves by log-prob plus Gumbel noise are such draws, and a parent's noise is the largest of its
    children's. Left out of any set of SIDs, they are draws from what lies outside that set.
    """

    def __init__(
        self, count: int, rngs: Sequence[np.random.Generator], temperature: float, device: torch.device
    ) -> None:
        assert temperature > 0
        self.count, self.rngs, self.temperature = count, rngs, temperature
        self.scores_BK = torch.zeros(len(rngs), 1, device=device)
        self._log_p_BK = torch.zeros(len(rngs), 1, dtype=torch.float64, device=device)
        self._noisy_BK = torch.zeros_like(self._log_p_BK)

    def choose(self, candidates: Candidates, width: int, step_E: torch.Tensor) -> torch.Tensor:
        row_E, num_requests = candidates.row_E, len(self.rngs)
        num_rows = num_requests * width
        request_E = row_E // width
        parent_E = self._noisy_BK.flatten()[row_E]
        live_E = parent_E > -torch.inf
        size_B = torch.bincount(request_E[live_E], minlength=num_requests)
        _check_some_left(size_B)
        log_p_E = row_log_softmax(step_E.double() / self.temperature, row_E, num_rows)
        log_p_E = log_p_E + self._log_p_BK.flatten()[row_E]
        gumbel = [rng.gumbel(size=size) for rng, size in zip(self.rngs, size_B.tolist(), strict=True)]
        free_E = log_p_E.clone()
        free_E[live_E] += torch.from_numpy(np.concatenate(gumbel)).to(step_E.device)
        # Children's noise given that the largest of a row is its parent's: section 4.1 and appendix B.3.
        peak_R = free_E.new_full((num_rows,), -torch.inf).scatter_reduce(0, row_E, free_E, "amax")
        gap_E = parent_E - free_E + torch.log1p(-torch.exp(free_E - peak_R[row_E]))
        noisy_E = parent_E - gap_E.clamp(min=0) - torch.log1p(torch.exp(-gap_E.abs()))
        chosen_BK, self._noisy_BK = select_beams(
            noisy_E, request_E, candidates.child_E, num_requests, self.count
        )
        # Slots without a draw keep noise -inf, so that nothing grows from them.
        kept_BK = chosen_BK.clamp(min=0)
        self._log_p_BK = log_p_E[kept_BK].masked_fill(chosen_BK < 0, 0.0)
        self.scores_BK = self.scores_BK.flatten()[row_E[kept_BK]] + step_E[kept_BK]
        return chosen_BK

    def found(self, leaves_BK: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
        """Leaves and scores per request, of the leaves at which the walk has ended."""
        rows = zip(leaves_BK.cpu().numpy(), self.scores_BK.cpu().numpy(), strict=True)
        return [(leaves[leaves >= 0], scores[leaves >= 0]) for leaves, scores in rows]


class GivenSids:
    """One given SID per request, for its log-prob `scores_B`.

    Args:
        leaves_B: int64 leaves of the trie, each legal under its request's filter.
    """

    def __init__(self, leaves_B: np.ndarray, trie: DeviceTrie) -> None:
        nodes_B, self._path = np.asarray(leaves_B, dtype=np.int64), []
        for indptr in reversed(trie.trie.indptr):
            self._path.append(torch.from_numpy(nodes_B).to(trie.device))
            parents_B = np.searchsorted(indptr, nodes_B.astype(indptr.dtype), side="right") - 1
            nodes_B = parents_B.astype(np.int64)
        self.scores_B = torch.zeros(len(leaves_B), device=trie.device)

    def choose(self, candidates: Candidates, width: int, step_E: torch.Tensor) -> torch.Tensor:
        assert width == 1
        on_path_E = candidates.child_E == self._path.pop()[candidates.row_E]
        chosen_B = torch.nonzero(on_path_E)[:, 0]
        assert len(chosen_B) == len(self.scores_B), "a given SID is illegal"
        self.scores_B = self.scores_B + step_E[chosen_B]
        return chosen_B[:, None]


def _check_some_left(size_B: torch.Tensor) -> None:
    if bool((size_B == 0).any()):
        raise InputError(f"filters: request {int(size_B.argmin())} has no legal SID left to draw")
