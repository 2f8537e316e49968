"""Constrained beam search that reads each prompt once and grows all its beams as one tree.

At level l the beam tokens of a request are rows of ONE sequence under a 4-D mask (each row sees the prompt,
its ancestors and itself), so nothing is copied or re-ordered: P + K (L - 1) tokens per request in all, where
`generate` feeds K (P + L). Scores are transformers' (log_softmax over the vocabulary, then the mask; no
length penalty, no end step); the model's own generation_config is never read.

Legend: B requests, K beams, R = B * K rows, V vocabulary, H hidden size, E candidates.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from transformers import DynamicCache

from prompts.branches import BranchBatch, check_attention
from serve.decoding.ranking import ItemFilter, Ranking
from serve.decoding.trie_step import Candidates, DeviceTrie, LeafFilters, select_beams
from sid_builder.errors import InputError

Score = Literal["full", "trie", "sid"]
Constraint = Literal["trie", "none"]
_MAX_LOGITS = 1 << 25  # logits held at once, and as many log-probs: 256 MiB


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    trie: DeviceTrie,
    k: int,
    filters: Sequence[ItemFilter | None] | None = None,
    score: Score = "full",
    constraint: Constraint = "trie",
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

    Returns:
        One `Ranking` per prompt with k beams, or all there are if fewer are legal.

    Raises:
        InputError: for k < 1, empty prompts, filters under a free beam, or attention that takes no 4-D mask.
    """
    if k < 1:
        raise InputError(f"num_beams: {k}; at least 1 is needed")
    if not len(prompts):
        return []
    beam = _TreeBeam(model, trie, k, score)
    if constraint == "none":
        if filters is not None:
            raise InputError("constraint: 'none' cannot honour item filters; use 'trie'")
        return beam.free(prompts)
    return beam.constrained(prompts, filters or [None] * len(prompts))


class _TreeBeam:
    """One search: the model's two halves and the state of the cache."""

    def __init__(self, model: Any, trie: DeviceTrie, num_beams: int, score: Score) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        check_attention(inner.config)
        self.backbone = inner.base_model
        self.head = inner.get_output_embeddings()
        self.config = inner.config
        self.trie = trie
        self.num_beams = num_beams
        self.score = score
        self.dtype = self.backbone.get_input_embeddings().weight.dtype

    def _forward(self, batch: BranchBatch, cache: DynamicCache) -> torch.Tensor:
        """Last hidden states [B, Q, H] of a batch behind the cache."""
        output = self.backbone(
            input_ids=batch.input_ids_BQ,
            position_ids=batch.position_ids_BQ,
            attention_mask=batch.attention_mask(self.dtype),
            past_key_values=cache,
            use_cache=True,
        )
        return output.last_hidden_state

    def _sid_head(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        """Logits of the SID tokens alone; a head in an adapter is run whole, its weight is not all of it."""
        columns = self.trie.sid_token_ids
        if type(self.head) is not torch.nn.Linear:
            return self.head(hidden_RH)[:, columns]
        bias = None if self.head.bias is None else self.head.bias[columns]
        return torch.nn.functional.linear(hidden_RH, self.head.weight[columns], bias)

    def _candidate_scores(self, hidden_RH: torch.Tensor, candidates: Candidates) -> torch.Tensor:
        """Log-prob of every candidate's token given its row, fp32 [E]; 0 where the SID has already ended."""
        slot = candidates.token_E.clamp(min=0)
        if self.score == "sid":
            columns = self.trie.sid_token_ids
            slot = torch.searchsorted(columns, slot).clamp(max=len(columns) - 1)
            head, width = self._sid_head, len(columns)
        else:
            head, width = self.head, self.config.get_text_config().vocab_size
        rows_at_once = max(1, _MAX_LOGITS // width)
        scores = torch.empty(len(slot), dtype=torch.float32, device=slot.device)
        for start in range(0, len(hidden_RH), rows_at_once):
            block = hidden_RH[start : start + rows_at_once]
            logits = head(block).float()
            bounds = torch.tensor([start, start + len(block)], device=slot.device)
            first, last = torch.searchsorted(candidates.row_E, bounds).tolist()
            local = candidates.row_E[first:last] - start
            if self.score == "trie":
                values = logits[local, slot[first:last]]
                peak = torch.full((len(block),), -torch.inf, device=slot.device).scatter_reduce(
                    0, local, values, "amax"
                )
                total = torch.zeros(len(block), device=slot.device).index_add(
                    0, local, (values - peak[local]).exp()
                )
                scores[first:last] = values - (peak + total.log())[local]
            else:  # on CPU log_softmax is one vectorised pass, several times faster than logsumexp
                scores[first:last] = logits.log_softmax(dim=1)[local, slot[first:last]]
        return scores.masked_fill_(candidates.token_E < 0, 0.0)

    @torch.inference_mode()
    def constrained(
        self, prompts: Sequence[Sequence[int]], filters: Sequence[ItemFilter | None]
    ) -> list[Ranking]:
        trie, num_requests = self.trie, len(prompts)
        leaf_filters = LeafFilters(trie, filters)
        batch = BranchBatch.from_trunks(prompts, pad_id=0).to(trie.device)
        cache = DynamicCache(config=self.config)
        hidden_BQH = self._forward(batch, cache)[:, -1:]
        batch = batch.last_rows()
        nodes_BK = torch.zeros(num_requests, 1, dtype=torch.long, device=trie.device)
        scores_BK = torch.zeros(num_requests, 1, device=trie.device)
        for level in range(trie.depth):
            width = nodes_BK.shape[1]
            candidates = trie.children(nodes_BK.flatten(), level)
            candidates = leaf_filters.keep(candidates, candidates.row_E // width, level)
            request_E = candidates.row_E // width
            step_E = self._candidate_scores(hidden_BQH.flatten(0, 1), candidates)
            total_E = scores_BK.flatten()[candidates.row_E] + step_E
            chosen_BK, scores_BK = select_beams(
                total_E, request_E, candidates.child_E, num_requests, self.num_beams
            )
            if chosen_BK.shape[1] == 0:
                break
            # Slots without a beam point at candidate 0: their score is -inf and stays so.
            safe = chosen_BK.clamp(min=0)
            nodes_BK = candidates.child_E[safe]
            if level + 1 == trie.depth:
                break
            parent_BK = (candidates.row_E[safe] % width).masked_fill(chosen_BK < 0, 0)
            batch = batch.grow(parent_BK, candidates.token_E[safe].clamp(min=0))
            hidden_BQH = self._forward(batch, cache)
        leaves, scores = nodes_BK.cpu().numpy(), scores_BK.cpu().numpy()
        return [
            Ranking.from_leaves(trie.trie, row[score > -np.inf], score[score > -np.inf], item_filter)
            for row, score, item_filter in zip(leaves, scores, filters, strict=True)
        ]

    @torch.inference_mode()
    def free(self, prompts: Sequence[Sequence[int]]) -> list[Ranking]:
        trie, num_requests = self.trie, len(prompts)
        batch = BranchBatch.from_trunks(prompts, pad_id=0).to(trie.device)
        cache = DynamicCache(config=self.config)
        hidden_BQH = self._forward(batch, cache)[:, -1:]
        batch = batch.last_rows()
        scores_BK = torch.zeros(num_requests, 1, device=trie.device)
        paths_BKl = torch.empty(num_requests, 1, 0, dtype=torch.long, device=trie.device)
        ended_BK = torch.zeros(num_requests, 1, dtype=torch.bool, device=trie.device)
        for level in range(trie.depth):
            logprobs = self.head(hidden_BQH).float().log_softmax(dim=-1)
            vocabulary = logprobs.shape[-1]
            # The best B of a request lie among the best B of each beam.
            best = logprobs.topk(min(self.num_beams, vocabulary), dim=-1)
            wait_B = torch.full_like(best.values[0, 0], -torch.inf)
            wait_B[0] = 0.0
            steps = torch.where(ended_BK[:, :, None], wait_B, best.values)
            totals = (scores_BK[:, :, None] + steps).flatten(1)
            scores_BK, chosen = totals.topk(min(self.num_beams, totals.shape[1]), dim=1)
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
                hidden_BQH = self._forward(batch, cache)
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
