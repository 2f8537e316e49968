"""The tree beam against transformers' constrained `generate`, and against the bare prefill.

    python benchmarks/tree_beam.py [--quick] [--beams 50] [--prompts 2] [--prompt_tokens 256]

A Qwen3 of 8 layers x 512 with a vocabulary of 32,000 (41 M parameters), random weights, fp32; 4,000 random
items under 3 x 256 codes (64 at the first level). The peer gets the fastest `prefix_allowed_tokens_fn` there
is, a dict made beforehand. Both searches must return the same list. Times are medians over interleaved runs,
`over_prefill` the median ratio of neighbours.

Limit: multiply-adds of the matrices. A beam feeds P + B (L - 1) tokens through the layers and 1 + B (L - 1)
rows through the head, the prefill P tokens and one row; that ratio, printed as `flops_ratio`, is the least
the tree beam can cost in bare prefills. `generate` feeds B (P + L - 1) tokens.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from prompts.branches import BranchBatch
from prompts.vocabulary import SidVocabulary
from serve.decoding import tree_beam
from serve.decoding.trie_step import DeviceTrie
from sid_builder.artifact import code_version
from sid_builder.trie import SidTrie

VOCABULARY, CODES, LEVELS = 32_000, 256, 3
WIDTH, MLP, LAYERS, HEADS, KV_HEADS, HEAD_SIZE = 512, 1536, 8, 8, 4, 64


def build(seed: int) -> tuple[Qwen3ForCausalLM, DeviceTrie]:
    """The model and a trie whose tokens are the last 3 x 256 of its vocabulary."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_SIZE,
        tie_word_embeddings=True,
    )
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, size, 4000) for size in (64, CODES, CODES)], axis=1).astype(np.int32)
    first = VOCABULARY - LEVELS * CODES
    vocabulary = SidVocabulary(tuple(first + level * CODES + np.arange(CODES) for level in range(LEVELS)))
    return Qwen3ForCausalLM(config).eval(), DeviceTrie(SidTrie.build(np.unique(codes, axis=0)), vocabulary)


def children_by_prefix(trie: DeviceTrie) -> dict[tuple[int, ...], list[int]]:
    """Prefix of token ids -> legal next tokens: the peer's constraint, computed beforehand."""
    table: dict[tuple[int, ...], set[int]] = {}
    for codes in trie.trie.codes_ML:
        tokens = trie.vocabulary.encode(codes)
        for length in range(LEVELS):
            table.setdefault(tuple(tokens[:length]), set()).add(tokens[length])
    return {prefix: sorted(tokens) for prefix, tokens in table.items()}


@torch.inference_mode()
def transformers_beam(model: Qwen3ForCausalLM, ids: torch.Tensor, table: dict, beams: int) -> torch.Tensor:
    width = ids.shape[1]
    config = GenerationConfig(
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=LEVELS,
        min_new_tokens=LEVELS,
        do_sample=False,
        length_penalty=0.0,
        pad_token_id=0,
        eos_token_id=None,
    )
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        prefix_allowed_tokens_fn=lambda _, sequence: table.get(tuple(sequence[width:].tolist()), [0]),
    )
    return output[:, width:].view(len(ids), beams, LEVELS)


@torch.inference_mode()
def prefill(model: Qwen3ForCausalLM, ids: torch.Tensor) -> None:
    model(input_ids=ids, use_cache=True, logits_to_keep=1)


def flops_ratio(prompt_tokens: int, beams: int) -> float:
    """Multiply-adds of the tree beam's matrices over those of the prefill, per request."""
    grown = beams * (LEVELS - 1)
    projections = WIDTH * HEAD_SIZE * (2 * HEADS + 2 * KV_HEADS) + 3 * WIDTH * MLP
    attended = 2 * HEADS * HEAD_SIZE  # per query token and key token

    def cost(tokens: int, pairs: int, rows: int) -> int:
        return LAYERS * (tokens * projections + pairs * attended) + rows * WIDTH * VOCABULARY

    bare = cost(prompt_tokens, prompt_tokens**2, 1)
    keys = sum(prompt_tokens + beams * level for level in range(1, LEVELS))
    return (bare + cost(grown, beams * keys, grown)) / bare


def seconds(function, *arguments) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats: under 45 s")
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--prompts", type=int, help="default 2, with --quick 1")
    parser.add_argument("--prompt_tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    arguments.prompts = arguments.prompts or (1 if arguments.quick else 2)
    model, trie = build(arguments.seed)
    table = children_by_prefix(trie)
    shape = (arguments.prompts, arguments.prompt_tokens)
    ids = torch.randint(0, VOCABULARY - LEVELS * CODES, shape)
    prompts = ids.tolist()

    def ours() -> list:
        return tree_beam.decode(model, prompts, trie, arguments.beams)

    def masked_prefill() -> None:
        batch = BranchBatch.from_trunks(prompts, 0)
        with torch.inference_mode():
            model(
                input_ids=batch.input_ids_BQ,
                position_ids=batch.position_ids_BQ,
                attention_mask=batch.attention_mask(torch.float32),
                use_cache=True,
                logits_to_keep=1,
            )

    lists = [ranking.codes_BL for ranking in ours()]
    prefill(model, ids)
    peer_runs, own_runs = (1, 7) if arguments.quick else (3, 15)
    times: dict[str, list[float]] = {"generate": [], "tree_beam": [], "prefill": [], "prefill_4d": []}
    same = True
    for _ in range(peer_runs):
        started = time.perf_counter()
        theirs = transformers_beam(model, ids, table, arguments.beams)
        times["generate"].append(time.perf_counter() - started)
        first = torch.tensor([tokens[0] for tokens in trie.vocabulary.token_ids])
        same &= all(
            np.array_equal(mine, peer) for mine, peer in zip(lists, (theirs - first).numpy(), strict=True)
        )
    for _ in range(own_runs):
        times["prefill"].append(seconds(prefill, model, ids))
        times["tree_beam"].append(seconds(ours))
        times["prefill_4d"].append(seconds(masked_prefill))
    median = {name: statistics.median(values) for name, values in times.items()}
    # Neighbouring runs see the same machine, so their ratios vary less than the times do.
    ratios = [mine / bare for mine, bare in zip(times["tree_beam"], times["prefill"], strict=True)]
    result = {
        "benchmark": "tree_beam",
        "same_list": same,
        "speedup": round(median["generate"] / median["tree_beam"], 1),
        "over_prefill": round(statistics.median(ratios), 2),
        "flops_ratio": round(flops_ratio(arguments.prompt_tokens, arguments.beams), 2),
        "seconds": {name: round(value, 4) for name, value in median.items()},
        "fastest_seconds": {name: round(min(values), 4) for name, values in times.items()},
        "runs": {name: len(values) for name, values in times.items()},
        "bars": {"speedup": 25, "over_prefill": 2},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "config": vars(arguments),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__},
        "code": code_version(),
    }
    print(f"limit: {result['flops_ratio']} bare prefills by multiply-adds; measured {result['over_prefill']}")
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
