"""Small real catalogues and models, built in memory."""

import numpy as np

from sid_builder.catalog import Catalog
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex


def make_index(codes: np.ndarray, level_sizes: tuple[int, ...]) -> SidIndex:
    """An index over titled items with the given codes; later items are more frequent in train."""
    rows = [
        {"item_id": f"item-{i}", "title": f"Thing number {i} of kind {codes[i, 0]}"}
        for i in range(len(codes))
    ]
    ids = SemanticIds(codes.astype(np.int32), level_sizes)
    return SidIndex(Catalog.from_rows(rows), ids, np.arange(len(codes), dtype=np.int64))


def make_tokenizer(index: SidIndex, vocab_size: int = 600):
    """A trained tokenizer with the index's SID tokens added."""
    from tokenizers import AddedToken

    from sft.models.scratch import train_tokenizer

    tokenizer = train_tokenizer(index.catalog.titles * 3, vocab_size)
    tokenizer.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t in index.semantic_ids.all_tokens()]
    )
    return tokenizer


def make_recommender(
    index: SidIndex,
    architecture: str = "qwen3",
    pack: str = "plain",
    tied: bool = True,
    seed: int = 0,
    num_heads: int = 4,
):
    """A randomly initialised two-layer model that speaks the index's SIDs."""
    from prompts.pack import PromptPack
    from prompts.template import PromptTemplate
    from serve.decoding.recommender import Recommender
    from sft.models.scratch import ScratchConfig, build_model

    tokenizer = make_tokenizer(index)
    config = ScratchConfig(
        architecture,
        hidden_size=64,
        num_layers=2,
        num_heads=num_heads,
        intermediate_size=128,
        tie_word_embeddings=tied,
    )
    model = build_model(config, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, seed)
    for parameter in model.parameters():  # spread the logits, so that rankings are not near-ties
        if parameter.dim() > 1:
            parameter.data.mul_(4.0)
    template = PromptTemplate(PromptPack.load(pack), tokenizer, index)
    return Recommender(model.eval(), tokenizer, index, template)
