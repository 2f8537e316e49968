"""Tokens and FLOPs of an epoch of next-SID training in every layout: what `sft_cost.py` counts.

One epoch over all train positions, and what it costs a model of Qwen2.5-0.5B's shape. Windows: one row per
target, right-padded in batches of 16 or packed; all: a user's targets share one row as branches, 64 rows a
batch, packed by the collator that training uses. Our loss scores labelled positions alone; MiniOneRec's
scores every position, padding included. Its rows are counted under a frame as long as its own (77 tokens of
Qwen's vocabulary, two between items, a newline and EOS behind the answer), ours under the `chat` pack's in
ChatML with Qwen's default system prompt.

FLOPs: 6 per weight of the layers and token (2 forward, 4 backward), padding included; 6 H V per position that
the head scores; 12 H per layer and pair of positions that attention computes: n^2 / 2 of a causal row of n,
all n^2 of a row under a 4-D mask, which no kernel skips.

Legend: C cases.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex


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
