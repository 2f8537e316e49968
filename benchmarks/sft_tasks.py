"""What alignment tasks and layouts are worth: small decoders trained from scratch, ranked on valid.

    python benchmarks/sft_tasks.py --sid_dir out/beauty/sids --runs DIR [--variants next titles all]
    python benchmarks/sft_tasks.py --quick
    python benchmarks/sft_tasks.py --summary

Every run is `sft.train` and `sft.merge` by their command lines, on a Qwen3 of two layers x 64, the same
passes over every train position. Variants: `windows` (a row per target) and `next` (packed trees) train on
next SIDs alone, `next_50` with longer histories and more passes; `titles` adds title -> SID and SID -> title;
`all` adds the other tasks. A run reports item-level HR and NDCG of the full valid split under the first
wording and under those held out from training, and how many titles come back exactly from SIDs.

A finished run is one JSON in benchmarks/results/sft (configuration, hashes, commit, ranks); a queue that was
interrupted goes on with what is missing. What to beat is one-hop counting: `serve.evaluate --model SID_DIR`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from sid_builder.artifact import code_version, hash_inputs, open_artifact, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "sft"
DECODER = {
    "architecture": "qwen3",
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 192,
    "text_vocab_size": 600,
}
COMMON = {
    "training": "full",
    "prompt_pack": "plain",
    "max_history": 20,
    "max_prompt_tokens": 512,  # Beauty has a title of 250 tokens under so small a vocabulary
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 100,
    "weight_decay": 0.1,
    "save_strategy": "no",
    "logging_steps": 50,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
}
TITLES = {"seqrec": 1.0, "title2sid": 1.0, "sid2title": 1.0}
VARIANTS: dict[str, dict[str, Any]] = {
    # Batches hold as many rows of `seqrec` in every variant but the first, whose rows are single targets.
    "windows": {
        "task_weights": {"seqrec": 1.0},
        "layout": {"positions": "windows"},
        "per_device_train_batch_size": 376,
    },
    "next": {"task_weights": {"seqrec": 1.0}, "per_device_train_batch_size": 64},
    # With 50 items few targets lie outside their user's row: 7 passes take half the tokens of 5 of windows.
    "next_50": {
        "task_weights": {"seqrec": 1.0},
        "max_history": 50,
        "num_train_epochs": 7,
        "per_device_train_batch_size": 64,
    },
    "titles": {"task_weights": TITLES, "per_device_train_batch_size": 106},
    "all": {
        "task_weights": TITLES
        | {
            "item2index": 0.5,
            "index2item": 0.5,
            "query2sid": 1.0,
            "fusionseqrec": 0.05,
            "title_history2sid": 0.05,
            "sid_history2title": 0.05,
            "title_history2title": 0.02,
        },
        "per_device_train_batch_size": 192,
    },
}


def train(variant: str, seed: int, sid_dir: Path, directory: Path, epochs: float) -> float | None:
    """Train and merge into `directory`/model; returns CPU seconds, or None where that is there already."""
    if (directory / "model" / "manifest.json").is_file():
        return None
    flags = COMMON | {"num_train_epochs": epochs, "seed": seed} | VARIANTS[variant]
    argv = [f"--{key}={value if isinstance(value, (str, int, float)) else json.dumps(value)}"
            for key, value in flags.items()]  # fmt: skip
    argv += [f"--from_scratch={json.dumps(DECODER)}", "--disable_tqdm=true", "--overwrite=true"]
    started = os.times()
    for command in (
        ["sft.train", f"--sid_dir={sid_dir}", f"--output_dir={directory}", *argv],
        ["sft.merge", f"--adapter={directory}", f"--output_dir={directory / 'model'}"],
    ):
        subprocess.run([sys.executable, "-m", *command], check=True, cwd=ROOT)
    ended = os.times()
    return ended.children_user + ended.children_system - started.children_user - started.children_system


def judge(directory: Path, num_titles: int) -> dict[str, Any]:
    """Ranks of the whole valid split in the first wording, metrics in all, exact titles."""
    from serve.decoding.recommender import Recommender
    from serve.evaluation.metrics import metrics_of_ranks
    from serve.evaluation.model_ranking import rank_targets

    recommender = Recommender.load(directory / "model")
    cases = recommender.interactions.histories("valid")
    pack = recommender.template.pack
    wordings = {}
    for number in [0, *pack.wordings("seqrec", held_out=True)]:
        ranked = rank_targets(recommender, cases, wording=number, progress=False)
        wordings[number] = metrics_of_ranks(ranked.item_rank_C)
        if number == 0:
            ranks = ranked.item_rank_C.tolist()
    return {
        "valid": wordings[0],
        "held_out_wordings": {n: m for n, m in wordings.items() if n},
        "exact_titles": exact_titles(recommender, num_titles),
        "parameters": recommender.model.num_parameters(),
        "item_ranks": ranks,
    }


def exact_titles(recommender: Any, num_titles: int) -> float:
    """Share of items whose title comes back word for word from their SID, greedily, over a fixed sample."""
    import torch

    template, tokenizer = recommender.template, recommender.tokenizer
    titles = recommender.index.catalog.titles
    items = [item for item in range(len(titles)) if titles[item]]
    items = np.random.default_rng(0).choice(items, min(num_titles, len(items)), replace=False)
    hits = 0
    for chunk in np.array_split(items, max(1, len(items) // 64)):
        prompts = [template.render("sid2title", int(item)).prompt_ids for item in chunk]
        width = max(map(len, prompts))
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        answers = recommender.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=96,
            eos_token_id=template.end_id,
            pad_token_id=tokenizer.pad_token_id,
        )[:, width:]
        for item, answer in zip(chunk, answers.tolist(), strict=True):
            words = answer[: answer.index(template.end_id)] if template.end_id in answer else answer
            hits += tokenizer.decode(words) == titles[int(item)]
    return hits / len(items)


def one_run(variant: str, seed: int, sid_dir: Path, runs: Path, epochs: float, titles: int) -> dict[str, Any]:
    directory = runs / f"{variant}_{seed}"
    cpu_seconds = train(variant, seed, sid_dir, directory, epochs)
    log = json.loads((directory / "log_history.json").read_text(encoding="utf-8"))
    run = open_artifact(directory, "sft")
    # Where things lay on a machine is nobody's business: what they hold is hashed under `inputs`.
    run.config["sft"]["sid_dir"], run.config["trl"]["output_dir"] = "sids", directory.name
    return {
        "variant": variant,
        "seed": seed,
        "epochs": VARIANTS[variant].get("num_train_epochs", epochs),
        "config": run.config,
        "code": run.manifest["code"],
        "inputs": hash_inputs({"sids": sid_dir}),
        "steps": run.summary["steps"],
        "rows": run.summary["rows"],
        "tokens": next(row["num_tokens"] for row in reversed(log) if "num_tokens" in row),
        "cpu_seconds_of_training": cpu_seconds,
        **judge(directory, titles),
    }


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds per variant, and paired differences in NDCG@10 and HR@10 against `next`."""
    from serve.evaluation.metrics import bootstrap_means, gains, hits, interval

    found: dict[str, Any] = {}
    by_key = {(row["variant"], row["seed"]): row for row in results}
    for variant in dict.fromkeys(row["variant"] for row in results):
        rows = [row for row in results if row["variant"] == variant]
        figures: dict[str, Any] = {"seeds": [row["seed"] for row in rows]}
        for metric in ("hr@10", "ndcg@10"):
            values = [row["valid"][metric] for row in rows]
            figures[metric] = statistics.mean(values)
            figures[f"{metric} sd"] = statistics.stdev(values) if len(values) > 1 else None
            held = [m[metric] for row in rows for m in row["held_out_wordings"].values()]
            figures[f"{metric} held out"] = statistics.mean(held) if held else None
        figures["exact_titles"] = statistics.mean(row["exact_titles"] for row in rows)
        figures["tokens"] = statistics.mean(row["tokens"] for row in rows)
        shared = [row["seed"] for row in rows if ("next", row["seed"]) in by_key]
        if variant != "next" and shared:
            for metric, score in (("ndcg@10", gains), ("hr@10", hits)):
                per_case = [
                    score(np.array(by_key[variant, seed]["item_ranks"]), 10)
                    - score(np.array(by_key["next", seed]["item_ranks"]), 10)
                    for seed in shared
                ]
                mean_C = np.mean(per_case, axis=0)
                low, high = interval(bootstrap_means(mean_C[:, None])[:, 0])
                figures[f"{metric} minus next"] = {"mean": float(mean_C.mean()), "low": low, "high": high}
        found[variant] = figures
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sid_dir", type=Path, help="directory of sid_builder.build")
    parser.add_argument("--runs", type=Path, help="where runs are kept; a temporary place by default")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--titles", type=int, default=1000, help="items whose titles are asked back")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="two variants on a generated shop: under 45 s")
    parser.add_argument("--summary", action="store_true", help="print what finished runs say, and stop")
    arguments = parser.parse_args()
    started = time.monotonic()
    if not arguments.summary:
        runs = arguments.runs or Path(tempfile.mkdtemp(prefix="sft_tasks_"))
        if arguments.quick:
            arguments.variants, arguments.seeds, arguments.epochs = ["next", "titles"], [0], 0.1
            arguments.titles, arguments.results, arguments.sid_dir = 32, runs / "results", runs / "sids"
            build = ["sid_builder.build", "--config", "configs/sid/toy_rq_kmeans.yaml"]
            build += [f"--output_dir={arguments.sid_dir}", '--source_args={"num_users": 300}']
            subprocess.run([sys.executable, "-m", *build], check=True, cwd=ROOT)
        elif arguments.sid_dir is None:
            parser.error("--sid_dir is needed; or --quick")
        arguments.results.mkdir(parents=True, exist_ok=True)
        for seed in arguments.seeds:
            for variant in arguments.variants:
                path = arguments.results / f"{variant}_{seed}.json"
                if not path.is_file():
                    sid_dir = arguments.sid_dir.resolve()
                    found = one_run(variant, seed, sid_dir, runs, arguments.epochs, arguments.titles)
                    write_json(path, found)
    results = [json.loads(path.read_text()) for path in sorted(arguments.results.glob("*.json"))]
    content = {
        "benchmark": "sft_tasks",
        "variants": summary(results),
        "minutes": round((time.monotonic() - started) / 60, 2),
        "code": code_version(),
    }
    print(json.dumps(content, sort_keys=True))


if __name__ == "__main__":
    main()
