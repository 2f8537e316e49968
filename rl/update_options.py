"""`update:` in YAML, and what TRL's flags may say beside it."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from sid_builder.errors import InputError

# What TRL 1.16 knows, and finds out about at the first step only.
_CHOICES = {
    "loss_type": ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}


@dataclass(frozen=True)
class UpdateOptions:
    """`update:` in YAML: what a step does with a group's rewards, beside TRL's loss_type, beta, epsilon."""

    advantages: Literal["group", "pass_at_k"] = field(
        default="group",
        metadata={
            "help": "group: TRL's (scale_rewards); pass_at_k: the advantage of sets of `k` completions of "
            "which one is a hit, added to TRL's (rl.advantages)"
        },
    )
    k: int = field(default=4, metadata={"help": "of pass_at_k: completions in a set"})
    log_probs: Literal["vocabulary", "trie"] = field(
        default="vocabulary",
        metadata={
            "help": "of policy, reference and old policy: softmax over the whole vocabulary, or over the "
            "trie's children of each prefix (all items on the shelf, the user's history too)"
        },
    )
    truth_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the cross-entropy of the truth's SID, a mean over its tokens, added to the "
            "loss; under `log_probs`, at the rollout's temperature, and of the groups that "
            "rollout.idle_groups leaves in"
        },
    )
    shared_prompt: bool = field(
        default=True,
        metadata={
            "help": "read a group's prompt once in the training step; false: with every completion, as TRL "
            "does; same numbers"
        },
    )

    def check(self) -> None:
        """InputError for values out of range, and for those that others leave without effect."""
        if self.k < 1:
            raise InputError(f"update.k: {self.k}; give at least 1")
        if self.k != self.__dataclass_fields__["k"].default and self.advantages != "pass_at_k":
            raise InputError(
                f"update.k: {self.k} has no effect with advantages: {self.advantages}; remove it"
            )
        if not 0 <= self.truth_weight < math.inf:
            raise InputError(f"update.truth_weight: {self.truth_weight}; give 0 (off) or more")


def check_update(options: UpdateOptions, args: Any, training: Literal["lora", "full"]) -> None:
    """Refuse what TRL would refuse late or take without a word, and what the options cannot do beside it.

    Args:
        args: GRPOConfig.

    Raises:
        InputError: naming the flag and what to give instead.
    """
    for name, known in _CHOICES.items():
        if getattr(args, name) not in known:
            raise InputError(f"{name}: {getattr(args, name)!r} is not known; use one of {list(known)}")
    loss, level = args.loss_type, args.importance_sampling_level
    if (loss, level) in (("luspo", "token"), ("vespo", "sequence")):
        other = "sequence" if level == "token" else "token"
        raise InputError(
            f"importance_sampling_level: {level!r} is not what loss_type: {loss} is defined by; set {other!r}"
        )
    highest = args.epsilon if args.epsilon_high is None else args.epsilon_high
    if loss == "cispo" and highest < 1:
        raise InputError(
            f"epsilon_high: {highest} would cut every ratio of loss_type: cispo, which caps them at this "
            "value and not at 1 more; set about 5"
        )
    size = args.num_generations
    if options.advantages == "pass_at_k" and options.k >= size:
        raise InputError(
            f"update.k: {options.k} of {size} completions leaves one set to compare with itself; choose "
            f"fewer than num_generations: {size}"
        )
    if args.sync_ref_model and args.beta == 0:
        raise InputError("sync_ref_model: true has no reference to move with beta: 0; set beta, or false")
    if args.sync_ref_model and training == "lora":
        raise InputError(
            "sync_ref_model: true needs a reference of its own, and with training: lora it is the model "
            "without its adapter; set training: full, or false"
        )
