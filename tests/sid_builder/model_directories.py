"""Tiny models with random weights, saved as directories: what embedders load."""

from pathlib import Path

import numpy as np

from sid_builder.catalog import Catalog
from sid_builder.embedders import ItemData
from sid_builder.interactions import Interactions

WORDS = ["red", "blue", "waterproof", "trail", "shoes", "tent", "stove", "wool", "socks", "warm", "jacket"]


def random_texts(number: int, longest: int, seed: int = 0) -> list[str]:
    """Distinct texts of 1 to `longest` words."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, number)
    return [f"{' '.join(rng.choice(WORDS, length))} {i}" for i, length in enumerate(lengths)]


def item_data(texts: list[str], **more) -> ItemData:
    """Items with these titles, and one sequence over them; `more` are fields of `ItemData`."""
    catalog = Catalog.from_rows([{"item_id": f"i{i}", "title": text} for i, text in enumerate(texts)])
    return ItemData(catalog, Interactions.leave_one_out(["u"], [np.arange(len(texts))]), "{title}", **more)


def save_causal_lm(directory: Path, architecture: str = "qwen3", seed: int = 0) -> Path:
    """Two layers, 32 wide, 96 positions, with a tokenizer trained on `WORDS`."""
    from sft.models.scratch import ScratchConfig, build_model, train_tokenizer

    tokenizer = train_tokenizer([" ".join(WORDS)] * 3, 400)
    config = ScratchConfig(
        architecture,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=64,
        max_position_embeddings=96,
    )
    model = build_model(config, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, seed)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_clip(directory: Path, seed: int = 0) -> Path:
    """One layer on each side, 16 dimensions, pictures of 16 x 16 pixels."""
    from tokenizers import processors
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, set_seed

    from sft.models.scratch import END_OF_TEXT, train_tokenizer

    tokenizer = train_tokenizer([" ".join(WORDS)] * 3, 400)
    end = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, end)]
    )
    narrow = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=narrow
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 24,
            "eos_token_id": end,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        },
        vision_config=narrow | {"image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    set_seed(seed)
    CLIPModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    size = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size).save_pretrained(directory)
    return directory
