"""Exact joint log-probs of given SIDs: prompts as trunks, candidates as branches, one forward pass.

What `tree_beam` would score each SID with if its beam reached it (full-vocabulary log-probs, no length
penalty). Candidates that begin alike share the branch of the part they share but the last code.

Legend: B requests, C candidates of one request, L levels, H hidden size, R rows (prefixes), E scored tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from prompts.branches import Branch, BranchBatch
from serve.decoding.tree_model import TreeModel
from serve.decoding.trie_step import Candidates, DeviceTrie
from sid_builder.errors import InputError


def score_candidates(
    model: Any,
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[np.ndarray],
    trie: DeviceTrie,
) -> list[np.ndarray]:
    """Log-probs of every candidate's SID tokens behind its prompt.

    Args:
        candidates: int32 codes [C, L] per request, -1 after the end of a short SID. They need not be in the
            trie: an item off the shelf can be scored.

    Returns:
        float32 [C, L] per request, 0 after the end of a short SID; a row's sum is the SID's log-prob.

    Raises:
        InputError: for an empty prompt, a code that no token spells, attention that takes no 4-D mask.
    """
    if not len(prompts):
        return []
    if not all(len(prompt) for prompt in prompts):
        raise InputError("prompts: an empty prompt cannot be scored behind; give at least one token each")
    token_ids = trie.vocabulary.token_ids
    paths = [[_tokens(codes, token_ids) for codes in codes_CL] for codes_CL in candidates]
    branches: list[list[Branch]] = []
    row_of: list[dict[tuple[int, ...], int]] = []  # column at which a prefix has just been read
    for prompt, own in zip(prompts, paths, strict=True):
        grown: list[Branch] = []
        rows: dict[tuple[int, ...], int] = {(): len(prompt) - 1}
        end = len(prompt)
        # Longest first: a prefix of another one is read on its way.
        for prefix in sorted({path[:-1] for path in own}, key=len, reverse=True):
            if prefix in rows:
                continue
            grown.append(Branch(len(prompt) - 1, prefix))
            for length in range(1, len(prefix) + 1):
                rows.setdefault(prefix[:length], end + length - 1)
            end += len(prefix)
        branches.append(grown)
        row_of.append(rows)
    batch = BranchBatch.from_branches(prompts, branches, pad_id=0)
    width = batch.input_ids_BQ.shape[1]
    wanted = [
        (request * width + row_of[request][path[:level]], token)
        for request, own in enumerate(paths)
        for path in own
        for level, token in enumerate(path)
    ]
    tree = TreeModel(model, trie)
    with torch.inference_mode():
        hidden_BQH = tree.forward(batch.to(trie.device), DynamicCache(config=tree.config))
        at_E, token_E = torch.tensor(wanted, dtype=torch.long, device=trie.device).reshape(-1, 2).T
        rows_R, row_E = torch.unique(at_E, return_inverse=True)
        order_E = torch.argsort(row_E, stable=True)
        asked = Candidates(row_E[order_E], token_E[order_E], token_E[order_E])
        score_E = torch.empty(len(wanted), device=trie.device)
        score_E[order_E] = tree.candidate_scores(hidden_BQH.flatten(0, 1)[rows_R], asked)
    flat = score_E.cpu().numpy()
    scores, first = [], 0
    for own in paths:
        scores_CL = np.zeros((len(own), trie.depth), dtype=np.float32)
        for candidate, path in enumerate(own):
            scores_CL[candidate, : len(path)] = flat[first : first + len(path)]
            first += len(path)
        scores.append(scores_CL)
    return scores


def _tokens(codes_L: np.ndarray, token_ids: Sequence[np.ndarray]) -> tuple[int, ...]:
    path = tuple(int(token_ids[level][code]) for level, code in enumerate(codes_L) if code >= 0)
    if not path or min(path) < 0:
        raise InputError(f"candidates: SID codes {codes_L.tolist()} are spelled by no tokens; check the item")
    return path
