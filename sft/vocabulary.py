"""Adding the SID tokens to a tokenizer and rows for them to a model."""

from collections.abc import Mapping
from typing import Any

from sid_builder.errors import InputError
from sid_builder.semantic_ids import SemanticIds


def extend_tokenizer(tokenizer: Any, semantic_ids: SemanticIds) -> list[int]:
    """Add every token of every codebook, level by level in code order; returns their ids in that order.

    Added as ordinary tokens: special ones would vanish wherever text is decoded with `skip_special_tokens`.
    Tokens that a checkpoint already carries keep their ids.

    Raises:
        InputError: when only part of them is in the vocabulary, which means another catalogue's SIDs.
    """
    from tokenizers import AddedToken

    tokens = semantic_ids.all_tokens()
    known = tokenizer.get_vocab()
    present = sum(token in known for token in tokens)
    if 0 < present < len(tokens):
        raise InputError(
            f"tokenizer: has {present} of the {len(tokens)} SID tokens already; start from a checkpoint "
            "without SID tokens "
            "or with exactly these"
        )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    return tokenizer.convert_tokens_to_ids(tokens)


def extend_model(model: Any, tokenizer: Any) -> None:
    """Give the model rows for every token. Never shrinks: Qwen pads its embedding beyond the tokenizer.

    transformers draws new rows around the mean of the old ones (`mean_resizing`).
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)


def trainable_rows(model: Any, token_ids: list[int]) -> list[int] | Mapping[str, list[int]]:
    """`LoraConfig.trainable_token_indices` for new rows of input and output embeddings.

    With tied embeddings PEFT's list form covers both; untied, it would leave the head's rows as they were.
    """
    if model.config.get_text_config().tie_word_embeddings:
        return token_ids
    return {"embed_tokens": token_ids, "lm_head": token_ids}
