"""PEFT's configuration: adapters, and what of the embeddings learns beside them."""

from typing import Any

from peft import LoraConfig

from sft.arguments import TrainingOptions
from sft.vocabulary import trainable_rows


def lora_config(args: TrainingOptions, model: Any, sid_token_ids: list[int]) -> LoraConfig:
    """Adapters on the linear layers, and the SID rows (or the whole embeddings) trained beside them."""
    assert args.lora is not None
    if args.new_tokens.train == "rows":
        return args.lora.config(trainable_token_indices=trainable_rows(model, sid_token_ids))
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    return args.lora.config(modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=tied)
