"""SASRec with full cross-entropy beside popularity and one-hop counting: item-level test metrics in one run.

    python benchmarks/sasrec.py [--quick] [--data DIR] [--seed 0]

`--data` holds `items.jsonl` and `sequences.jsonl` (source `jsonl`); without it the generated shop is used.
The model is `python -m sid_builder.train_sasrec` as it comes: valid chooses the epoch, test is ranked once,
over the full catalogue. The goal on Amazon 2014 Beauty, history excluded: HR@10 of .080 (published with the
same loss: .0851, NDCG@10 .0421).
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from serve.evaluation.floors import ScoreBatch, one_hop, popularity, rank_floor
from serve.evaluation.metrics import metrics_of_ranks, slices_of
from sid_builder.artifact import code_version, to_json
from sid_builder.collaborative import SASRecConfig
from sid_builder.collaborative.sasrec_training import train_sasrec
from sid_builder.interactions import Split
from sid_builder.sources import SourceData, jsonl, toy
from sid_builder.trie import SidTrie

SHOWN = ("hr@5", "ndcg@5", "hr@10", "ndcg@10", "hr@50")


def measure(name: str, score: ScoreBatch, data: SourceData, split: Split) -> dict[str, Any]:
    """Item-level metrics of one system; every item is a leaf of its own."""
    num_items = data.catalog.num_items
    trie = SidTrie.build(np.arange(num_items, dtype=np.int32)[:, None], np.zeros(num_items, dtype=np.int64))
    cases = data.interactions.histories(split)
    ranked = rank_floor(score, cases, trie, exclude_history=not data.interactions.has_repeats)
    warm = slices_of(cases.targets_C, data.interactions.train_counts(num_items))["warm"]
    metrics = metrics_of_ranks(ranked.item_rank_C)
    print(f"| {name} | {split} | " + " | ".join(f"{metrics[key]:.4f}" for key in SHOWN) + " |")
    return {
        **{key: round(metrics[key], 4) for key in SHOWN},
        "hr@10 warm": round(metrics_of_ranks(ranked.item_rank_C[warm])["hr@10"], 4),
        "coverage@10": round(ranked.coverage, 4),
        "ranking_seconds": round(ranked.seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="3 epochs: under 45 s on the generated shop")
    parser.add_argument("--data", type=Path, help="directory of items.jsonl and sequences.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.data is not None:
        data = jsonl.load(jsonl.JsonlArgs(path=str(args.data)))
    else:
        data = toy.load(toy.ToyArgs())
    interactions, num_items = data.interactions, data.catalog.num_items
    config = SASRecConfig(epochs=3) if args.quick else SASRecConfig()
    started, cpu_started = time.perf_counter(), time.process_time()
    model, log = train_sasrec(interactions, num_items, config, args.seed)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    print("| system | split | " + " | ".join(SHOWN) + " |\n" + "|---" * (len(SHOWN) + 2) + "|")
    systems = {
        "popularity": popularity(interactions, num_items),
        "one-hop": one_hop(interactions, num_items),
        "SASRec": model.score_cases,
    }
    rows = {
        name: {split: measure(name, score, data, split) for split in ("valid", "test")}
        for name, score in systems.items()
    }
    result = {
        "rows": rows,
        "data": "generated shop" if args.data is None else args.data.name,
        "num_items": num_items,
        "history": "kept" if interactions.has_repeats else "excluded",
        "config": to_json(config),
        "seed": args.seed,
        "epochs": len(log.epochs),
        "kept_epoch": log.kept_epoch,
        "training_seconds": round(seconds, 1),
        "training_cpu_seconds": round(cpu_seconds, 1),
        "code": code_version(),
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(next(model.parameters()).device),
        },
    }
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
