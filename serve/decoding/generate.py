"""transformers' own constrained beam search: for models the tree beam refuses, and the reference for it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from serve.decoding.ranking import ItemFilter, Ranking
from serve.decoding.trie_step import DeviceTrie
from sid_builder.errors import InputError


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    trie: DeviceTrie,
    k: int,
    filters: Sequence[ItemFilter | None] | None = None,
    score: str = "full",
    constraint: str = "trie",
) -> list[Ranking]:
    """Same contract as `tree_beam.decode`, without filters, full-vocabulary scores, SIDs of fixed length.

    Runs `generate(num_beams=k, num_return_sequences=k, length_penalty=0, prefix_allowed_tokens_fn=...)` under
    a generation_config of our own, so that sampling or penalties of the checkpoint's cannot leak in. A
    request with fewer than k legal SIDs gets those alone.
    """
    from transformers import GenerationConfig

    if any(item_filter is not None for item_filter in filters or ()):
        raise InputError(
            "decoder: 'generate' takes no item filters; pass exclude_history no, or use 'tree_beam'"
        )
    if score != "full" or constraint != "trie":
        raise InputError(
            f"decoder: 'generate' knows no score {score!r}, constraint {constraint!r}; use 'tree_beam'"
        )
    if any((tok == 0xFFFF).any() for tok in trie.trie.tok):
        raise InputError("decoder: 'generate' cannot end short SIDs; use 'tree_beam'")
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, width - len(prompt) :] = 1

    first_child = int(trie.token_ids[0][int(trie.trie.tok[0][0])])

    def allowed(_: int, sequence: torch.Tensor) -> list[int]:
        codes = trie.vocabulary.decode(sequence[width:].tolist())
        node = None if codes is None else trie.trie.node_of(codes)
        if codes is None or node is None:  # a beam that transformers has already given -inf
            return [first_child]
        children, _ids = trie.trie.children(node, len(codes))
        return trie.token_ids[len(codes)][torch.from_numpy(children.astype(np.int64))].tolist()

    config = GenerationConfig(
        num_beams=k,
        num_return_sequences=k,
        do_sample=False,
        **({"length_penalty": 0.0} if k > 1 else {}),
        max_new_tokens=trie.depth,
        min_new_tokens=trie.depth,
        pad_token_id=0,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=k > 1,
        output_logits=k == 1,
    )
    # generate() fills what our config leaves at its default from the checkpoint's own (penalties).
    checkpoints_own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=config,
                prefix_allowed_tokens_fn=allowed,
            )
    finally:
        model.generation_config = checkpoints_own
    sequences = output.sequences[:, width:].cpu().view(len(prompts), k, -1).tolist()
    if k == 1:  # greedy: transformers returns no sequences_scores
        tokens = output.sequences[:, width:]
        steps = torch.stack([logits.float().log_softmax(dim=-1) for logits in output.logits], dim=1)
        scores = steps.gather(2, tokens[:, :, None]).sum(dim=1).cpu().numpy()
    else:
        scores = output.sequences_scores.view(len(prompts), k).float().cpu().numpy()
    rankings = []
    for paths, values in zip(sequences, scores, strict=True):
        leaves, kept = [], []
        for path, value in zip(paths, values, strict=True):
            codes = trie.vocabulary.decode(path)
            leaf = trie.trie.node_of(codes) if codes is not None else None
            if leaf is not None and np.isfinite(value) and leaf not in leaves:
                leaves.append(leaf)
                kept.append(value)
        rankings.append(Ranking.from_leaves(trie.trie, np.array(leaves, dtype=np.int64), np.array(kept)))
    return rankings
