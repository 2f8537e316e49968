"""The model training starts from: a checkpoint extended by SID tokens, or a decoder built from its config."""

from pathlib import Path
from typing import Any

from prompts.pack import PromptPack
from prompts.template import PromptTemplate
from sft.arguments import SftArguments
from sft.models.scratch import build_model, train_tokenizer
from sft.vocabulary import extend_model, extend_tokenizer
from sid_builder.errors import InputError
from sid_builder.item_text import item_texts
from sid_builder.sid_index import SidIndex


def start_model(
    args: SftArguments, pack: PromptPack, index: SidIndex, seed: int
) -> tuple[Any, Any, PromptTemplate, list[int]]:
    """Model, tokenizer, template and the ids of all SID tokens.

    Raises:
        InputError: when the checkpoint cannot be opened or already speaks other SIDs.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    set_seed(seed)
    dtype = getattr(torch, args.dtype)
    if args.from_scratch is not None:
        tokenizer = train_tokenizer(_words(pack, index), args.from_scratch.text_vocab_size)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"model_name_or_path: {args.model_name_or_path!r} cannot be opened ({_line(error)})"
            ) from error
    token_ids = extend_tokenizer(tokenizer, index.semantic_ids)
    if pack.chat_template is not None:
        tokenizer.chat_template = pack.chat_template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    template = PromptTemplate(pack, tokenizer, index)
    if args.from_scratch is not None:
        model = build_model(args.from_scratch, len(tokenizer), template.end_id, tokenizer.pad_token_id, seed)
        return model.to(dtype), tokenizer, template, token_ids
    try:
        model = AutoModelForCausalLM.from_pretrained(
            args.model_name_or_path, dtype=dtype, attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"model_name_or_path: {args.model_name_or_path!r} cannot be opened ({_line(error)})"
        ) from error
    extend_model(model, tokenizer)
    return model, tokenizer, template, token_ids


def quantised(base_dir: Path, dtype: str) -> Any:
    """The extended base again, its linear layers in nf4 (QLoRA); embeddings and head stay as they are."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        bnb_4bit_quant_storage=getattr(torch, dtype),
    )
    return AutoModelForCausalLM.from_pretrained(
        base_dir, dtype=getattr(torch, dtype), attn_implementation="sdpa", quantization_config=config
    )


def _words(pack: PromptPack, index: SidIndex) -> list[str]:
    """What a tokenizer from scratch learns its text tokens from: the catalogue and the pack's own words."""
    frames = [text.user for templates in pack.tasks.values() for text in templates]
    return item_texts(index.catalog, "{title}[. {brand}][. {categories}]") + frames * 20


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
