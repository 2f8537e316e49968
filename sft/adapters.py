"""PEFT's configuration: adapters, and what of the embeddings learns beside them."""

from typing import Any

from peft import LoraConfig

from sft.arguments import TrainingOptions
from sft.vocabulary import trainable_rows


def lora_config(args: TrainingOptions, model: Any, sid_token_ids: list[int]) -> LoraConfig:
    """Adapters on the linear layers, and the SID rows (or the whole embeddings) trained beside them."""
    options = args.lora
    settings: dict[str, Any] = {
        "r": options.r,
        "lora_alpha": options.alpha,
        "lora_dropout": options.dropout,
        "target_modules": options.target_modules,
        "use_dora": options.use_dora,
        "use_rslora": options.use_rslora,
        "task_type": "CAUSAL_LM",
    }
    if args.new_tokens.train == "rows":
        settings["trainable_token_indices"] = trainable_rows(model, sid_token_ids)
    else:
        settings["modules_to_save"] = ["embed_tokens", "lm_head"]
        settings["ensure_weight_tying"] = bool(model.config.get_text_config().tie_word_embeddings)
    return LoraConfig(**settings)
