"""Trunks with branches: the one layout behind the beam, SFT, candidate scoring, GRPO and DPO.

A trunk (a prompt) is read once; branches grow from any of its tokens. Every token sees the trunk up to where
its branch grows, its own ancestors and itself; position ids count along that path. So one forward pass gives
exactly the log-probs of every path as if each had been a sequence of its own.

Legend: B batch rows, T columns, Q query rows (the tokens of this forward pass, the last Q columns).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sid_builder.errors import InputError

IGNORE = -100


def check_attention(config: Any) -> None:
    """Refuse models whose attention cannot take a 4-D mask faithfully.

    Raises:
        InputError: for sliding-window layers (their own mask would be lost) and for flash attention.
    """
    text_config = config.get_text_config()
    kinds = set(getattr(text_config, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        raise InputError(
            f"model: has {sorted(kinds - {'full_attention'})} layers; use a model with full attention only"
        )
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in (None, "sdpa", "eager"):
        raise InputError(f"attn_implementation: {implementation!r} takes no 4-D mask; use 'sdpa' or 'eager'")


@dataclass(frozen=True)
class Branch:
    """`token_ids` growing behind trunk token `attach`; `labels[i]` is what should follow `token_ids[i]`.

    To train a branch from its first token on, let `token_ids` begin with a copy of trunk token `attach` and
    attach it one earlier: the copy sees the same tokens at the same position, and its label is the branch's
    first own token.
    """

    attach: int
    token_ids: Sequence[int]
    labels: Sequence[int] | None = None


class _Row:
    """Trees laid side by side in a row; per token its tree, branch (0: trunk), sight of the trunk."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.positions: list[int] = []
        self.reach: list[int] = []
        self.tree_of: list[int] = []
        self.branch_of: list[int] = []
        self.num_trees = 0

    def add(self, trunk: Sequence[int], branches: Sequence[Branch], labels: Sequence[int] | None) -> None:
        offset, size = len(self.ids), len(trunk)
        self.ids += trunk
        self.labels += labels if labels is not None else [IGNORE] * size
        self.positions += range(size)
        self.reach += range(offset + 1, offset + size + 1)
        self.branch_of += [0] * size
        for number, branch in enumerate(branches, start=1):
            length = len(branch.token_ids)
            self.ids += branch.token_ids
            self.labels += branch.labels if branch.labels is not None else [IGNORE] * length
            self.positions += range(branch.attach + 1, branch.attach + 1 + length)
            self.reach += [offset + branch.attach + 1] * length
            self.branch_of += [number] * length
        self.tree_of += [self.num_trees] * (len(self.ids) - offset)
        self.num_trees += 1


def _first_fit(sizes: Sequence[int]) -> list[int]:
    """Row of each tree: largest first, each into the first row with room; rows are as wide as it."""
    rows, room = [0] * len(sizes), [max(sizes)] * len(sizes)
    for tree in sorted(range(len(sizes)), key=lambda tree: -sizes[tree]):
        row = next(row for row, free in enumerate(room) if free >= sizes[tree])
        rows[tree], room[row] = row, room[row] - sizes[tree]
    return rows


@dataclass(frozen=True)
class BranchBatch:
    """Token ids with the tree they form.

    Attributes:
        input_ids_BQ, position_ids_BQ: int64; the tokens of this forward pass.
        visible_BQT: bool; which of the T columns (cached ones first) each query row sees. Rows of padding see
            themselves.
        shift_labels_BQ: int64 labels already aligned with the rows (`IGNORE` elsewhere), or None.
        padding_BT: bool; True where a column is padding.
    """

    input_ids_BQ: torch.Tensor
    position_ids_BQ: torch.Tensor
    visible_BQT: torch.Tensor
    padding_BT: torch.Tensor
    shift_labels_BQ: torch.Tensor | None = None

    @staticmethod
    def from_trunks(prompts: Sequence[Sequence[int]], pad_id: int) -> "BranchBatch":
        """Prompts alone, left-padded: the start of a beam. Every prompt needs at least one token."""
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise InputError("prompts: an empty prompt cannot be decoded; give at least one token each")
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
        starts = torch.tensor([width - len(prompt) for prompt in prompts])
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long)
        columns = torch.arange(width)
        padding = columns < starts[:, None]
        causal = columns[None, :] <= columns[:, None]
        visible = causal & ~padding[:, None, :] | torch.eye(width, dtype=torch.bool)
        positions = (columns - starts[:, None]).clamp(min=0)
        return BranchBatch(ids, positions, visible, padding)

    @staticmethod
    def from_branches(
        trunks: Sequence[Sequence[int]],
        branches: Sequence[Sequence[Branch]],
        pad_id: int,
        trunk_labels: Sequence[Sequence[int] | None] | None = None,
        pack: bool = False,
    ) -> "BranchBatch":
        """Whole trees, right-padded: each trunk, then its branches one after the other.

        Args:
            trunk_labels: labels of the trunk's own tokens, already shifted (an ordinary example is a trunk
                alone).
            pack: lay several small trees into one row, as wide as the largest tree; no tree sees another.
                Without it, row b is tree b.
        """
        trunk_labels = trunk_labels or [None] * len(trunks)
        sizes = [
            len(trunk) + sum(len(branch.token_ids) for branch in own)
            for trunk, own in zip(trunks, branches, strict=True)
        ]
        rows = [_Row() for _ in sizes]
        for tree, row in enumerate(_first_fit(sizes) if pack else range(len(sizes))):
            rows[row].add(trunks[tree], branches[tree], trunk_labels[tree])
        rows = [row for row in rows if row.ids]
        width = max(len(row.ids) for row in rows)

        def padded(name: str, fill: int) -> torch.Tensor:
            lists = [getattr(row, name) for row in rows]
            return torch.tensor(
                [values + [fill] * (width - len(values)) for values in lists], dtype=torch.long
            )

        reach, tree_of, branch_of = padded("reach", 0), padded("tree_of", -1), padded("branch_of", -1)
        columns = torch.arange(width)
        same_tree = tree_of[:, None, :] == tree_of[:, :, None]
        on_trunk = (branch_of == 0)[:, None, :] & (columns < reach[:, :, None])
        same_branch = (branch_of[:, None, :] == branch_of[:, :, None]) & (branch_of > 0)[:, :, None]
        visible = same_tree & (on_trunk | same_branch & (columns[None, :] <= columns[:, None]))
        visible |= torch.eye(width, dtype=torch.bool)
        return BranchBatch(
            padded("ids", pad_id), padded("positions", 0), visible, tree_of < 0, padded("labels", IGNORE)
        )

    def grow(self, parent_BK: torch.Tensor, token_BK: torch.Tensor) -> "BranchBatch":
        """One token behind K query rows each: the next forward pass over a cache of all columns so far.

        Args:
            parent_BK: query row of this batch that token k grows from.
        """
        num_columns = self.visible_BQT.shape[2]
        num_new = parent_BK.shape[1]
        seen = torch.gather(self.visible_BQT, 1, parent_BK[:, :, None].expand(-1, -1, num_columns))
        itself = torch.eye(num_new, dtype=torch.bool, device=seen.device).expand(len(seen), -1, -1)
        return BranchBatch(
            input_ids_BQ=token_BK,
            position_ids_BQ=torch.gather(self.position_ids_BQ, 1, parent_BK) + 1,
            visible_BQT=torch.cat([seen, itself], dim=2),
            padding_BT=torch.cat([self.padding_BT, torch.zeros_like(token_BK, dtype=torch.bool)], dim=1),
        )

    def last_rows(self) -> "BranchBatch":
        """The batch seen from its last query row only: where a beam starts growing."""
        return BranchBatch(
            self.input_ids_BQ[:, -1:], self.position_ids_BQ[:, -1:], self.visible_BQT[:, -1:], self.padding_BT
        )

    def attention_mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask [B, 1, Q, T]: 0 where a row sees a column, the dtype's minimum elsewhere.

        Bool masks are silently wrong under eager attention, so it is always additive.
        """
        mask = torch.zeros(self.visible_BQT.shape, dtype=dtype, device=self.visible_BQT.device)
        return mask.masked_fill_(~self.visible_BQT, torch.finfo(dtype).min)[:, None]

    def to(self, device: torch.device | str) -> "BranchBatch":
        labels = None if self.shift_labels_BQ is None else self.shift_labels_BQ.to(device)
        return BranchBatch(
            self.input_ids_BQ.to(device),
            self.position_ids_BQ.to(device),
            self.visible_BQT.to(device),
            self.padding_BT.to(device),
            labels,
        )
