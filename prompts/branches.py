"""Trunks with branches: the one layout behind the beam, SFT over all positions, candidate scoring, GRPO and DPO.

A trunk (a prompt) is read once; branches grow from any of its tokens. Every token sees the trunk up to where its branch
grows, its own ancestors and itself; position ids count along that path. So one forward pass gives exactly the log-probs
of every path as if each had been a sequence of its own.

Legend: B batch rows, T columns, Q query rows (the tokens of this forward pass, the last Q columns).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sid_builder.errors import InputError

IGNORE = -100


def check_attention(config: object) -> None:
    """Refuse models whose attention cannot take a 4-D mask faithfully.

    Raises:
        InputError: for sliding-window layers (their own mask would be lost) and for flash attention.
    """
    text_config = config.get_text_config()
    kinds = set(getattr(text_config, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        raise InputError(f"model: has {sorted(kinds - {'full_attention'})} layers; use a model with full attention only")
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in (None, "sdpa", "eager"):
        raise InputError(f"attn_implementation: {implementation!r} takes no 4-D mask; use 'sdpa' or 'eager'")


@dataclass(frozen=True)
class Branch:
    """`token_ids` growing behind trunk token `attach`; `labels[i]` is what the model should say after `token_ids[i]`.

    To train a branch from its first token on, let `token_ids` begin with a copy of trunk token `attach` and attach it one
    earlier: the copy sees the same tokens at the same position, and its label is the branch's first own token.
    """

    attach: int
    token_ids: Sequence[int]
    labels: Sequence[int] | None = None


@dataclass(frozen=True)
class BranchBatch:
    """Token ids with the tree they form.

    Attributes:
        input_ids_BQ, position_ids_BQ: int64; the tokens of this forward pass.
        visible_BQT: bool; which of the T columns (cached ones first) each query row sees. Rows of padding see themselves.
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
    ) -> "BranchBatch":
        """Whole trees, right-padded: trunk first, then its branches one after the other.

        Args:
            trunk_labels: labels of the trunk's own tokens, already shifted (an ordinary example is a trunk alone).
        """
        trunk_labels = trunk_labels or [None] * len(trunks)
        rows = []
        for trunk, own, own_labels in zip(trunks, branches, trunk_labels, strict=True):
            ids, labels = list(trunk), list(own_labels or [IGNORE] * len(trunk))
            reach, branch_of, positions = list(range(1, len(trunk) + 1)), [0] * len(trunk), list(range(len(trunk)))
            for number, branch in enumerate(own, start=1):
                size = len(branch.token_ids)
                ids += branch.token_ids
                labels += branch.labels if branch.labels is not None else [IGNORE] * size
                reach += [branch.attach + 1] * size
                branch_of += [number] * size
                positions += range(branch.attach + 1, branch.attach + 1 + size)
            rows.append((ids, labels, reach, branch_of, positions))
        width = max(len(row[0]) for row in rows)

        def padded(column: int, fill: int) -> torch.Tensor:
            return torch.tensor([row[column] + [fill] * (width - len(row[column])) for row in rows], dtype=torch.long)

        reach, branch_of = padded(2, 0), padded(3, -1)
        padding = branch_of < 0
        columns = torch.arange(width)
        on_trunk = (branch_of == 0)[:, None, :] & (columns < reach[:, :, None])
        same = (branch_of[:, None, :] == branch_of[:, :, None]) & (branch_of > 0)[:, :, None]
        visible = on_trunk | same & (columns[None, :] <= columns[:, None])
        visible |= torch.eye(width, dtype=torch.bool)
        return BranchBatch(padded(0, pad_id), padded(4, 0), visible, padding, padded(1, IGNORE))

    def grow(self, parent_BK: torch.Tensor, token_BK: torch.Tensor) -> "BranchBatch":
        """One token behind K query rows each: the next forward pass over a cache that holds all columns so far.

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
