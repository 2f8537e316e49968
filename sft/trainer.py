"""TRL's SFTTrainer over trunks and branches."""

from typing import Any

import datasets
import torch
from peft import LoraConfig
from torch.distributed.fsdp import FSDPModule
from trl import SFTConfig, SFTTrainer

from prompts.branches import IGNORE, check_attention
from prompts.template import PromptTemplate
from sft.arguments import LayoutOptions
from sft.collators import collator_of
from sft.cpu_checkpoints import load_onto_numbered_cpus
from sft.valid_ranking import RankedEvaluation, ValidRanking
from sid_builder.interactions import Interactions

load_onto_numbered_cpus()


class SidTrainer(RankedEvaluation, SFTTrainer):
    """SFTTrainer with our collators, whose evaluation ranks valid.

    `layout` says how rows lie in a batch, and how the model attends to it. Rows under a 4-D mask need a model
    of full attention only.
    """

    def __init__(
        self,
        model: Any,
        config: SFTConfig,
        table: datasets.Dataset,
        tokenizer: Any,
        template: PromptTemplate,
        interactions: Interactions,
        valid_cases: int = 0,
        peft_config: LoraConfig | None = None,
        layout: LayoutOptions | None = None,
    ) -> None:
        layout = layout or LayoutOptions()
        self.attention = layout.attention
        model.set_attn_implementation(self.attention)
        if layout.batches != "padding_free":
            check_attention(model.config)
        if valid_cases:
            self.valid_ranking = ValidRanking(template, interactions, valid_cases, config.seed)
        super().__init__(
            model=model,
            args=config,
            train_dataset=table,
            eval_dataset=self.valid_ranking.rows() if valid_cases else None,
            processing_class=tokenizer,
            data_collator=collator_of(layout, tokenizer.pad_token_id, model.dtype),
            peft_config=peft_config,
        )
        head = self.accelerator.unwrap_model(self.model).get_output_embeddings()
        if not hasattr(head, "bias"):
            # TRL 1.16's fused head reads `lm_head.bias`, which PEFT's TrainableTokensWrapper lacks. Delete
            # this when test_trl_still_needs_the_bias fails.
            head.bias = None

        # The backbone's last hidden states pass through here on their way to the fused head.
        self._labelled: torch.Tensor | None = None
        inner = self.accelerator.unwrap_model(self.model)
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        inner.base_model.register_forward_hook(self._keep_labelled_rows)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Under sdpa, whatever trains: the beam that ranks valid needs a 4-D mask."""
        model = self.accelerator.unwrap_model(self.model)
        model.set_attn_implementation("sdpa")
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            model.set_attn_implementation(self.attention)

    def _keep_labelled_rows(self, module: Any, args: Any, output: Any) -> Any:
        if self._labelled is not None:
            output.last_hidden_state = output.last_hidden_state[self._labelled][None]
        return output

    def compute_loss(
        self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """SFTTrainer's, scoring labelled positions alone, with tokens counted from a 4-D mask.

        TRL 1.16 scores every position where there is no Triton: with one label in eight tokens, half of a
        small model's step.
        """
        seen = self._total_train_tokens
        mode = "train" if self.model.training else "eval"
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        if isinstance(head, FSDPModule):
            # TRL 1.16's fused head takes the weight of a sharded head by `full_tensor()`, whose gradient is
            # then each process's own, never summed. A head that FSDP has gathered itself is reduced by it.
            # Delete this when test_trl_still_needs_a_gathered_head fails.
            head.unshard()
        self._labelled = inputs["shift_labels"] != IGNORE
        inputs = {**inputs, "shift_labels": inputs["shift_labels"][self._labelled][None]}
        try:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self._labelled = None
        if mode == "train" and "attention_mask" in inputs:
            # Padding sees itself alone and nobody sees it; every real token has at least one neighbour.
            sees = (inputs["attention_mask"] == 0).squeeze(1)
            real = (sees.sum(dim=1) > 1) | (sees.sum(dim=2) > 1)
            self._total_train_tokens = seen + int(self.accelerator.gather_for_metrics(real.sum()).sum())
            self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        return result
