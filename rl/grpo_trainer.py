"""TRL's GRPOTrainer with groups kept whole. Four overrides, nothing forked.

- `_generate_and_score_completions` remembers its rows, because `rollout_func` gets only the prompts; adds
  pass@k advantages (`rl.advantages`) to TRL's.
- `_prepare_inputs` shuffles whole groups, where TRL 1.16 shuffles single rows of every generation batch. Its
  loss does not care, but a step that computes a shared prompt once, or compares the members of a group, needs
  them side by side.
- `_get_per_token_logps_and_entropies` reads the prompt of a group once (`rl.shared_prompt`); TRL reads it
  with every completion. A micro-batch that cuts groups reads it once for each part. It also renormalises over
  the trie (`rl.trie_log_probs`), the same for policy, reference and old policy.
- `_compute_loss` adds the cross-entropy of the truth, which is one more branch behind the shared prompt.

TRL computes rewards before it shuffles, so rewards see whole groups as long as no group is cut by a rank:
`check_groups` asserts that at the start.
"""

from math import gcd
from typing import Any

import numpy as np
import torch

from prompts.template import PromptTemplate
from rl.advantages import pass_at_k
from rl.idle_groups import IdleGroups
from rl.launch import check_sharding
from rl.ranked_policy import RankedPolicy
from rl.shared_prompt import beside_truths, group_logps
from rl.synced_reference import SyncedReference
from rl.trie_log_probs import TrieLogProbs
from rl.update_options import UpdateOptions
from serve.decoding.trie_step import DeviceTrie
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


class GroupedGRPOTrainer(RankedPolicy, SyncedReference, IdleGroups):
    """See the module.

    Raises:
        InputError: when `args` would split groups, for shards that cannot be rolled out, and for mixtures of
            experts with options whose pass does not count their auxiliary loss.
    """

    def __init__(self, *, args: Any, update: UpdateOptions, template: PromptTemplate, **kwargs: Any) -> None:
        check_sharding()
        check_groups(args)
        self.update, self.template = update, template
        self.rollout_rows: list[dict[str, Any]] = []
        # While a loss is computed with a term of the truth: what the truth is, and what came of it.
        self._truth_NL: torch.Tensor | None = None
        self._truth_log_p: list[torch.Tensor] = []
        super().__init__(args=args, **kwargs)
        self._trie: TrieLogProbs | None = None
        if update.log_probs == "trie":
            trie = DeviceTrie(template.index.trie, template.vocabulary, self.accelerator.device)
            self._trie = TrieLogProbs(trie, self.temperature)
        if self.aux_loss_enabled and (self._trie is not None or update.truth_weight):
            raise InputError(
                f"router_aux_loss_coef: {self.router_aux_loss_coef} counts in TRL's own pass alone, which "
                "knows neither update.log_probs: trie nor update.truth_weight; set it to 0"
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # TRL 1.16 passes rollout_func the prompts alone: rows are bound to them by position.
        self.rollout_rows = inputs
        scored = super()._generate_and_score_completions(inputs)
        if self.update.advantages == "pass_at_k":
            self._add_pass_at_k(scored, np.array([row["hit"] for row in inputs]))
        if self.update.truth_weight:
            scored["truth_ids"] = self._truth_ids(inputs, scored)
        return scored

    def _add_pass_at_k(self, scored: dict[str, Any], hit_N: np.ndarray) -> None:
        of_sets_N = pass_at_k(hit_N.reshape(-1, self.num_generations), self.update.k).flatten()
        added_N = torch.from_numpy(of_sets_N).to(scored["advantages"])
        scored["advantages"] = scored["advantages"] + added_N
        logged = self._logs["advantages"]  # of TRL's table of completions: those of all processes, at its end
        for place, added in enumerate(reversed(self.accelerator.gather(added_N).tolist()), start=1):
            logged[-place] += added

    def _truth_ids(self, rows: list[dict[str, Any]], scored: dict[str, Any]) -> torch.Tensor:
        """Token ids of the items asked for, int64 [N, L]; -1 behind short SIDs, and for what is left out."""
        ids = [torch.tensor(self.template.sid_ids[row["target_item"]]) for row in rows]
        truth_NL = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)
        truth_NL = truth_NL.to(self.accelerator.device)
        if "live" in scored:  # idle groups are left out
            truth_NL = truth_NL.masked_fill(~scored["live"][:, None], -1)
        return truth_NL

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        # TRL 1.16's method with `shuffle_sequence_dict` replaced by `shuffle_groups`, and without its image
        # handling.
        every = self.args.steps_per_generation * self.num_iterations
        if self._step % every == 0 or self._buffered_inputs is None:
            scored = self._generate_and_score_completions(generation_batch)
            shuffled = shuffle_groups(scored, self.num_generations)
            self._buffered_inputs = self.micro_batches(shuffled)
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
        # TRL 1.16's signature. Mixtures of experts, whose auxiliary loss counts every token, take its own
        # path.
        together = self._rows_together(len(input_ids))
        ours = together > 1 or self._trie is not None or self._truth_NL is not None
        if compute_aux_loss or not ours:
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
        at_once = max(together, (batch_size or len(input_ids)) // together * together)
        logps, entropies = [], []
        for start in range(0, len(input_ids), at_once):
            part = slice(start, start + at_once)
            ids, mask, length, size = input_ids[part], attention_mask[part], logits_to_keep, together
            if self._truth_NL is not None:
                ids, mask, length = beside_truths(ids, mask, length, size, self._truth_NL[part])
                size += 1
            with self.accelerator.autocast():
                logp, entropy = group_logps(model, ids, mask, length, size, dtype, self._trie)
            if self._truth_NL is not None:
                self._truth_log_p.append(logp.view(-1, size, length)[:, -1])
                logp, entropy = (
                    values.view(-1, size, length)[:, :-1, :logits_to_keep].flatten(0, 1)
                    for values in (logp, entropy)
                )
            logps.append(logp)
            entropies.append(entropy)
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _rows_together(self, count: int) -> int:
        """How many neighbouring rows have the same prompt, which is read once: a group, or its part here."""
        if not self.update.shared_prompt:
            return 1
        return gcd(count, self.args.per_device_train_batch_size, self.num_generations)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not self.update.truth_weight:
            return super()._compute_loss(model, inputs)
        self._truth_NL, self._truth_log_p = inputs["truth_ids"], []
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._truth_NL = None
        log_p_BL = torch.cat(self._truth_log_p)
        length_B = (inputs["truth_ids"][:: len(inputs["truth_ids"]) // len(log_p_BL)] >= 0).sum(dim=1)
        entropy_B = -log_p_BL.sum(dim=1) / length_B.clamp(min=1)
        counted = torch.stack([entropy_B.detach().sum(), (length_B > 0).sum()])
        total, count = self.accelerator.reduce(counted, reduction="sum").tolist()
        of_all = total / max(count, 1) * inputs.get("metric_weight", 1.0)
        self._metrics["train"]["truth_loss"].append(of_all)
        # A mean over groups, of which the idle ones may be left out, as the policy's loss is.
        term = entropy_B.mean() * inputs.get("loss_weight", 1.0)
        return loss + self.update.truth_weight * term / self.current_gradient_accumulation_steps
