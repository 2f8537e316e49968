"""Does it matter how the rows of new SID tokens begin, and what learns beside them?

    python benchmarks/new_tokens.py [--quick]
    python benchmarks/new_tokens.py --sid_dir out/beauty/sids [--train rows] [--seeds 0 1 2] [--steps 300]

The question only makes sense for a model that knows words, so one is made first: a Qwen2-shaped decoder with
tied embeddings and a tokenizer of its own, trained as a plain language model on the catalogue's texts (every
20th is kept apart). Then each variant extends it by the SIDs and runs `sft.train` and `sft.merge` by their
command lines: LoRA, the same batches in the same order, steps, learning rate and seeds for all.

    --init   how rows begin: mean, text, codebook (sft/new_tokens.py)
    --train  rows: SID rows beside the adapters; full: whole embeddings; warm_up: as rows, which learn alone
             in the first fifth of the steps

`first_loss` and `last_loss` are means over the first and last tenth of the training steps; ranking is the
tree beam over the full catalogue on a sample of valid, history excluded; `text_loss` is the loss per token of
the texts kept apart, over the whole vocabulary (SID tokens included), and `pretrained.text_loss` what it was
before. `--sid_dir` needs an embeddings.npy; without it the toy shop's SIDs are built. Seconds are of one
process's CPU time.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import numpy as np
import torch
from tqdm import tqdm

from sft.models.scratch import ScratchConfig, build_model, train_tokenizer
from sid_builder.artifact import code_version, hash_inputs
from sid_builder.item_text import item_texts
from sid_builder.sid_index import SidIndex

ROOT = Path(__file__).resolve().parents[1]
TEXT = "{title}[. {brand}][. {categories}]"
INITS = ("mean", "text", "codebook")
WAYS = ("rows", "full", "warm_up")
DECODER = ScratchConfig(
    architecture="qwen2", hidden_size=128, num_layers=3, num_heads=4, intermediate_size=384
)
ROW_TOKENS, ROWS_A_BATCH = 128, 16
SFT = {
    "prompt_pack": "plain",
    "max_prompt_tokens": 512,
    "lora": {"r": 16, "alpha": 32, "dropout": 0.0},
    "task_weights": {"seqrec": 1.0, "title2sid": 1.0, "sid2title": 1.0},
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "per_device_train_batch_size": 32,
    "save_strategy": "no",
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
}


def toy_sids(directory: Path) -> Path:
    from sid_builder import build

    config = ROOT / "configs" / "sid" / "toy_rq_kmeans.yaml"
    build.main(["--config", str(config), "--output_dir", str(directory)])
    return directory


def pretrain(index: SidIndex, path: Path, steps: int, seed: int) -> float:
    """Write a language model of the catalogue's texts; returns its loss on the texts kept apart."""
    texts = item_texts(index.catalog, TEXT)
    learnt = [text for number, text in enumerate(texts) if number % 20]
    tokenizer = train_tokenizer(learnt, DECODER.text_vocab_size)
    model = build_model(DECODER, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    encoded = [ids + [tokenizer.eos_token_id] for ids in tokenizer(learnt)["input_ids"]]
    rng, stream = np.random.default_rng(seed), []
    for _ in tqdm(range(steps), desc="pretrain", unit="step", disable=None):
        while len(stream) < ROWS_A_BATCH * ROW_TOKENS:
            stream += [token for item in rng.permutation(len(encoded)) for token in encoded[item]]
        batch = torch.tensor(stream[: ROWS_A_BATCH * ROW_TOKENS]).view(ROWS_A_BATCH, ROW_TOKENS)
        stream = stream[ROWS_A_BATCH * ROW_TOKENS :]
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return text_loss(model, tokenizer, texts[::20])


@torch.inference_mode()
def text_loss(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Mean loss per token, each text read alone."""
    total, count = 0.0, 0
    for low in range(0, len(texts), 64):
        rows = [
            ids + [tokenizer.eos_token_id]
            for ids in tokenizer(texts[low : low + 64], add_special_tokens=False)["input_ids"]
        ]
        width = max(map(len, rows))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        logits = model.eval()(input_ids=ids, attention_mask=real).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        total += float((losses * real[:, 1:]).sum())
        count += int(real[:, 1:].sum())
    return total / count


def run(
    arguments: argparse.Namespace, checkpoint: Path, sid_dir: Path, init: str, way: str, seed: int, work: Path
) -> dict[str, float]:
    """One variant: trained, merged, ranked."""
    from serve.decoding.recommender import Recommender
    from serve.evaluation.metrics import metrics_of_ranks
    from serve.evaluation.model_ranking import rank_targets, sample_cases
    from sft import merge, train

    new_tokens = {"init": init, "train": "full" if way == "full" else "rows"}
    if way == "warm_up":
        new_tokens["warmup_steps"] = arguments.steps // 5
    given = SFT | {"new_tokens": new_tokens, "max_steps": arguments.steps, "seed": seed}
    given |= {"sid_dir": sid_dir, "model_name_or_path": checkpoint, "output_dir": work / "sft"}
    started = time.process_time()
    flags = []
    for name, value in given.items():
        flags += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    with contextlib.redirect_stdout(io.StringIO()):  # a line per step
        train.main(flags)
        seconds = time.process_time() - started
        merge.main(["--adapter", str(work / "sft"), "--output_dir", str(work / "model")])
    recommender = Recommender.load(work / "model")
    cases = sample_cases(recommender.interactions.histories("valid"), arguments.valid_cases)
    ranked = metrics_of_ranks(rank_targets(recommender, cases, progress=False).item_rank_C)
    history = json.loads((work / "sft" / "log_history.json").read_text())
    losses = [entry["loss"] for entry in history if "loss" in entry]
    tenth = max(1, len(losses) // 10)
    texts = item_texts(recommender.index.catalog, TEXT)[::20]
    return {
        "first_loss": statistics.fmean(losses[:tenth]),
        "last_loss": statistics.fmean(losses[-tenth:]),
        "ndcg@10": ranked["ndcg@10"],
        "hr@10": ranked["hr@10"],
        "text_loss": text_loss(recommender.model, recommender.tokenizer, texts),
        "train_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, few steps, rows alone: under 45 s")
    parser.add_argument("--sid_dir", type=Path, help="artefact of sid_builder.build; default: the toy shop")
    parser.add_argument("--init", nargs="+", choices=INITS, default=list(INITS))
    parser.add_argument("--train", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--pretrain_steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--valid_cases", type=int, default=1000)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.train = arguments.seeds[:1], ["rows"]
        arguments.pretrain_steps, arguments.steps, arguments.valid_cases = 30, 10, 100
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="new_tokens-") as directory:
        work = Path(directory)
        sid_dir = arguments.sid_dir or toy_sids(work / "sids")
        index = SidIndex.load(sid_dir / "sid_index")
        before = pretrain(index, work / "pretrained", arguments.pretrain_steps, seed=0)
        for way in arguments.train:
            for init in arguments.init:
                seeds = []
                for seed in arguments.seeds:
                    place = work / f"{way}-{init}-{seed}"
                    seeds.append(run(arguments, work / "pretrained", sid_dir, init, way, seed, place))
                results[f"{init}/{way}"] = summary = {
                    name: {
                        "mean": round(statistics.fmean(values), 4),
                        "seeds": [round(value, 4) for value in values],
                    }
                    for name in seeds[0]
                    for values in [[figures[name] for figures in seeds]]
                }
                means = {name: entry["mean"] for name, entry in summary.items()}
                print(f"{init + '/' + way:18} {json.dumps(means)}", flush=True)
        inputs = hash_inputs({"sids": sid_dir})
    print(
        json.dumps(
            {
                "benchmark": "new_tokens",
                "items": index.catalog.num_items,
                "pretrained": {"text_loss": round(before, 4)},
                "results": results,
                "sft": SFT,
                "config": {key: str(value) for key, value in vars(arguments).items()},
                "inputs": inputs,
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
