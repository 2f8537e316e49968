"""What keeps an RQ-VAE's codes in use, aid by aid: used level-1 codes, perplexity, collisions, error, lift.

    python benchmarks/codebook_balance.py [--quick] [--embeddings embeddings.npy] [--interactions DIR]

`plain` is the bare RQ-VAE: codes start at random, and nothing revives or balances them. Most rows add one aid
to it; `kmeans_init` clusters an untrained encoder's outputs, as public implementations do, and
`warm_up_and_kmeans_init` a trained one's. `default` is `quantizer: rqvae` as it comes, `all` adds the balance
term and the curriculum to that. Reconstruction error is squared error over squared length in the input space,
on the rows trained on. `--embeddings` and `--interactions` are what a build wrote (`embeddings.npy`,
`interactions/`); without them vectors are generated: 2,000 items around 100 centres.

The goal: more than 230 of 256 level-1 codes used, at no more than 5 % more error than `plain`.
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

from sid_builder.artifact import code_version
from sid_builder.interactions import Interactions
from sid_builder.quantizers.rqvae import RQVAE, RQVAEConfig
from sid_builder.report import co_click_lift, level_use
from sid_builder.semantic_ids import SemanticIds

PLAIN: dict[str, Any] = {"kmeans_init": False, "revive_below": 0.0, "warm_up_share": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "kmeans_init": PLAIN | {"kmeans_init": True},
    "warm_up_and_kmeans_init": {"revive_below": 0.0},
    "revival": PLAIN | {"revive_below": RQVAEConfig.revive_below},
    "balance": PLAIN | {"balance_weight": 0.1},
    "sinkhorn": PLAIN | {"sinkhorn": "all"},
    "cosine_first": PLAIN | {"cosine_levels": 2},
    "rotation": PLAIN | {"gradient": "rotation"},
    "curriculum": PLAIN | {"curriculum": True},
    "default": {},
    "all": {"balance_weight": 0.1, "curriculum": True},
}


def generated(rng: np.random.Generator) -> np.ndarray:
    """Float32 [2000, 64] around 100 centres of unequal size, in three grades of detail."""
    share = 1 / np.arange(1, 101)
    centre = rng.choice(100, 2000, p=share / share.sum())
    coarse, fine = rng.normal(size=(100, 64)), rng.normal(size=(1000, 64))
    detail = fine[centre * 10 + rng.integers(10, size=2000)]
    return (coarse[centre] + 0.6 * detail + 0.3 * rng.normal(size=(2000, 64))).astype(np.float32)


def measure(
    options: dict[str, Any], embeddings_ND: np.ndarray, interactions: Interactions | None, seed: int
) -> dict[str, Any]:
    quantizer = RQVAE(RQVAEConfig(**options), seed)
    started = time.perf_counter()
    quantizer.fit(embeddings_ND)
    seconds = time.perf_counter() - started
    codes_NL = quantizer.encode(embeddings_ND)
    sids = SemanticIds(codes_NL, quantizer.level_sizes)
    target_ND = quantizer.prepare(embeddings_ND)
    rest_ND = (target_ND - quantizer.reconstruct(codes_NL)).astype(np.float64)
    levels = [level_use(codes_NL[:, level], size) for level, size in enumerate(quantizer.level_sizes)]
    lift = co_click_lift(sids, interactions, 1)["lift"] if interactions is not None else None
    return {
        "used": [level["used"] for level in levels],
        "perplexity": [round(level["perplexity"], 1) for level in levels],
        "collision_rate": round(sids.collision_rate, 4),
        "error": round(float((rest_ND**2).sum() / (target_ND.astype(np.float64) ** 2).sum()), 4),
        "co_click_lift": None if lift is None else round(lift, 2),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="generated vectors, 64 codes: under 45 s")
    parser.add_argument("--embeddings", type=Path, help="float32 [items, dimensions], npy")
    parser.add_argument("--interactions", type=Path, help="directory a build wrote, for the co-click lift")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    arguments = parser.parse_args()
    if arguments.quick or arguments.embeddings is None:
        embeddings_ND = generated(np.random.default_rng(arguments.seed))
    else:
        embeddings_ND = np.load(arguments.embeddings, mmap_mode="r")
    interactions = Interactions.load(arguments.interactions) if arguments.interactions else None
    shape = {"steps": arguments.steps}
    if arguments.quick:
        shape = {
            "steps": 150,
            "codes_per_level": 64,
            "hidden_sizes": [128],
            "latent_dim": 16,
            "batch_size": 512,
        }
    results = {}
    for name in arguments.only:
        results[name] = measure(shape | VARIANTS[name], embeddings_ND, interactions, arguments.seed)
        print(f"{name:24} {json.dumps(results[name])}", flush=True)
    for row in results.values():
        if "plain" in results:
            row["error_vs_plain"] = round(row["error"] / results["plain"]["error"] - 1, 4)
    print(
        json.dumps(
            {
                "benchmark": "codebook_balance",
                "items": len(embeddings_ND),
                "results": results,
                "bars": {"level_1_used": 230, "error_vs_plain": 0.05},
                "config": {key: str(value) for key, value in vars(arguments).items()},
                "machine": {
                    "platform": platform.platform(),
                    "cores": os.cpu_count(),
                    "torch": torch.__version__,
                },
                "code": code_version(),
            },
            sort_keys=True,
        )
    )


if __name__ == "__main__":
    main()
