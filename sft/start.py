"""The model training starts from: a checkpoint extended by SID tokens, or a decoder built from its config."""

from pathlib import Path
from typing import Any

from prompts.pack import PromptPack
from prompts.template import PromptTemplate
from sft.arguments import SftArguments
from sft.launch import check_rows_whole, sharding_of
from sft.models.scratch import build_model, train_tokenizer
from sft.new_tokens import RowSource, init_rows, load_vectors
from sft.vocabulary import check_rows, check_same_sids, extend_model, extend_tokenizer
from sid_builder.errors import InputError
from sid_builder.item_text import item_texts
from sid_builder.sid_index import SidIndex


def start_model(
    args: SftArguments, pack: PromptPack, index: SidIndex, seed: int
) -> tuple[Any, Any, PromptTemplate, list[int]]:
    """Model, tokenizer, template and the ids of all SID tokens it has, ascending.

    A checkpoint that carries the SID tokens already keeps its rows; new rows begin by `args.new_tokens.init`.

    Raises:
        InputError: when the checkpoint cannot be opened or speaks other SIDs, or what `init` needs is not
            there.
    """
    import torch
    from transformers import AutoModelForCausalLM, set_seed
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    # Under ZeRO-3 transformers 5.17 makes models in parts, whatever zero3_init_flag says, and new rows are
    # made from whole matrices. accelerate sets it again when the trainer shares the weights out.
    unset_hf_deepspeed_config()
    set_seed(seed)
    dtype, options = getattr(torch, args.dtype), args.new_tokens
    tokenizer, added = _extended_tokenizer(args, pack, index)
    template = PromptTemplate(pack, tokenizer, index)
    token_ids = template.vocabulary.all_ids.tolist()
    if args.from_scratch is not None:
        model = build_model(args.from_scratch, len(tokenizer), template.end_id, tokenizer.pad_token_id, seed)
        return model.to(dtype), tokenizer, template, token_ids
    vectors_ND = None
    if added and options.init == "codebook":
        vectors_ND = load_vectors(args.sid_dir, index.catalog.num_items)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            args.model_name_or_path, dtype=dtype, attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"model_name_or_path: {args.model_name_or_path!r} cannot be opened ({_line(error)})"
        ) from error
    check_rows_whole(args, sharding_of(), model.config.get_text_config().tie_word_embeddings)
    if added:
        rows_before = extend_model(model, tokenizer)
        init_rows(model, RowSource(index, tokenizer, options.init, vectors_ND), added, rows_before, seed)
    else:
        if options.init != "mean":
            print(
                f"sft.train: new_tokens.init {options.init!r} has no effect: the checkpoint has rows for "
                "the SID tokens, which are kept"
            )
        check_rows(
            model,
            token_ids[-1],
            f"model_name_or_path: {args.model_name_or_path}",
            "if an adapter or a delta lies there, make a model of it first: sft.merge --base_model",
        )
    return model, tokenizer, template, token_ids


def start_tokenizer(
    args: SftArguments, pack: PromptPack, index: SidIndex
) -> tuple[Any, PromptTemplate, list[int]]:
    """The extended tokenizer, the template bound to it and the ids of all SID tokens, ascending.

    Raises:
        InputError: when the tokenizer cannot be opened or speaks other SIDs.
    """
    tokenizer, _ = _extended_tokenizer(args, pack, index)
    template = PromptTemplate(pack, tokenizer, index)
    return tokenizer, template, template.vocabulary.all_ids.tolist()


def _extended_tokenizer(args: SftArguments, pack: PromptPack, index: SidIndex) -> tuple[Any, list[int]]:
    """The tokenizer with all SID tokens, and the ids of those that are new."""
    from transformers import AutoTokenizer

    if args.from_scratch is not None:
        tokenizer = train_tokenizer(_words(pack, index), args.from_scratch.text_vocab_size)
    else:
        assert args.model_name_or_path is not None
        check_same_sids(args.model_name_or_path, index)
        try:
            tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"model_name_or_path: {args.model_name_or_path!r} cannot be opened ({_line(error)})"
            ) from error
    added = extend_tokenizer(tokenizer, index.semantic_ids)
    if pack.chat_template is not None:
        tokenizer.chat_template = pack.chat_template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, added


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
    model = AutoModelForCausalLM.from_pretrained(
        base_dir, dtype=getattr(torch, dtype), attn_implementation="sdpa", quantization_config=config
    )
    for module in model.modules():
        # bitsandbytes 0.50 repacks a layer that is asked in eval mode on a CPU with AVX512-BF16, and has no
        # backward pass for it then: after a rollout or a ranking, nothing below would learn. Delete this when
        # test_bitsandbytes_still_has_no_way_back fails.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _words(pack: PromptPack, index: SidIndex) -> list[str]:
    """What a tokenizer from scratch learns its text tokens from: the catalogue and the pack's own words."""
    return item_texts(index.catalog, "{title}[. {brand}][. {categories}]") + pack.words() * 20


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
