"""TRL's GRPOTrainer with groups kept whole. Three overrides, nothing forked.

- `_generate_and_score_completions` remembers its rows, because `rollout_func` gets only the prompts.
- `_prepare_inputs` shuffles whole groups, where TRL 1.16 shuffles single rows of every generation batch. Its
  loss does not care, but a step that computes a shared prompt once, or compares the members of a group, needs
  them side by side.
- `_get_per_token_logps_and_entropies` reads the prompt of a group once (`rl.shared_prompt`); TRL reads it
  with every completion.

TRL computes rewards before it shuffles, so rewards see whole groups as long as no group is cut by a rank:
`check_groups` asserts that at the start.
"""

from typing import Any

import torch
from trl import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from rl.shared_prompt import group_logps
from sid_builder.errors import InputError


def check_groups(args: Any) -> None:
    """Refuse batch sizes that cut a group between ranks, and checkpoints inside a generation batch.

    TRL checks the global generation batch only; a group cut by a rank border would make every rank-aware
    reward wrong.
    """
    rows, group = args.per_device_train_batch_size * args.steps_per_generation, args.num_generations
    if rows % group:
        raise InputError(
            f"num_generations: {group} does not divide per_device_train_batch_size "
            f"{args.per_device_train_batch_size} x steps_per_generation {args.steps_per_generation} = "
            f"{rows}, so a group would be split between ranks; make the product a multiple of {group}"
        )
    per_rollout = args.steps_per_generation * args.num_iterations  # batches, of which a step takes several
    saved_every = args.save_steps * args.gradient_accumulation_steps
    if args.save_strategy == "steps" and saved_every % per_rollout:
        raise InputError(
            f"save_steps: {args.save_steps} falls inside a generation batch, which a resumed run would lose; "
            f"use a multiple of {max(1, per_rollout // args.gradient_accumulation_steps)}"
        )
    if args.mask_truncated_completions:
        raise InputError(
            "mask_truncated_completions: true would drop every completion, SIDs carry no end token; set false"
        )


def shuffle_groups(batch: dict[str, Any], group_size: int) -> dict[str, Any]:
    """Permute whole groups of rows, in unison over all row-wise tensors; scalars (a 0-d tensor) stay."""
    num_groups = len(batch["prompt_ids"]) // group_size
    order = torch.randperm(num_groups)[:, None] * group_size + torch.arange(group_size)
    rows = order.flatten()
    return {
        key: value[rows.to(value.device)] if isinstance(value, torch.Tensor) and value.dim() else value
        for key, value in batch.items()
    }


class GroupedGRPOTrainer(GRPOTrainer):
    """See the module. Raises InputError when `args` would split groups."""

    def __init__(self, *, args: Any, shared_prompt: bool = True, **kwargs: Any) -> None:
        check_groups(args)
        self.shared_prompt = shared_prompt
        self.rollout_rows: list[dict[str, Any]] = []
        super().__init__(args=args, **kwargs)
        if (
            self.is_fsdp_enabled
            or self.is_deepspeed_enabled
            and self.accelerator.state.deepspeed_plugin.zero_stage == 3
        ):
            raise InputError(
                "accelerate: beam rollouts need whole weights on every rank; use DDP or ZeRO-1/2"
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # TRL 1.16 passes rollout_func the prompts alone: rows are bound to them by position.
        self.rollout_rows = inputs
        return super()._generate_and_score_completions(inputs)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        # TRL 1.16's method with `shuffle_sequence_dict` replaced by `shuffle_groups`, and without its image
        # handling.
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        every = self.args.steps_per_generation * self.num_iterations
        if self._step % every == 0 or self._buffered_inputs is None:
            scored = self._generate_and_score_completions(generation_batch)
            shuffled = shuffle_groups(scored, self.num_generations)
            self._buffered_inputs = split_tensor_dict(shuffled, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        # TRL 1.16's signature. Micro-batches that cut a group, and mixtures of experts (whose auxiliary loss
        # counts every token), take TRL's own path.
        size = self.num_generations if self.model.training else self.num_generations_eval
        if not self.shared_prompt or len(input_ids) % size or compute_aux_loss:
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy=compute_entropy,
                compute_aux_loss=compute_aux_loss,
                **images,
            )
        dtype = self.accelerator.unwrap_model(self.model).get_input_embeddings().weight.dtype
        at_once = max(size, (batch_size or len(input_ids)) // size * size)
        logps, entropies = [], []
        for start in range(0, len(input_ids), at_once):
            part = slice(start, start + at_once)
            with self.accelerator.autocast():
                logp, entropy = group_logps(
                    model, input_ids[part], attention_mask[part], logits_to_keep, size, dtype
                )
            logps.append(logp)
            entropies.append(entropy)
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None
