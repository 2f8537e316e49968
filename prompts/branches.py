"""Trunks with branches: the one layout behind the beam, SFT, candidate scoring, GRPO and DPO.

A trunk (a prompt) is read once; branches grow from any of its tokens. Every token sees the trunk up to where
its branch grows, its own ancestors and itself; position ids count along that path. So one forward pass gives
exactly the log-probs of every path as if each had been a sequence of its own.

Legend: B batch rows, T columns, Q query rows (the tokens of this forward pass, the last Q columns), N trees,
S segments (trunks and branches).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from sid_builder.errors import InputError

IGNORE = -100
_LEAST_SHARED = 8  # a shorter prefix saves less than it complicates


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


def _first_fit(sizes: Sequence[int]) -> list[int]:
    """Row of each tree: largest first, each into the first row with room; rows are as wide as it."""
    rows, room = [0] * len(sizes), [max(sizes)] * len(sizes)
    for tree in sorted(range(len(sizes)), key=lambda tree: -sizes[tree]):
        row = next(row for row, free in enumerate(room) if free >= sizes[tree])
        rows[tree], room[row] = row, room[row] - sizes[tree]
    return rows


def _shared_prefix(
    token_ids: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    branch_attach: Sequence[Sequence[int]],
    branch_length: Sequence[Sequence[int]],
) -> int:
    """How many tokens all trunks begin with that nothing is learnt from and no branch grows within.

    0 when they are fewer than `_LEAST_SHARED`. Every trunk keeps a token of its own.
    """
    shared = min(
        min([len(ids) - sum(lengths) - 1, *(at + 1 for at in attach)])
        for ids, attach, lengths in zip(token_ids, branch_attach, branch_length, strict=True)
    )
    for ids, own_labels in zip(token_ids, labels, strict=True):
        same = (ids[i] == token_ids[0][i] and own_labels[i] == IGNORE for i in range(shared))
        shared = next((i for i, is_same in enumerate(same) if not is_same), shared)
    return shared if shared >= _LEAST_SHARED else 0


def _sees(
    tree_start_BQ: np.ndarray, before_BQ: np.ndarray, segment_start_BQ: np.ndarray, shared_BQ: np.ndarray
) -> np.ndarray:
    """Which columns of its row a token sees, bool [B, Q, Q].

    That is three intervals: the first `shared` columns, the first `before` tokens of its tree, and its own
    segment (trunk or branch) up to itself.
    """
    num_rows, width = tree_start_BQ.shape
    signed, unsigned = (np.int16, np.uint16) if width < 2**15 else (np.int32, np.uint32)
    columns = np.arange(width, dtype=signed)
    visible_BQQ = np.empty((num_rows, width, width), dtype=bool)
    for row, visible in enumerate(visible_BQQ):  # a row's temporaries stay in the processor's cache
        tree_start, before, start, shared = (
            array[row].astype(signed)[:, None]
            for array in (tree_start_BQ, before_BQ, segment_start_BQ, shared_BQ)
        )
        # As unsigned numbers those left of an interval are large: one comparison tells both of its ends.
        np.less((columns - tree_start).view(unsigned), before.view(unsigned), out=visible)
        visible |= (columns - start).view(unsigned) <= (columns[:, None] - start).view(unsigned)
        if shared.any():
            visible |= columns < shared
    return visible_BQQ


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
        """Whole trees of trunks and branches, laid out by `from_rows`.

        Args:
            trunk_labels: labels of the trunk's own tokens, already shifted (an ordinary example is a trunk
                alone).
        """
        ids, labels = [], []
        for trunk, own, given in zip(trunks, branches, trunk_labels or [None] * len(trunks), strict=True):
            parts = [(trunk, given), *((branch.token_ids, branch.labels) for branch in own)]
            ids.append([token for tokens, _ in parts for token in tokens])
            labels.append(
                [label for tokens, own_labels in parts for label in own_labels or [IGNORE] * len(tokens)]
            )
        attach = [[branch.attach for branch in own] for own in branches]
        lengths = [[len(branch.token_ids) for branch in own] for own in branches]
        return BranchBatch.from_rows(ids, labels, attach, lengths, pad_id, pack)

    @staticmethod
    def from_rows(
        token_ids: Sequence[Sequence[int]],
        labels: Sequence[Sequence[int]],
        branch_attach: Sequence[Sequence[int]],
        branch_length: Sequence[Sequence[int]],
        pad_id: int,
        pack: bool = False,
    ) -> "BranchBatch":
        """Whole trees, right-padded: each trunk, then its branches one after the other.

        Args:
            token_ids, labels: of every tree, its trunk's followed by those of its branches.
            branch_attach, branch_length: trunk token that each branch grows behind, and its tokens.
            pack: lay several small trees into one row, as wide as the largest tree; no tree sees another.
                What all trunks begin with (a system prompt, the frame of a task) is laid once per row, and
                every tree of the row goes on from it. Without it, row b is tree b.
        """
        shared = _shared_prefix(token_ids, labels, branch_attach, branch_length) if pack else 0
        sizes = [len(ids) - shared for ids in token_ids]
        row_N = np.array(_first_fit(sizes) if pack else range(len(sizes)))
        offset_N = np.full(len(sizes), shared)
        if shared:  # the prefix is a tree of its own, in front of each row
            copies = int(row_N.max()) + 1
            token_ids = [token_ids[0][:shared]] * copies + [ids[shared:] for ids in token_ids]
            labels = [labels[0][:shared]] * copies + [own[shared:] for own in labels]
            branch_attach = [()] * copies + [[at - shared for at in own] for own in branch_attach]
            branch_length = [()] * copies + list(branch_length)
            sizes = [shared] * copies + sizes
            row_N = np.concatenate([np.arange(copies), row_N])
            offset_N = np.concatenate([np.zeros(copies, dtype=offset_N.dtype), offset_N])
        start_N, filled = np.zeros(len(sizes), dtype=np.int64), [0] * len(sizes)
        for tree, size in enumerate(sizes):
            start_N[tree] = filled[row_N[tree]]
            filled[row_N[tree]] += size
        num_rows, width = int(row_N.max()) + 1, max(filled)

        # Segments: of each tree its trunk, then its branches. A segment's first token has before it, on its
        # path, what it sees of the trunk (nothing for the trunk itself) and the shared prefix.
        tree_S = np.repeat(np.arange(len(sizes)), [1 + len(lengths) for lengths in branch_length])
        before_S = np.array([n for attach in branch_attach for n in (0, *(at + 1 for at in attach))])
        length_S = np.array(
            [n for size, own in zip(sizes, branch_length, strict=True) for n in (size - sum(own), *own)]
        )
        first_S = np.cumsum(length_S) - length_S  # token of the concatenated trees
        tree_first_N = np.cumsum(sizes) - sizes
        column_S = first_S - tree_first_N[tree_S] + start_N[tree_S]

        segment = np.repeat(np.arange(len(length_S)), length_S)
        within = np.arange(len(segment)) - first_S[segment]
        cell = row_N[tree_S][segment] * width + column_S[segment] + within

        def laid_out(values: Any, fill: Any) -> np.ndarray:
            cells = np.broadcast_to(np.asarray(fill, dtype=np.int64), (num_rows, width)).flatten()
            cells[cell] = values
            return cells.reshape(num_rows, width)

        columns = np.arange(width)
        visible = _sees(
            laid_out(start_N[tree_S][segment], 0),
            laid_out(before_S[segment], 0),
            laid_out(column_S[segment], columns),
            laid_out(offset_N[tree_S][segment], 0),
        )
        return BranchBatch(
            *(
                torch.from_numpy(array)
                for array in (
                    laid_out(list(chain.from_iterable(token_ids)), pad_id),
                    laid_out(offset_N[tree_S][segment] + before_S[segment] + within, 0),
                    visible,
                    columns >= np.array(filled[:num_rows])[:, None],
                    laid_out(list(chain.from_iterable(labels)), IGNORE),
                )
            )
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
        visible_BQT = self.visible_BQT
        seen = torch.zeros((), dtype=dtype, device=visible_BQT.device)
        return torch.where(visible_BQT, seen, torch.full_like(seen, torch.finfo(dtype).min))[:, None]

    def to(self, device: torch.device | str) -> "BranchBatch":
        labels = None if self.shift_labels_BQ is None else self.shift_labels_BQ.to(device)
        return BranchBatch(
            self.input_ids_BQ.to(device),
            self.position_ids_BQ.to(device),
            self.visible_BQT.to(device),
            self.padding_BT.to(device),
            labels,
        )
