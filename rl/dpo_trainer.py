"""TRL's DPOTrainer over preference sets that are token ids already. Three overrides, nothing forked.

- `_prepare_dataset` leaves rows as they are. TRL 1.16 would render messages with the chat template, which
  puts a newline behind an answer's end-of-turn token (Qwen) or a `<think>` block before it (Qwen3): not the
  completion that SFT taught and decoding scores.
- `_compute_loss` adds S-DPO (`rl.dpo_losses`) to TRL's losses, each rejected answer of a set being a pair of
  its own for these, and in what is logged.
- `_precompute_ref_logps` keeps one log-prob per rejected answer, where TRL has one per row.

A prompt is read once for all answers of its set (`rl.answer_branches`).
"""

from typing import Any

import datasets
import torch
from accelerate.utils import gather_object
from tqdm import tqdm
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from prompts.branches import check_attention
from rl.answer_branches import AnswerCollator, read_prompts_once
from rl.dpo_losses import S_DPO, check_losses, softmax_dpo
from rl.ranked_policy import RankedPolicy
from rl.synced_reference import SyncedReference
from sft.launch import sharding_of
from sid_builder.errors import InputError

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


class TokenDPOTrainer(RankedPolicy, SyncedReference, DPOTrainer):
    """`train_dataset` has `prompt_ids`, `chosen_ids` and `rejected_ids`, a list of answers.

    Args:
        shared_prompt: read a prompt once for all its answers; false: with each, as TRL does. Same numbers.

    Raises:
        InputError: for losses that `args` does not fit, rows that `max_length` would cut, and mixtures of
            experts or attention that shared prompts are not for.
    """

    def __init__(
        self, *, model: Any, args: Any, processing_class: Any, shared_prompt: bool = True, **kwargs: Any
    ) -> None:
        check_losses(args, "lora" if kwargs.get("peft_config") else "full")
        if args.precompute_ref_log_probs and sharding_of() != "none":
            raise InputError(
                f"precompute_ref_log_probs: true is not for weights that {sharding_of()} shares out; set it "
                "to false"
            )
        if shared_prompt:
            check_attention(model.config)
        pad_id = processing_class.pad_token_id
        pad_id = processing_class.eos_token_id if pad_id is None else pad_id
        pairs = DataCollatorForPreference(pad_id, pad_to_multiple_of=args.pad_to_multiple_of)
        self.shared_prompt, self._reads_once = shared_prompt, False
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            data_collator=AnswerCollator(pairs, pad_id, shared_prompt),
            **kwargs,
        )
        weighted = list(zip(self.loss_types, self.loss_weights, strict=True))
        self.softmax_weight = sum(weight for name, weight in weighted if name == S_DPO)
        of_pairs = [(name, weight) for name, weight in weighted if name != S_DPO]
        self.loss_types, self.loss_weights = ([pair[at] for pair in of_pairs] for at in (0, 1))
        self._read_prompts_once()

    def _read_prompts_once(self) -> None:
        if not self.shared_prompt or self._reads_once:
            return
        if self.aux_loss_enabled:
            raise InputError(
                f"router_aux_loss_coef: {self.router_aux_loss_coef} counts the tokens of TRL's own rows; set "
                "it to 0, or shared_prompt: false"
            )
        for model in (self.model, self.ref_model):
            if model is not None:
                inner = self.accelerator.unwrap_model(model)
                read_prompts_once(inner.get_base_model() if hasattr(inner, "get_base_model") else inner)
        self._reads_once = True

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        # The columns TRL's own _prepare_dataset ends with; our collator takes over from here.
        missing = [column for column in COLUMNS if column not in dataset.column_names]
        if missing:
            raise InputError(
                f"{dataset_name}_dataset: has no column {missing[0]!r}; build it with rl.preferences"
            )
        longest = max(
            len(row["prompt_ids"]) + max(map(len, (row["chosen_ids"], *row["rejected_ids"])))
            for row in dataset
        )
        if args.max_length is not None and longest > args.max_length:
            raise InputError(
                f"max_length: {args.max_length} cuts answers off (longest pair: {longest} tokens); raise it"
            )
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        self._read_prompts_once()  # TRL 1.16 calls this from its constructor
        accelerator = self.accelerator
        model = self.model if self.ref_model is None else self.ref_model
        own = range(accelerator.process_index, len(dataset), accelerator.num_processes)
        found: list[tuple[int, float, list[float]]] = []
        desc, silent = f"reference log-probs of {name}", not accelerator.is_main_process
        for start in tqdm(range(0, len(own), batch_size), desc=desc, unit="batch", disable=silent):
            numbers = own[start : start + batch_size]
            rows = [dataset[number] for number in numbers]
            batch = {key: value.to(accelerator.device) for key, value in self.data_collator(rows).items()}
            counts = torch.bincount(batch.pop("set_of_pair")).tolist()
            of_pairs = [part.tolist() for part in self.compute_ref_log_probs(model, batch)]
            first = 0
            for number, count in zip(numbers, counts, strict=True):
                chosen, rejected = (part[first : first + count] for part in of_pairs)
                found.append((number, chosen[0], rejected))
                first += count
        found = sorted(gather_object(found))
        columns = {
            "ref_chosen_logps": [chosen for _, chosen, _ in found],
            "ref_rejected_logps": [rejected for _, _, rejected in found],
        }
        return datasets.concatenate_datasets([dataset, datasets.Dataset.from_dict(columns)], axis=1)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        assert not return_outputs, "there are no logits to return"
        inputs = dict(inputs)
        set_of_pair_P = inputs.pop("set_of_pair")
        if not self.softmax_weight:
            return super()._compute_loss(model, inputs, False)
        if not self.precompute_ref_logps:
            reference = self.model if self.ref_model is None else self.ref_model
            names = ("ref_chosen_logps", "ref_rejected_logps")
            inputs.update(zip(names, self.compute_ref_log_probs(reference, inputs), strict=True))
        scored: list[torch.Tensor] = []

        def policy(**given: Any) -> Any:
            output = model(**given)
            scored.append(output.log_probs)
            return output

        computed, self.precompute_ref_logps = self.precompute_ref_logps, True  # TRL: they are in the batch
        try:
            loss = super()._compute_loss(policy, inputs, False)
        finally:
            self.precompute_ref_logps = computed
        chosen_P, rejected_P = scored[0].sum(dim=1).chunk(2)
        ratio_P = (chosen_P - inputs["ref_chosen_logps"]) - (rejected_P - inputs["ref_rejected_logps"])
        return loss + softmax_dpo(self.beta * ratio_P, set_of_pair_P).mean() * self.softmax_weight
