"""The trie at catalogue scale: build time, bytes an item, and the last-level step of 50 beams.

    python benchmarks/trie.py [--quick] [--items 1000000] [--beams 50]

Random items under 3 x 2048 codes. A step is what a decoder does between two forward passes: children of 50
random nodes of the last level, with and without a filter that excludes 200 items, and the choice of the best
50 under random scores. The peer is a dict from prefixes to their sorted children, what
`prefix_allowed_tokens_fn` recipes use; it is built over a tenth of the items, and the ratio is per item.

Limit, in bytes: the leaves' own codes (2 bytes each) plus, per inner node, a code and a pointer (6 bytes); 4
more an item for the leaf-to-item map. A build must at least sort the rows once: `sort_seconds`.
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

from prompts.vocabulary import SidVocabulary
from serve.decoding.ranking import ItemFilter
from serve.decoding.trie_step import DeviceTrie, LeafFilters, select_beams
from sid_builder.artifact import code_version
from sid_builder.trie import SidTrie

LEVELS, CODES = 3, 2048


def dict_trie(codes_NL: np.ndarray) -> dict[tuple[int, ...], list[int]]:
    """Prefix -> sorted next codes."""
    table: dict[tuple[int, ...], set[int]] = {}
    for row in codes_NL.tolist():
        for level in range(LEVELS):
            table.setdefault(tuple(row[:level]), set()).add(row[level])
    return {prefix: sorted(codes) for prefix, codes in table.items()}


def median_ms(function, repeats: int) -> float:
    """Median milliseconds of `function(i)`, i = 0..repeats - 1, after a tenth as many warm-up calls."""
    times = []
    for i in range(-(repeats // 10), repeats):
        started = time.perf_counter()
        function(i)
        times.append(time.perf_counter() - started)
    return round(1e3 * statistics.median(times[repeats // 10 :]), 4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats: under 45 s")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a step is too small for more
    rng = np.random.default_rng(arguments.seed)
    codes = rng.integers(0, CODES, (arguments.items, LEVELS)).astype(np.int32)
    counts = rng.integers(0, 50, arguments.items)
    builds, repeats = (3, 500) if arguments.quick else (7, 3000)

    keys = ((codes[:, 0].astype(np.int64) << 22) | (codes[:, 1].astype(np.int64) << 11)) | codes[:, 2]
    sort_seconds = statistics.median(_seconds(np.argsort, keys) for _ in range(builds))
    build_seconds = statistics.median(_seconds(SidTrie.build, codes) for _ in range(builds))
    counted_seconds = statistics.median(_seconds(SidTrie.build, codes, counts) for _ in range(builds))
    trie = SidTrie.build(codes, counts)

    vocabulary = SidVocabulary(tuple(level * CODES + np.arange(CODES) for level in range(LEVELS)))
    device_trie = DeviceTrie(trie, vocabulary)
    parents = len(trie.indptr[-1]) - 1
    nodes = torch.from_numpy(rng.integers(0, parents, (repeats, arguments.beams)))
    scores = torch.from_numpy(rng.normal(size=arguments.beams * 64).astype(np.float32))
    excluding = LeafFilters(device_trie, [ItemFilter(exclude=rng.integers(0, arguments.items, 200))])
    last = LEVELS - 1

    def children(i: int, filters: LeafFilters | None = None, select: bool = False) -> None:
        candidates = device_trie.children(nodes[i], last)
        request = torch.zeros_like(candidates.row_E)
        if filters is not None:
            candidates = filters.keep(candidates, request, last)
            request = torch.zeros_like(candidates.row_E)
        if select:
            size = len(request)
            select_beams(scores[:size], request, candidates.child_E, 1, arguments.beams)

    with torch.inference_mode():
        step_ms = median_ms(children, repeats)
        filtered_ms = median_ms(lambda i: children(i, excluding), repeats)
        selected_ms = median_ms(lambda i: children(i, excluding, select=True), repeats)
        build_filter_ms = median_ms(
            lambda i: LeafFilters(device_trie, [ItemFilter(exclude=nodes[i].numpy())]), repeats
        )
    tenth = codes[: max(1, arguments.items // 10)]
    dict_seconds = _seconds(dict_trie, tenth)
    inner = sum(len(tok) for tok in trie.tok[:-1])
    result = {
        "benchmark": "trie",
        "build_seconds": round(build_seconds, 3),
        "build_seconds_with_train_counts": round(counted_seconds, 3),
        "sort_seconds": round(sort_seconds, 3),
        "bytes_per_item": round(trie.nbytes / arguments.items, 2),
        "bytes_per_item_with_items": round(trie.nbytes_with_items / arguments.items, 2),
        "limit_bytes_per_item": round((2 * trie.num_leaves + 6 * inner) / arguments.items, 2),
        "step_ms": step_ms,
        "step_ms_excluding": filtered_ms,
        "step_ms_excluding_and_selection": selected_ms,
        "filter_build_ms": build_filter_ms,
        "build_speedup_over_dict": round(dict_seconds / len(tenth) / (build_seconds / arguments.items), 1),
        "nodes": [len(tok) for tok in trie.tok],
        "runs": {"build": builds, "step": repeats},
        "bars": {"build_seconds": 1, "bytes_per_item": 8, "bytes_per_item_with_items": 12, "step_ms": 0.5},
        "config": vars(arguments),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__},
        "code": code_version(),
    }
    print(
        f"limit: {result['limit_bytes_per_item']} bytes an item, {result['sort_seconds']} s to sort; "
        f"measured {result['bytes_per_item']} bytes, {result['build_seconds']} s"
    )
    print(json.dumps(result, sort_keys=True))


def _seconds(function, *arguments) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
