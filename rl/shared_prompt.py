"""A group's completions as branches behind one prompt: P + G * L tokens a group where rows of their own cost
G * (P + L).

Log-probs and gradients are those of the plain layout. Each branch starts with a copy of the prompt's last
token, so labels line up with rows and TRL's fused head is used as it is.

Legend: N rows, B groups of G rows (N = B * G), P prompt columns, L completion columns, T = P - 1 + G * L.
"""

from typing import Any

import torch


def group_tree(
    input_ids_NS: torch.Tensor, mask_NS: torch.Tensor, length: int, group_size: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Model inputs for whole groups of rows `prompt (left-padded) + completion (right-padded)`.

    Args:
        input_ids_NS, mask_NS: int64; rows of a group follow each other and begin with the same prompt.
        length: completion columns L.
        dtype: of the additive mask; that of the model's weights.

    Returns:
        input_ids, position_ids, shift_labels [B, T] and attention_mask [B, 1, T, T]; the last G * L columns
        are the completions.
    """
    groups, width = len(input_ids_NS) // group_size, input_ids_NS.shape[1] - length
    prompt_BP = input_ids_NS[::group_size, :width]
    real_BP = mask_NS[::group_size, :width].bool()
    completion_BGL = input_ids_NS[:, width:].view(groups, group_size, length)
    scored_BGL = mask_NS[:, width:].view(groups, group_size, length).bool()
    device = input_ids_NS.device

    start_BG1 = prompt_BP[:, -1:, None].expand(-1, group_size, 1)
    branch_BGL = torch.cat([start_BG1, completion_BGL[:, :, :-1]], dim=2)
    ids_BT = torch.cat([prompt_BP[:, :-1], branch_BGL.flatten(1)], dim=1)
    position_BP = (real_BP.long().cumsum(dim=1) - 1).clamp(min=0)
    step_L = torch.arange(length, device=device)
    branch_position_BK = (position_BP[:, -1:] + step_L).repeat(1, group_size)
    labels_BK = completion_BGL.masked_fill(~scored_BGL, -100).flatten(1)

    trunk = width - 1
    column_T = torch.arange(ids_BT.shape[1], device=device)
    # Trunk columns belong to every branch; a branch column only to its own.
    owner_T = torch.where(column_T < trunk, -1, (column_T - trunk) // length)
    causal_TT = column_T[None, :] <= column_T[:, None]
    related_TT = (owner_T[None, :] == -1) | (owner_T[None, :] == owner_T[:, None])
    seen_BT = torch.cat([real_BP[:, :-1], torch.ones_like(labels_BK, dtype=torch.bool)], dim=1)
    itself_TT = torch.eye(len(column_T), dtype=torch.bool, device=device)
    visible_BTT = (causal_TT & related_TT) & seen_BT[:, None, :] | itself_TT
    mask = torch.zeros(visible_BTT.shape, dtype=dtype, device=device)
    return {
        "input_ids": ids_BT,
        "position_ids": torch.cat([position_BP[:, :-1], branch_position_BK], dim=1),
        "shift_labels": torch.cat([torch.full_like(prompt_BP[:, :-1], -100), labels_BK], dim=1),
        "attention_mask": mask.masked_fill_(~visible_BTT, torch.finfo(dtype).min)[:, None],
    }


def group_logps(
    model: Any,
    input_ids_NS: torch.Tensor,
    mask_NS: torch.Tensor,
    length: int,
    group_size: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probs [N, L] of the completions, and their entropies where the model's fused head computes them."""
    output = model(**group_tree(input_ids_NS, mask_NS, length, group_size, dtype), fused_lm_head=True)
    shape = (len(input_ids_NS), length)

    def completions(values_BT: torch.Tensor) -> torch.Tensor:
        return values_BT[:, -group_size * length :].reshape(shape)

    return completions(output.log_probs), None if output.entropy is None else completions(output.entropy)
