"""Adding the SID tokens to a tokenizer and rows for them to a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prompts.vocabulary import used_tokens
from sid_builder.errors import InputError
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex


def extend_tokenizer(tokenizer: Any, semantic_ids: SemanticIds) -> list[int]:
    """Add every token of every codebook, level by level in code order; returns their ids in that order.

    Added as ordinary tokens: special ones would vanish wherever text is decoded with `skip_special_tokens`.
    A checkpoint that carries SID tokens already keeps its vocabulary as it is, in whatever order, and nothing
    is added: the list is empty. Tokens that no item uses need not be there (MiniOneRec adds none of them).

    Raises:
        InputError: when the vocabulary has SID tokens, and not all that items use.
    """
    from tokenizers import AddedToken

    tokens, known = semantic_ids.all_tokens(), tokenizer.get_vocab()
    if any(token in known for token in tokens):
        used = used_tokens(semantic_ids)
        missing = [token for token in used if token not in known]
        if missing:
            raise InputError(
                f"model_name_or_path: a checkpoint from another index: it has SID tokens, but {missing[0]!r} "
                f"is not in its vocabulary ({len(missing)} of the {len(used)} tokens that items use are "
                "missing); start from a checkpoint of this sid_dir, or from one without SID tokens"
            )
        return []
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    return tokenizer.convert_tokens_to_ids(tokens)


def check_same_sids(checkpoint: str | Path, index: SidIndex) -> None:
    """A model directory's own index must spell the items it shares with `index` the same.

    Token names say nothing about that: every index of three levels has a `<a_0>`. Checkpoints without an
    index of their own pass.

    Raises:
        InputError: naming the first item whose SID is another one.
    """
    directory = Path(checkpoint) / "sid_index"
    if not directory.is_dir():
        return
    carried = SidIndex.load(directory)
    ours = {item_id: row for row, item_id in enumerate(index.catalog.item_ids)}
    shared = [
        (item_id, carried.semantic_ids.spell(row), index.semantic_ids.spell(ours[item_id]))
        for row, item_id in enumerate(carried.catalog.item_ids)
        if item_id in ours
    ]
    changed = [entry for entry in shared if entry[1] != entry[2]]
    if changed:
        item_id, theirs, wanted = changed[0]
        raise InputError(
            f"model_name_or_path: {checkpoint} is a checkpoint from another index: item {item_id!r} is "
            f"{theirs} there and {wanted} in sid_dir ({len(changed)} of {len(shared)} shared items differ); "
            "pass the sid_dir it was trained on"
        )


def extend_model(model: Any, tokenizer: Any) -> int:
    """Give the model rows for every token; returns how many it had. How new ones begin: `sft.new_tokens`.

    Never shrinks: Qwen pads its embedding beyond the tokenizer.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    return rows


def check_rows(model: Any, highest_id: int, where: str, fix: str) -> None:
    """InputError when a token's id lies beyond the rows of the model's embedding."""
    rows = model.get_input_embeddings().weight.shape[0]
    if highest_id >= rows:
        raise InputError(
            f"{where}: has {rows} embedding rows, and its SID tokens go up to {highest_id}; {fix}"
        )


def trainable_rows(model: Any, token_ids: list[int]) -> list[int] | Mapping[str, list[int]]:
    """`LoraConfig.trainable_token_indices` for new rows of input and output embeddings.

    With tied embeddings PEFT's list form covers both; untied, it would leave the head's rows as they were.
    """
    if model.config.get_text_config().tie_word_embeddings:
        return token_ids
    return {"embed_tokens": token_ids, "lm_head": token_ids}
