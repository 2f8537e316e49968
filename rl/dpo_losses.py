"""Losses of preferences: TRL's of pairs, and S-DPO's of sets.

S-DPO (Chen et al., 2024, "On Softmax Direct Preference Optimization for Recommendation", eq. 10) sets the
preferred answer against all rejected ones of its prompt at once. With r = log(policy / reference) of an
answer,

    loss = -log sigmoid(-log sum_j exp(beta * (r_rejected_j - r_chosen)))

which for one rejected answer is DPO's `sigmoid`, and whose gradient goes to the rejected answers that the
policy still prefers most.

Legend: P pairs, B sets, N rejected answers of the largest set.
"""

from typing import Any, Literal

import torch
from torch.nn.functional import logsigmoid

from sid_builder.errors import InputError

S_DPO = "s_dpo"
# What TRL 1.16 knows, and finds out about at the first step only.
OF_PAIRS = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)


def softmax_dpo(margin_P: torch.Tensor, set_of_pair_P: torch.Tensor) -> torch.Tensor:
    """S-DPO's loss of every set, [B].

    Args:
        margin_P: beta * (r_chosen - r_rejected).
        set_of_pair_P: int64, ascending from 0 without gaps.
    """
    count_B = torch.bincount(set_of_pair_P)
    first_B = count_B.cumsum(0) - count_B
    place_P = torch.arange(len(margin_P), device=margin_P.device) - first_B[set_of_pair_P]
    margin_BN = margin_P.new_full((len(count_B), int(count_B.max())), torch.inf)
    margin_BN = margin_BN.index_put((set_of_pair_P, place_P), margin_P)
    return -logsigmoid(-torch.logsumexp(-margin_BN, dim=1))


def check_losses(args: Any, training: Literal["lora", "full"]) -> None:
    """Refuse what TRL would refuse late or take without a word, and what S-DPO is not defined for.

    Args:
        args: DPOConfig.

    Raises:
        InputError: naming the flag and what to give instead.
    """
    for name in args.loss_type:
        if name not in (S_DPO, *OF_PAIRS):
            raise InputError(f"loss_type: {name!r} is not known; use some of {[S_DPO, *OF_PAIRS]}")
    if S_DPO in args.loss_type:
        for name, plain in (
            ("f_divergence_type", "reverse_kl"),
            ("ld_alpha", None),
            ("use_weighting", False),
        ):
            if getattr(args, name) != plain:
                raise InputError(
                    f"{name}: {getattr(args, name)} is not defined for loss_type: {S_DPO}; leave it out"
                )
    if "exo_pair" in args.loss_type and not args.label_smoothing > 0:
        raise InputError("label_smoothing: must be above 0 with loss_type: exo_pair; set it to 1e-3")
    if args.sync_ref_model and training == "lora":
        raise InputError(
            "sync_ref_model: true needs a reference of its own, and with training: lora it is the model "
            "without its adapter; set training: full, or false"
        )
    if args.sync_ref_model and args.precompute_ref_log_probs:
        raise InputError(
            "precompute_ref_log_probs: true fixes the reference that sync_ref_model: true moves; choose one"
        )
