"""A SID directory and a small "pretrained" checkpoint on disk, as users have them."""

from pathlib import Path

import numpy as np

from sft.models.scratch import ScratchConfig, build_model, train_tokenizer
from sid_builder.artifact import writing
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_interactions(num_items: int, num_users: int = 30, longest: int = 9, seed: int = 3) -> Interactions:
    rng = np.random.default_rng(seed)
    sequences = [rng.choice(num_items, rng.integers(3, longest + 1), replace=False) for _ in range(num_users)]
    return Interactions.leave_one_out([f"user-{u}" for u in range(num_users)], sequences)


def write_sids(
    path: Path, index: SidIndex, interactions: Interactions, vectors_ND: np.ndarray | None = None
) -> Path:
    """What sid_builder.build leaves, without the report; `vectors_ND` are the items' embeddings."""
    with writing(path, "sids") as artifact:
        index.save(artifact.path / "sid_index")
        (artifact.path / "interactions").mkdir()
        interactions.save(artifact.path / "interactions")
        if vectors_ND is not None:
            np.save(artifact.path / "embeddings.npy", vectors_ND)
    return path


def write_checkpoint(
    path: Path, index: SidIndex, architecture: str = "qwen2", tied: bool = True, padding: int = 5
) -> Path:
    """A two-layer chat model that has never seen an SID; its embedding is padded beyond the tokenizer, as
    Qwen's is, by `padding` rows.
    """
    tokenizer = train_tokenizer(index.catalog.titles * 3, 500)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    config = ScratchConfig(
        architecture,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=64,
        tie_word_embeddings=tied,
    )
    model = build_model(
        config, len(tokenizer) + padding, tokenizer.eos_token_id, tokenizer.pad_token_id, seed=1
    )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
