"""Constrained beam search that reads each prompt once and grows all its beams as one tree (`tree_model`).

Scores are transformers' (log_softmax over the vocabulary, then the mask; no length penalty, no end step); the
model's own generation_config is never read.

Legend: B requests, K beams, E candidates.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from transformers import DynamicCache

from prompts.branches import BranchBatch
from serve.decoding.prior_mass import PriorMass, joint_score
from serve.decoding.ranking import Form, ItemFilter, ItemPrior, Ranking
from serve.decoding.tree_model import Score, TreeModel, row_log_softmax
from serve.decoding.trie_step import Candidates, DeviceTrie, select_beams
from sid_builder.errors import InputError

Constraint = Literal["trie", "none"]


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    trie: DeviceTrie,
    k: int,
    filters: Sequence[ItemFilter | None] | None = None,
    score: Score = "full",
    constraint: Constraint = "trie",
    priors: Sequence[ItemPrior | None] | None = None,
) -> list[Ranking]:
    """Rank items for every prompt with a beam of width `k`.

    Args:
        model: a transformers causal LM (Qwen2, Qwen3, Llama), plain or wrapped by PEFT; sdpa or eager
            attention.
        prompts: token ids per request, of any lengths.
        filters: per request, or None.
        score: "full": log-probs over the whole vocabulary; "trie": renormalised over each step's legal
            tokens; "sid": over SID tokens only, which skips the rest of the head.
        constraint: "none" searches the free vocabulary for as many steps as the SIDs are deep (no filters),
            to measure what the trie buys; a beam that has spelt a short SID waits with its score.
        priors: per request, or None. A request with a prior is ranked by model and prior together
            (`prior_mass`), for which the model is renormalised over the legal tokens whatever `score` is. One
            without, with weight 0, or whose prior knows none of the items it may get, is ranked as if no
            priors had been given.

    Returns:
        One `Ranking` per prompt with k beams, or all there are if fewer are legal.

    Raises:
        InputError: for k < 1, empty prompts, filters or priors under a free beam, attention that takes no 4-D
            mask, priors over items that are not in the catalogue or of several forms.
    """
    if k < 1:
        raise InputError(f"num_beams: {k}; at least 1 is needed")
    if not len(prompts):
        return []
    if constraint == "none":
        if filters is not None or priors is not None:
            raise InputError("constraint: 'none' cannot honour item filters or priors; use 'trie'")
        return _FreeBeam(model, trie, score).search(prompts, k)
    kept = filters or [None] * len(prompts)
    beam = BeamChooser(len(prompts), k, trie.device)
    used: list[ItemPrior | None] = [None] * len(prompts)
    if priors is not None:
        mass = PriorMass(trie, priors, kept)
        used = mass.used
        if all(used):
            score = "trie"  # what the mixture needs, and quicker than to come to it from the whole vocabulary
        if any(used):
            beam = PriorBeam(k, mass, mass.weight_B, mass.form, normalised=all(used))
    (leaves_BK,) = TreeModel(model, trie, score).descend(prompts, kept, [beam])
    return [
        Ranking.from_leaves(trie.trie, leaves, scores, item_filter, prior)
        for (leaves, scores), item_filter, prior in zip(beam.found(leaves_BK), kept, used, strict=True)
    ]


class BeamChooser:
    """The `num_beams` best prefixes of each request: score descending, then codes ascending."""

    def __init__(self, num_requests: int, num_beams: int, device: torch.device) -> None:
        self.num_beams = num_beams
        self.scores_BK = torch.zeros(num_requests, 1, device=device)

    def choose(self, candidates: Candidates, width: int, step_E: torch.Tensor) -> torch.Tensor:
        request_E = candidates.row_E // width
        total_E = self.scores_BK.flatten()[candidates.row_E] + step_E
        # Slots without a beam have score -inf, and so have all that would grow from them.
        chosen_BK, self.scores_BK = select_beams(
            total_E, request_E, candidates.child_E, len(self.scores_BK), self.num_beams
        )
        return chosen_BK

    def found(self, leaves_BK: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
        """Leaves (int64) and scores (float32) per request, of the leaves at which the walk has ended."""
        rows = zip(leaves_BK.cpu().numpy(), self.scores_BK.cpu().numpy(), strict=True)
        return [(leaves[leaves >= 0], scores[leaves >= 0]) for leaves, scores in rows]


class PriorBeam(BeamChooser):
    """The best prefixes by model and prior together (`prior_mass`); weight 0 gives exactly the plain beam.

    Args:
        weight_B: float64, the prior's weight per request; 0 where the prior is not in use.
        normalised: whether the model's scores are renormalised over the legal tokens already; weight 0 is
            then the plain beam up to rounding.

    Attributes:
        model_BK: float64 log P_model of the prefixes kept; without meaning where there is none.
    """

    def __init__(
        self, num_beams: int, prior: PriorMass, weight_B: torch.Tensor, form: Form, normalised: bool
    ) -> None:
        super().__init__(len(weight_B), num_beams, weight_B.device)
        self.prior, self.weight_B, self.form = prior, weight_B, form
        self.normalised, self.level = normalised, 0
        self.plain_BK = torch.zeros_like(self.scores_BK)
        self.model_BK = torch.zeros_like(self.scores_BK, dtype=torch.float64)

    def choose(self, candidates: Candidates, width: int, step_E: torch.Tensor) -> torch.Tensor:
        self.level += 1
        row_E, num_requests = candidates.row_E, len(self.weight_B)
        request_E = row_E // width
        # Log-probs over more tokens than the legal ones differ from those over them by a constant.
        legal_E = step_E if self.normalised else row_log_softmax(step_E, row_E, num_requests * width)
        model_E = self.model_BK.flatten()[row_E] + legal_E
        weight_E = self.weight_B[request_E]
        mass_E = self.prior.of_nodes(candidates.child_E, request_E, self.level, self.form)
        total_E = joint_score(model_E, mass_E.log(), weight_E, self.form).float()
        if not self.normalised:
            plain_E = self.plain_BK.flatten()[row_E] + step_E
            total_E = torch.where(weight_E > 0, total_E, plain_E)
        # A slot without a beam stands at some node all the same, and the prior may have mass there.
        total_E.masked_fill_(self.scores_BK.flatten()[row_E] == -torch.inf, -torch.inf)
        chosen_BK, self.scores_BK = select_beams(
            total_E, request_E, candidates.child_E, num_requests, self.num_beams
        )
        kept_BK = chosen_BK.clamp(min=0)
        self.model_BK = model_E[kept_BK]
        if not self.normalised:
            self.plain_BK = plain_E[kept_BK]
        return chosen_BK


class _FreeBeam(TreeModel):
    """A beam over the free vocabulary."""

    @torch.inference_mode()
    def search(self, prompts: Sequence[Sequence[int]], num_beams: int) -> list[Ranking]:
        trie, num_requests = self.trie, len(prompts)
        batch = BranchBatch.from_trunks(prompts, pad_id=0).to(trie.device)
        cache = DynamicCache(config=self.config)
        hidden_BQH = self.forward(batch, cache)[:, -1:]
        batch = batch.last_rows()
        scores_BK = torch.zeros(num_requests, 1, device=trie.device)
        paths_BKl = torch.empty(num_requests, 1, 0, dtype=torch.long, device=trie.device)
        ended_BK = torch.zeros(num_requests, 1, dtype=torch.bool, device=trie.device)
        for level in range(trie.depth):
            logprobs = self.head(hidden_BQH).float().log_softmax(dim=-1)
            vocabulary = logprobs.shape[-1]
            # The best B of a request lie among the best B of each beam.
            best = logprobs.topk(min(num_beams, vocabulary), dim=-1)
            wait_B = torch.full_like(best.values[0, 0], -torch.inf)
            wait_B[0] = 0.0
            steps = torch.where(ended_BK[:, :, None], wait_B, best.values)
            totals = (scores_BK[:, :, None] + steps).flatten(1)
            scores_BK, chosen = totals.topk(min(num_beams, totals.shape[1]), dim=1)
            parent_BK = chosen // best.indices.shape[2]
            token_BK = torch.gather(best.indices.flatten(1), 1, chosen)
            token_BK = token_BK.masked_fill(torch.gather(ended_BK, 1, parent_BK), -1)
            gathered = torch.gather(paths_BKl, 1, parent_BK[:, :, None].expand(-1, -1, level))
            paths_BKl = torch.cat([gathered, token_BK[:, :, None]], dim=2)
            if level + 1 < trie.depth:
                ended = [
                    [self._leaf_of(path)[1] is not None for path in paths] for paths in paths_BKl.tolist()
                ]
                ended_BK = torch.tensor(ended, device=trie.device)
                batch = batch.grow(parent_BK, token_BK.clamp(min=0))
                hidden_BQH = self.forward(batch, cache)
        return [
            self._free_ranking(paths, scores)
            for paths, scores in zip(paths_BKl.tolist(), scores_BK.cpu().numpy(), strict=True)
        ]

    def _leaf_of(self, path: list[int]) -> tuple[tuple[int, ...], int | None]:
        """Codes and leaf of token ids (-1: the beam waited) that are exactly one SID; else a leaf of None."""
        codes = self.trie.vocabulary.decode([token for token in path if token >= 0])
        return (codes, self.trie.trie.leaf_of(codes)) if codes is not None else ((), None)

    def _free_ranking(self, paths: list[list[int]], scores_B: np.ndarray) -> Ranking:
        sid_trie, depth = self.trie.trie, self.trie.depth
        codes_BL = np.full((len(paths), depth), -1, dtype=np.int32)
        leaves = np.full(len(paths), -1, dtype=np.int64)
        for beam, path in enumerate(paths):
            codes, leaf = self._leaf_of(path)
            if leaf is not None:
                codes_BL[beam, : len(codes)], leaves[beam] = codes, leaf
        legal = leaves >= 0
        listed = Ranking.from_leaves(sid_trie, leaves[legal], scores_B[legal])
        return Ranking(listed.items_K, listed.scores_K, codes_BL, scores_B.astype(np.float32), legal)
