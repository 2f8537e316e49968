"""A model that walks down a trie: each prompt is read once, then a level of prefixes at a time.

At level l the tokens that were chosen for a request are rows of ONE sequence under a 4-D mask (each row sees
the prompt, its ancestors and itself), so nothing is copied or re-ordered: P + K (L - 1) tokens per request in
all, where `generate` feeds K (P + L). What is chosen among the legal tokens is up to a `Chooser`: a beam
(`tree_beam`), draws and a given path (`tree_sample`). Several share one walk.

Legend: B requests, K slots (prefixes kept of a request), R rows (slots of all requests, request-major),
Q query rows, H hidden size, E candidates.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from transformers import DynamicCache

from prompts.branches import BranchBatch, check_attention
from serve.decoding.ranking import ItemFilter
from serve.decoding.trie_step import Candidates, DeviceTrie, LeafFilters

Score = Literal["full", "trie", "sid"]
_MAX_LOGITS = 1 << 25  # logits held at once, and as many log-probs: 256 MiB


class Chooser(Protocol):
    """Says at every level which of the legal next tokens are gone on with."""

    def choose(self, candidates: Candidates, width: int, step_E: torch.Tensor) -> torch.Tensor:
        """Positions among the candidates that the next slots of each request are, int64 [B, K]; -1: none.

        Args:
            candidates: children of the slots that were chosen last; `row_E` is request * width + slot.
            width: slots per request; 1 at the root.
            step_E: log-prob of each candidate's token behind its prefix, fp32.
        """
        ...


def row_log_softmax(values_E: torch.Tensor, row_E: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Log-softmax over the candidates of each row."""
    peak_R = values_E.new_full((num_rows,), -torch.inf).scatter_reduce(0, row_E, values_E, "amax")
    total_R = values_E.new_zeros(num_rows).index_add(0, row_E, (values_E - peak_R[row_E]).exp())
    return values_E - (peak_R + total_R.log())[row_E]


class TreeModel:
    """The two halves of a causal LM (plain or wrapped by PEFT; sdpa or eager attention) above a trie.

    `score` is "full": log-probs over the whole vocabulary; "trie": renormalised over each step's legal
    tokens; "sid": over SID tokens only, which skips the rest of the head.

    Raises:
        InputError: for attention that takes no 4-D mask.
    """

    def __init__(self, model: Any, trie: DeviceTrie, score: Score = "full") -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        check_attention(inner.config)
        self.backbone = inner.base_model
        self.head = inner.get_output_embeddings()
        self.config = inner.config
        self.trie = trie
        self.score = score
        self.dtype = self.backbone.get_input_embeddings().weight.dtype

    @torch.inference_mode()
    def descend(
        self,
        prompts: Sequence[Sequence[int]],
        filters: Sequence[ItemFilter | None],
        choosers: Sequence[Chooser],
    ) -> list[torch.Tensor]:
        """Walk from the root to the leaves, each chooser with slots of its own.

        Returns:
            Per chooser the leaves its last slots stand for, int64 [B, K]; -1: none.
        """
        trie, num_requests = self.trie, len(prompts)
        leaf_filters = LeafFilters(trie, filters)
        batch = BranchBatch.from_trunks(prompts, pad_id=0).to(trie.device)
        cache = DynamicCache(config=self.config)
        hidden_BQH = self.forward(batch, cache)[:, -1:]
        batch = batch.last_rows()
        nodes_BK = torch.zeros(num_requests, 1, dtype=torch.long, device=trie.device)
        widths = [1] * len(choosers)
        for level in range(trie.depth):
            width = nodes_BK.shape[1]
            candidates = trie.children(nodes_BK.flatten(), level)
            candidates = leaf_filters.keep(candidates, candidates.row_E // width, level)
            step_E = self.candidate_scores(hidden_BQH.flatten(0, 1), candidates)
            chosen, first = [], 0
            for chooser, own_width in zip(choosers, widths, strict=True):
                if own_width == width:  # the only chooser, or all of them at the root
                    chosen.append(chooser.choose(candidates, width, step_E))
                    continue
                slot_E = candidates.row_E % width - first
                own_E = torch.nonzero((slot_E >= 0) & (slot_E < own_width))[:, 0]
                row_E = candidates.row_E[own_E] // width * own_width + slot_E[own_E]
                own = Candidates(row_E, candidates.child_E[own_E], candidates.token_E[own_E])
                position_BK = chooser.choose(own, own_width, step_E[own_E])
                chosen.append(own_E[position_BK.clamp(min=0)].masked_fill(position_BK < 0, -1))
                first += own_width
            widths = [part.shape[1] for part in chosen]
            chosen_BK = torch.cat(chosen, dim=1)
            if chosen_BK.shape[1] == 0:
                return chosen
            # Slots without a prefix point at candidate 0: their chooser never goes on with them.
            safe_BK = chosen_BK.clamp(min=0)
            nodes_BK = candidates.child_E[safe_BK]
            if level + 1 < trie.depth:
                parent_BK = (candidates.row_E[safe_BK] % width).masked_fill(chosen_BK < 0, 0)
                batch = batch.grow(parent_BK, candidates.token_E[safe_BK].clamp(min=0))
                hidden_BQH = self.forward(batch, cache)
        return list(nodes_BK.masked_fill(chosen_BK < 0, -1).split(widths, dim=1))

    def forward(self, batch: BranchBatch, cache: DynamicCache) -> torch.Tensor:
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

    def candidate_scores(self, hidden_RH: torch.Tensor, candidates: Candidates) -> torch.Tensor:
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
                scores[first:last] = row_log_softmax(logits[local, slot[first:last]], local, len(block))
            else:  # on CPU log_softmax is one vectorised pass, several times faster than logsumexp
                scores[first:last] = logits.log_softmax(dim=1)[local, slot[first:last]]
        return scores.masked_fill_(candidates.token_E < 0, 0.0)
