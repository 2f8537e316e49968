"""What an epoch of next-SID training costs: layouts side by side, and SID rows against whole embeddings.

    python benchmarks/sft_cost.py [--quick] [--sid_dir out/beauty/sids] [--only tokens speed memory]

`tokens` counts what one epoch over all train positions takes in every layout, and the FLOPs it costs a model
of Qwen2.5-0.5B's shape. Windows: one row per target, right-padded in batches of 16 or packed; all: a user's
targets share one row as branches, 64 rows a batch, packed by the collator that training uses. Our loss scores
labelled positions alone; MiniOneRec's scores every position, padding included. Its rows are counted under a
frame as long as its own (77 tokens of Qwen's vocabulary, two between items, a newline and EOS behind the
answer), ours under the `chat` pack's in ChatML with Qwen's default system prompt.

`speed` trains a small Qwen3 for real, without the optimizer's step: transformers' own loss on padded windows
(the peer: what transformers.Trainer does), and our trainer on padded windows, packed windows and packed
trees, over the same targets, interleaved. `memory` takes LoRA steps of a random Qwen2.5-0.5B with SID rows
and with whole embeddings, each in a process of its own.

FLOPs: 6 per weight of the layers and token (2 forward, 4 backward), padding included; 6 H V per position that
the head scores; 12 H per layer and pair of positions that attention computes: n^2 / 2 of a causal row of n,
all n^2 of a row under a 4-D mask, which no kernel skips. That product is the limit; seconds are this
machine's.
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


def rows_of(lengths_C: np.ndarray, starts: np.ndarray, limit: int, frame: Frame, depth: int) -> list[dict]:
    """Rows of one epoch as the collator takes them, with the right lengths (their tokens mean nothing).

    Args:
        lengths_C: items of history of each case, sequence by sequence.
        starts: first case of each sequence; none for a row per case.
        limit: most items of a history.
    """
    answer = depth + frame.end
    between = depth + frame.between

    def row(trunk: int, branches: list[int]) -> dict[str, Any]:
        hanging = frame.after + answer - 1
        size = trunk + len(branches) * hanging
        labels = np.full(size, -100)
        for number in range(len(branches) or 1):
            end = trunk + (number + 1) * hanging if branches else size
            labels[end - answer : end] = 1
        ids = np.arange(size)  # every row begins alike: with the frame
        ids[frame.before :] += 1000
        return {
            "input_ids": ids.tolist(),
            "shift_labels": labels.tolist(),
            "branch_attach": branches,
            "branch_length": [hanging] * len(branches),
        }

    def alone(length: int) -> dict[str, Any]:
        return row(frame.before + min(length, limit) * between - frame.between + frame.after + answer - 1, [])

    found = []
    for group in np.split(lengths_C, starts[1:]) if len(starts) else []:
        shared = group[group <= limit]
        if len(shared):
            trunk = frame.before + int(shared[-1]) * between - frame.between
            found.append(row(trunk, [frame.before + int(n) * between - frame.between - 1 for n in shared]))
        found += [alone(int(n)) for n in group[group > limit]]
    return found if len(starts) else [alone(int(n)) for n in lengths_C]


def padded_cost(rows: list[dict], size: int) -> dict[str, float]:
    """What right-padded batches of `size` random rows compute: tokens, and half of all pairs (causal)."""
    widths = np.array([len(row["input_ids"]) for row in rows])
    order = np.random.default_rng(0).permutation(len(rows))
    computed = pairs = 0.0
    for batch in np.split(order, range(size, len(order), size)):
        width = -(-widths[batch].max() // 8) * 8  # to multiples of 8, as peers do
        computed += len(batch) * float(width)
        pairs += len(batch) * float(width) ** 2 / 2
    return {"tokens": float(widths.sum()), "computed": computed, "pairs": pairs}


def packed_cost(rows: list[dict], size: int) -> dict[str, float]:
    """What our collator lays out for batches of `size` random rows: tokens, cells, and all pairs of cells."""
    import torch

    from sft.collators import BranchCollator

    collator = BranchCollator(0, torch.float32)
    order = np.random.default_rng(0).permutation(len(rows))
    tokens = computed = pairs = 0.0
    for batch in np.split(order, range(size, len(order), size)):
        made = collator([rows[row] for row in batch])
        seen = (made["attention_mask"] == 0).squeeze(1)
        tokens += float(((seen.sum(1) > 1) | (seen.sum(2) > 1)).sum())
        height, width = made["input_ids"].shape
        computed += height * width
        pairs += float(height) * width**2
    return {"tokens": tokens, "computed": computed, "pairs": pairs}


def count_tokens(index: SidIndex, interactions: Interactions, limit: int) -> dict[str, Any]:
    """Tokens and FLOPs of an epoch in every layout, for Qwen2.5-0.5B's shape."""
    cases = index.reachable(interactions.histories("train"))
    starts = np.flatnonzero(np.diff(cases.sequence_C, prepend=-1))
    lengths_C, depth = cases.position_C, index.semantic_ids.depth
    none = starts[:0]
    theirs = rows_of(lengths_C, none, limit, MINIONEREC, depth)
    layouts = {
        "minionerec": padded_cost(theirs, 16),
        "windows, padded": padded_cost(rows_of(lengths_C, none, limit, CHAT, depth), 16),
        "windows, packed": packed_cost(rows_of(lengths_C, none, limit, CHAT, depth), 64),
        "all, packed": packed_cost(rows_of(lengths_C, starts, limit, CHAT, depth), 64),
        "all, packed, minionerec's frame": packed_cost(
            rows_of(lengths_C, starts, limit, MINIONEREC, depth), 64
        ),
    }
    for name, row in layouts.items():
        row["labels"] = float(len(cases) * (depth + (MINIONEREC if "minionerec" in name else CHAT).end))
        row["scored"] = row["computed"] if name == "minionerec" else row["labels"]
        row["flops"] = QWEN.flops(row["computed"], row["pairs"], row["scored"])
        row["labels_per_token"] = row["labels"] / row["tokens"]
    peer, ours = layouts["minionerec"], layouts["all, packed"]
    return {
        "targets": len(cases),
        "max_history": limit,
        "layouts": layouts,
        "tokens_saved_same_frame": layouts["windows, padded"]["tokens"] / ours["tokens"],
        "tokens_saved_their_frame": peer["tokens"] / layouts["all, packed, minionerec's frame"]["tokens"],
        "flops_saved": peer["flops"] / ours["flops"],
        "flops_saved_their_frame": peer["flops"] / layouts["all, packed, minionerec's frame"]["flops"],
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


def one_step(train: str, layers: int, steps: int) -> dict[str, Any]:
    """LoRA on all linear layers, SID embeddings by `train`, AdamW steps of 2 x 256 tokens."""
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
    parser.add_argument("--child", choices=("rows", "full"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.child:
        shape = (2, 1) if arguments.quick else (QWEN.layers, 3)
        print(json.dumps(one_step(arguments.child, *shape)))
        return
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
