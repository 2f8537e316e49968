"""What an epoch of next-SID training costs: layouts side by side, and SID rows against whole embeddings.

    python benchmarks/sft_cost.py [--quick] [--sid_dir out/beauty/sids] [--only tokens speed memory]

`tokens` counts the tokens and FLOPs of one epoch in every layout (sft_flops.py says how). FLOPs are the
limit; seconds are this machine's.

`speed` trains a small Qwen3 for real, without the optimizer's step: transformers' own loss on padded windows
(the peer: what transformers.Trainer does), and our trainer on padded windows, packed windows and packed
trees, over the same targets, interleaved. `memory` takes LoRA steps of a random Qwen2.5-0.5B with SID rows
and with whole embeddings, each in a process of its own.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import numpy as np

from benchmarks.sft_flops import QWEN, count_tokens
from sid_builder.artifact import code_version
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex

SECTIONS = ("tokens", "speed", "memory")


def measure_speed(index: SidIndex, interactions: Interactions, repeats: int, users: int) -> dict[str, Any]:
    """Seconds a target of real steps, median over interleaved repeats, and ratios against the peer."""
    import torch

    from prompts.pack import PromptPack
    from prompts.template import PromptTemplate
    from sft.examples import TaskContext
    from sft.models.scratch import ScratchConfig, build_model, train_tokenizer
    from sft.tasks import seqrec
    from sft.vocabulary import extend_tokenizer

    tokenizer = train_tokenizer(index.catalog.titles, 2048)
    extend_tokenizer(tokenizer, index.semantic_ids)
    template = PromptTemplate(PromptPack.load("plain"), tokenizer, index)
    config = ScratchConfig("qwen3", hidden_size=128, num_layers=4, num_heads=4, intermediate_size=384)
    model = build_model(config, len(tokenizer), template.end_id, tokenizer.pad_token_id, seed=0)
    share = max(1, interactions.num_sequences // users)
    found: dict[str, list[dict]] = {}
    for positions in ("windows", "all"):
        context = TaskContext(index, interactions, template, None, positions, 0, share)
        found[positions] = [row.as_row() for row in seqrec.examples(context, np.random.default_rng(0))]
    targets = sum(len(row["target_items"]) for row in found["all"])
    size = 64 * len(found["windows"]) // len(found["all"])  # as many targets a step in both
    runs = {
        "transformers, padded windows": lambda: peer_epoch(model, found["windows"], size, tokenizer),
        "padded windows": trainer_epoch(model, found["windows"], size, tokenizer, template, "padded"),
        "packed windows": trainer_epoch(model, found["windows"], size, tokenizer, template, "packed"),
        "packed trees": trainer_epoch(model, found["all"], 64, tokenizer, template, "packed"),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.process_time()
            run()
            times[name].append(time.process_time() - started)
    median = {name: statistics.median(values) for name, values in times.items()}
    first = median["transformers, padded windows"]
    return {
        "targets": targets,
        "cpu_ms_per_target": {name: round(value / targets * 1e3, 3) for name, value in median.items()},
        "loss_tokens_per_cpu_second": {
            name: round(targets * (index.semantic_ids.depth + 1) / value) for name, value in median.items()
        },
        "faster_than_transformers": {name: round(first / value, 2) for name, value in median.items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "threads": torch.get_num_threads(),
    }


def peer_epoch(model: Any, rows: list[dict], size: int, tokenizer: Any) -> None:
    """Right-padded windows, logits at every position: what transformers.Trainer computes."""
    import torch

    for first in range(0, len(rows), size):
        batch = rows[first : first + size]
        width = max(len(row["input_ids"]) for row in batch)
        ids = torch.full((len(batch), width), tokenizer.pad_token_id)
        labels = torch.full((len(batch), width), -100)
        seen = torch.zeros((len(batch), width), dtype=torch.long)
        for number, row in enumerate(batch):
            length = len(row["input_ids"])
            ids[number, :length] = torch.from_numpy(row["input_ids"].astype(np.int64))
            labels[number, 1:length] = torch.from_numpy(row["shift_labels"].astype(np.int64))[:-1]
            seen[number, :length] = 1
        model(input_ids=ids, attention_mask=seen, labels=labels).loss.backward()
        model.zero_grad()


def trainer_epoch(
    model: Any, rows: list[dict], size: int, tokenizer: Any, template: Any, batches: str
) -> Any:
    """A function that takes every step of our trainer over the rows, forward and backward."""
    import datasets
    from trl import SFTConfig

    from sft.arguments import LayoutOptions
    from sft.trainer import SidTrainer

    config = SFTConfig(
        tempfile.mkdtemp(prefix="sft_cost_"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_length=None,
        remove_unused_columns=False,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    layout = LayoutOptions(batches=batches)  # type: ignore[arg-type]
    table = datasets.Dataset.from_list(rows)
    trainer = SidTrainer(model, config, table, tokenizer, template, None, layout=layout)

    def run() -> None:
        for first in range(0, len(rows), size):
            trainer.compute_loss(model, trainer.data_collator(rows[first : first + size])).backward()
            model.zero_grad()

    return run


def measure_memory(quick: bool, threads: int) -> dict[str, Any]:
    """LoRA steps with SID rows and with whole embeddings, each in a fresh process: peaks are a process's."""
    layers, steps = (2, 1) if quick else (QWEN.layers, 3)
    found = {}
    for train in ("rows", "full"):
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            found[train] = fresh.submit(one_step, train, layers, steps, threads).result()
    rows, full = found["rows"], found["full"]
    return {
        **found,
        "fewer_trainable": full["trainable"] / rows["trainable"],
        "memory_saved_mib": full["peak_mib"] - rows["peak_mib"],
        "step_ratio": full["step_seconds"] / rows["step_seconds"],
    }


def one_step(train: str, layers: int, steps: int, threads: int) -> dict[str, Any]:
    """LoRA on all linear layers, SID embeddings by `train`, AdamW steps of 2 x 256 tokens."""
    import torch
    from peft import get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from sft.adapters import lora_config
    from sft.arguments import NewTokenOptions, SftArguments

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=QWEN.vocabulary,
        hidden_size=QWEN.hidden,
        intermediate_size=QWEN.mlp,
        num_hidden_layers=layers,
        num_attention_heads=QWEN.heads,
        num_key_value_heads=QWEN.kv_heads,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)
    arguments = SftArguments(sid_dir="", new_tokens=NewTokenOptions(train=train))
    sids = list(range(QWEN.vocabulary - 1024, QWEN.vocabulary))
    model = get_peft_model(model, lora_config(arguments, model, sids))
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-4)
    ids = torch.randint(0, QWEN.vocabulary, (2, 256))
    labels = torch.where(torch.rand(ids.shape) < 0.1, ids, -100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times = []
    for _ in range(steps):
        started = time.process_time()
        hidden = model.get_base_model().model(input_ids=ids).last_hidden_state[labels != -100]
        logits = model.get_output_embeddings()(hidden)
        torch.nn.functional.cross_entropy(logits, labels[labels != -100]).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - started)
    return {
        "trainable": sum(parameter.numel() for parameter in learnt),
        "total": sum(parameter.numel() for parameter in model.parameters()),
        "model_mib": round(before),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "step_seconds": round(statistics.median(times), 3),
        # What the trained parameters alone must hold: gradient and two moments in fp32.
        "limit_mib": round(sum(parameter.numel() for parameter in learnt) * 12 / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a generated shop, 2 layers, one repeat: < 45 s")
    parser.add_argument("--sid_dir", type=Path, help="directory of sid_builder.build; a generated shop else")
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--max_history", type=int, default=20)
    parser.add_argument("--users", type=int, default=300, help="users of the speed section")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.users, arguments.repeats = 40, 1
    index, interactions = data(arguments.sid_dir)
    result: dict[str, Any] = {"benchmark": "sft_cost"}
    if "tokens" in arguments.only:
        result["tokens"] = count_tokens(index, interactions, arguments.max_history)
    if "speed" in arguments.only:
        result["speed"] = measure_speed(index, interactions, arguments.repeats, arguments.users)
    if "memory" in arguments.only:
        result["memory"] = measure_memory(arguments.quick, arguments.threads)
    result |= {
        "config": {name: str(value) for name, value in vars(arguments).items()},
        "shape": asdict(QWEN),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__},
        "code": code_version(),
    }
    print(json.dumps(result, sort_keys=True))


def data(sid_dir: Path | None) -> tuple[SidIndex, Interactions]:
    """Catalogue with SIDs and interactions: given, or 400 users of the generated shop."""
    if sid_dir is not None:
        return SidIndex.load(sid_dir / "sid_index"), Interactions.load(sid_dir / "interactions")
    from sid_builder.semantic_ids import SemanticIds
    from sid_builder.sources.toy import ToyArgs, load

    shop = load(ToyArgs(num_users=400))
    # Costs depend on how many tokens an SID has, not on which ones.
    codes = np.unique(np.random.default_rng(0).integers(0, 64, (2000, 3)), axis=0)
    codes_NL = np.random.default_rng(1).permutation(codes)[: shop.catalog.num_items].astype(np.int32)
    counts_N = shop.interactions.train_counts(shop.catalog.num_items)
    return SidIndex(shop.catalog, SemanticIds(codes_NL, (64, 64, 64)), counts_N), shop.interactions


if __name__ == "__main__":
    main()
