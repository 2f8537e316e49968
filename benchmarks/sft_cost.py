"""What an epoch of next-SID training costs: layouts against each other, and SID rows against whole embeddings.

    python benchmarks/sft_cost.py [--quick] [--sid_dir out/beauty/sids] [--only tokens speed memory]

`tokens` counts, for every layout, the tokens of one epoch over all train positions and the FLOPs they cost a
model of Qwen2.5-0.5B's shape:

- windows: one row per target, as LC-Rec and MiniOneRec train; all: a user's targets share one row as branches;
- our loss scores labelled positions alone, MiniOneRec's every position; its rows are counted under its own
  frame as well, whose length is a fact about it (77 tokens with Qwen's vocabulary, two between items, "\n" and
  EOS behind the answer), ours under the `chat` pack's in ChatML with Qwen's default system prompt.

`speed` trains a small Qwen3 for real: `transformers`' own loss on padded windows (the peer: what
`transformers.Trainer` does), and our trainer on padded windows, packed windows and packed trees, over the same
targets, interleaved. `memory` takes one LoRA step of a random Qwen2.5-0.5B with SID rows and with whole
embeddings, each in a process of its own.

FLOPs: 6 per weight and token (2 forward, 4 backward) of the layers, 6 H per position through the head for each
of V words, and 12 H per layer and pair of positions that attention computes: n^2 / 2 of a causal row of n, all
n^2 of a row under a 4-D mask, which no kernel skips. That product is the limit; seconds are this machine's.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import numpy as np

from sid_builder.artifact import code_version
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex

SECTIONS = ("tokens", "speed", "memory")


@dataclass(frozen=True)
class Shape:
    """A decoder as FLOPs see it."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int

    @property
    def layer_weights(self) -> int:
        """Weights of all layers' matrices; head and embeddings are counted apart."""
        attention = self.hidden * self.hidden * (2 + 2 * self.kv_heads / self.heads)
        return int(self.layers * (attention + 3 * self.hidden * self.mlp))

    def flops(self, tokens: float, pairs: float, scored: float) -> float:
        """Of one epoch, forward and backward."""
        attention = 12 * self.layers * self.hidden * pairs
        return 6 * self.layer_weights * tokens + attention + 6 * self.hidden * self.vocabulary * scored


QWEN = Shape(hidden=896, layers=24, heads=14, kv_heads=2, mlp=4864, vocabulary=151_936)


@dataclass(frozen=True)
class Frame:
    """Tokens around the SIDs of a seqrec prompt."""

    before: int
    between: int
    after: int
    end: int


# Counted with Qwen's byte-pair vocabulary (151,643 entries).
MINIONEREC = Frame(before=57, between=2, after=20, end=2)
CHAT = Frame(before=42, between=1, after=5, end=1)


def windows_epoch(lengths_C: np.ndarray, frame: Frame, depth: int) -> dict[str, float]:
    """Tokens, attended pairs and labels of one row per case; lengths_C: items of history per case."""
    rows_C = frame.before + lengths_C * depth + (lengths_C - 1) * frame.between + frame.after
    rows_C = rows_C + depth + frame.end - 1
    return {
        "tokens": float(rows_C.sum()),
        "pairs": float((rows_C.astype(float) ** 2).sum() / 2),
        "labels": float(len(rows_C) * (depth + frame.end)),
    }


def all_epoch(lengths_C: np.ndarray, starts: np.ndarray, limit: int, frame: Frame, depth: int) -> dict:
    """The same for trees: cases whose history fits `limit` share their sequence's row."""
    tokens = pairs = 0.0
    alone = lengths_C[lengths_C > limit].clip(max=limit)
    for group in np.split(lengths_C, starts[1:]):
        shared = group[group <= limit]
        if len(shared):
            trunk = frame.before + shared[-1] * depth + (shared[-1] - 1) * frame.between
            row = trunk + len(shared) * (frame.after + depth + frame.end - 1)
            tokens += row
            pairs += float(row) ** 2
    rest = windows_epoch(alone, frame, depth)
    return {
        "tokens": tokens + rest["tokens"],
        "pairs": pairs + 2 * rest["pairs"],
        "labels": float(len(lengths_C) * (depth + frame.end)),
    }


def count_tokens(index: SidIndex, interactions: Interactions, limit: int) -> dict[str, Any]:
    """Tokens and FLOPs of an epoch in every layout, for Qwen2.5-0.5B's shape."""
    cases = index.reachable(interactions.histories("train"))
    starts = np.flatnonzero(np.diff(cases.sequence_C, prepend=-1))
    whole_C, depth = cases.position_C, index.semantic_ids.depth
    bounded_C = whole_C.clip(max=limit)
    rows = {
        "minionerec": windows_epoch(whole_C.clip(max=10), MINIONEREC, depth),
        "minionerec, our history": windows_epoch(bounded_C, MINIONEREC, depth),
        "windows": windows_epoch(bounded_C, CHAT, depth),
        "all": all_epoch(whole_C, starts, limit, CHAT, depth),
        "all, minionerec's frame": all_epoch(whole_C, starts, limit, MINIONEREC, depth),
    }
    for name, row in rows.items():
        every = name.startswith("minionerec")
        row["flops"] = QWEN.flops(row["tokens"], row["pairs"], row["tokens"] if every else row["labels"])
        row["labels_per_token"] = row["labels"] / row["tokens"]
    peer = rows["minionerec, our history"]
    return {
        "targets": len(cases),
        "rows": rows,
        "tokens_saved_same_frame": rows["windows"]["tokens"] / rows["all"]["tokens"],
        "tokens_saved_their_frame": peer["tokens"] / rows["all, minionerec's frame"]["tokens"],
        "flops_saved": peer["flops"] / rows["all"]["flops"],
        "flops_saved_their_history": rows["minionerec"]["flops"] / rows["all"]["flops"],
        "bars": {"tokens_saved_same_frame": 2, "flops_saved": 5},
    }


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
    """Right-padded windows, logits at every position: a step of transformers.Trainer without its optimizer."""
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


def trainer_epoch(model: Any, rows: list[dict], size: int, tokenizer: Any, template: Any, batches: str) -> Any:
    """A function that takes every step of our trainer over the rows, forward and backward."""
    raise NotImplementedError


def measure_memory(quick: bool, threads: int) -> dict[str, Any]:
    """One step with SID rows and one with whole embeddings, each in a fresh process."""
    found = {}
    for train in ("rows", "full"):
        command = [sys.executable, __file__, "--child", train, "--threads", str(threads)]
        done = subprocess.run(
            command + ["--quick"] * quick, capture_output=True, text=True, check=True, env=os.environ
        )
        found[train] = json.loads(done.stdout.splitlines()[-1])
    rows, full = found["rows"], found["full"]
    return {
        **found,
        "fewer_trainable": full["trainable"] / rows["trainable"],
        "memory_saved_mib": full["peak_mib"] - rows["peak_mib"],
        "step_ratio": full["step_seconds"] / rows["step_seconds"],
    }


def one_step(train: str, layers: int) -> dict[str, Any]:
    """LoRA on all linear layers, SID embeddings by `train`, three AdamW steps of 2 x 256 tokens."""
    import torch
    from peft import get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from sft.adapters import lora_config
    from sft.arguments import NewTokenOptions, SftArguments

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
    for _ in range(3):
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
