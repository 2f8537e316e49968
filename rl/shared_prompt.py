"""A group's completions as branches behind one prompt: P + G * L tokens a group where rows of their own cost
G * (P + L).

Log-probs and gradients are those of the plain layout. Each branch starts with a copy of the prompt's last
token, so labels line up with rows and TRL's fused head is used as it is, on the branches alone.

The mask takes T^2 numbers a group: 0.25 MiB in fp32 at 200 prompt tokens and 16 completions of 3, 4.2 MiB at
1,000; a pass holds those of the rows it is given.

Legend: N rows, B groups of G rows (N = B * G), P prompt columns, L completion columns, K = G * L branch
columns, T = P - 1 + K, H hidden size.
"""

from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import pad

from rl.trie_log_probs import TrieLogProbs


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


def beside_truths(
    input_ids_NS: torch.Tensor, mask_NS: torch.Tensor, length: int, group_size: int, truth_NL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The rows with one more completion behind each group's, and the completion columns of the result.

    Args:
        truth_NL: int64, the same for all rows of a group; -1 behind its last token.
    """
    longest, prompt = max(length, truth_NL.shape[1]), input_ids_NS.shape[1] - length
    input_ids_NS, mask_NS = (pad(rows_NS, (0, longest - length)) for rows_NS in (input_ids_NS, mask_NS))
    truth_BL = pad(truth_NL[::group_size], (0, longest - truth_NL.shape[1]), value=-1)
    one_more = (truth_BL.clamp(min=0), (truth_BL >= 0).to(mask_NS.dtype))
    extended = []
    for rows_NS, truth in zip((input_ids_NS, mask_NS), one_more, strict=True):
        row_BS = torch.cat([rows_NS[::group_size, :prompt], truth], dim=1)
        grouped_BGS = rows_NS.view(-1, group_size, rows_NS.shape[1])
        extended.append(torch.cat([grouped_BGS, row_BS[:, None]], dim=1).flatten(0, 1))
    return extended[0], extended[1], longest


def group_logps(
    model: Any,
    input_ids_NS: torch.Tensor,
    mask_NS: torch.Tensor,
    length: int,
    group_size: int,
    dtype: torch.dtype,
    trie: TrieLogProbs | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probs [N, L] of the completions, and their entropies where the model's head computes them.

    Args:
        model: with TRL's fused head, plain or wrapped by PEFT, DDP or FSDP.
        group_size: G; 1 is the plain layout.
        trie: renormalises over the trie's children; without it, log-probs are over the whole vocabulary.
    """
    inputs = group_tree(input_ids_NS, mask_NS, length, group_size, dtype)
    columns, shape = group_size * length, (len(input_ids_NS), length)
    labels_BK = inputs.pop("shift_labels")[:, -columns:]
    inner = extract_model_from_parallel(model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    of_trie: list[tuple[torch.Tensor, torch.Tensor]] = []

    def completions_only(backbone: Any, arguments: Any, output: Any) -> Any:
        # TRL 1.16 scores every position where there is no Triton: of a prompt of 200 tokens, most of a step.
        states_BKH = output.last_hidden_state[:, -columns:]
        if trie is not None:
            # Within the model's pass, where FSDP2 has norm and head gathered. accelerate 1.15 finds no norm
            # in a PEFT model, whose head is then by itself, and gathered by nobody.
            head = inner.get_output_embeddings()
            if isinstance(head, FSDPModule):
                head.unshard()
            of_trie.append(trie(head, states_BKH.reshape(*shape, -1), labels_BK.reshape(shape)))
            states_BKH = states_BKH[:, :0]  # nothing is left to TRL's head
        output.last_hidden_state = states_BKH
        return output

    hook = inner.base_model.register_forward_hook(completions_only)
    try:
        output = model(
            **inputs, shift_labels=labels_BK if trie is None else labels_BK[:, :0], fused_lm_head=True
        )
    finally:
        hook.remove()
    if trie is not None:
        return of_trie[0]
    return output.log_probs.reshape(shape), None if output.entropy is None else output.entropy.reshape(shape)
