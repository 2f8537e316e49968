"""What a prior adds to the time of the tree beam, at 4,000 and at 1,000,000 items.

    python benchmarks/prior.py [--quick] [--beams 50] [--prompts 2] [--prompt_tokens 256]

Two Qwen3 with random weights, fp32: `large`, 8 layers x 512 with a vocabulary of 32,000 (41 M parameters),
and `small`, 2 layers x 64 over the SID tokens and little else (0.2 M): the smaller the model, the larger the
share of anything beside it. Items are random under 3 x 256 codes. The prior is one-hop counts, 25 successors
an item, and the 300 most popular items; finding its masses for the histories is part of the time. Both forms
of the mixture are timed against the plain beam, run by run in turn; the ratio is the median of neighbours.

Limit: searching twice in some hundred sorted leaves for each of at most 50 x 256 children of a level.
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
from transformers import Qwen3Config, Qwen3ForCausalLM

from prompts.vocabulary import SidVocabulary
from serve.decoding import tree_beam
from serve.decoding.fitted_prior import FittedPrior, PriorWeights, masses_of, request_features
from serve.decoding.trie_step import DeviceTrie
from sid_builder.artifact import code_version
from sid_builder.catalog import Catalog
from sid_builder.priors.one_hop import OneHopOptions, OneHopPrior
from sid_builder.priors.transitions import TransitionCounts
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex

CODES, LEVELS, SUCCESSORS, HISTORY = 256, 3, 25, 20
MODELS = {
    "large": {"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8},
    "small": {"vocab_size": 1_368, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2},
}
HEADS = {
    "large": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64},
    "small": {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32},
}


def build_index(num_items: int, seed: int) -> SidIndex:
    """Random distinct SIDs, random train counts."""
    rng = np.random.default_rng(seed)
    drawn = np.unique(rng.integers(0, CODES**LEVELS, num_items + num_items // 8))
    packed = rng.permutation(drawn)[:num_items]
    codes = np.stack([packed // CODES**2, packed // CODES % CODES, packed % CODES], axis=1).astype(np.int32)
    rows = [{"item_id": str(item), "title": ""} for item in range(num_items)]
    ids = SemanticIds(codes, (CODES,) * LEVELS)
    return SidIndex(Catalog.from_rows(rows), ids, rng.integers(1, 100, num_items))


def build_prior(index: SidIndex, seed: int) -> OneHopPrior:
    """Counts as many interactions would leave them behind."""
    rng, num_items = np.random.default_rng(seed), index.catalog.num_items
    targets = np.sort(rng.integers(0, num_items, (num_items, SUCCESSORS), dtype=np.int32), axis=1)
    counts = rng.integers(0, 9, (num_items * SUCCESSORS, 4), dtype=np.int32)
    prior = OneHopPrior(OneHopOptions(), index)
    prior.transitions = TransitionCounts(np.arange(num_items + 1) * SUCCESSORS, targets.ravel(), counts)
    prior.popularity.take(index.train_counts_N)
    return prior


def build_model(name: str, seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(**MODELS[name], **HEADS[name], tie_word_embeddings=True)
    return Qwen3ForCausalLM(config).eval()


def seconds(function, *arguments) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def measure(arguments: argparse.Namespace, size: str, index: SidIndex, prior: OneHopPrior) -> dict:
    """One model on one catalogue: medians, and the ratio to the plain beam, of both forms."""
    model, rng = build_model(size, arguments.seed), np.random.default_rng(arguments.seed)
    first = MODELS[size]["vocab_size"] - LEVELS * CODES
    vocabulary = SidVocabulary(tuple(first + level * CODES + np.arange(CODES) for level in range(LEVELS)))
    trie = DeviceTrie(index.trie, vocabulary)
    prompts = rng.integers(0, first, (arguments.prompts, arguments.prompt_tokens)).tolist()
    histories = list(rng.integers(0, index.catalog.num_items, (arguments.prompts, HISTORY)))

    def plain() -> None:
        tree_beam.decode(model, prompts, trie, arguments.beams)

    def fused(fitted: FittedPrior) -> None:
        tree_beam.decode(model, prompts, trie, arguments.beams, priors=fitted.of_histories(histories))

    forms = {
        form: FittedPrior("one_hop", {}, prior, PriorWeights([0.5], form), index)
        for form in ("linear", "log_linear")
    }
    plain()
    times: dict[str, list[float]] = {name: [] for name in ("plain", *forms, "masses")}
    for _ in range(arguments.runs):
        times["plain"].append(seconds(plain))
        for form, fitted in forms.items():
            times[form].append(seconds(fused, fitted))
        times["masses"].append(seconds(forms["linear"].of_histories, histories))
    masses = masses_of(prior, histories)
    assert request_features(histories, masses, index)["evidence"].min() > 0
    ratios = {
        form: statistics.median(mine / bare for mine, bare in zip(times[form], times["plain"], strict=True))
        for form in forms
    }
    return {
        "model": size,
        "items": index.catalog.num_items,
        "items_with_mass": round(masses.nnz / len(histories)),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "over_plain": {form: round(ratio, 3) for form, ratio in ratios.items()},
        "milliseconds": {name: round(1000 * statistics.median(values), 2) for name, values in times.items()},
    }


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
    torch.set_num_threads(arguments.threads)
    arguments.prompts = arguments.prompts or (1 if arguments.quick else 2)
    arguments.runs = 7 if arguments.quick else 25
    rows = []
    for num_items in (4_000, 1_000_000):
        index = build_index(num_items, arguments.seed)
        prior = build_prior(index, arguments.seed)
        for size in MODELS:
            rows.append(measure(arguments, size, index, prior))
            print(json.dumps(rows[-1], sort_keys=True), flush=True)
    result = {
        "benchmark": "prior",
        "rows": rows,
        "over_plain": max(max(row["over_plain"].values()) for row in rows if row["model"] == "large"),
        "bars": {"over_plain": 1.1},
        "config": vars(arguments),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__},
        "code": code_version(),
    }
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
