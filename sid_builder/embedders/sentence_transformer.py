"""Sentence-transformers embeddings of item texts, from any local path or hub name."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np

from sid_builder.embedders import ItemData, check_positive
from sid_builder.embedders.model_files import (
    DEVICE_HELP,
    DTYPE_HELP,
    PACKAGED,
    REVISION_HELP,
    Dtype,
    ModelFiles,
    choose_device,
    choose_dtype,
)
from sid_builder.embedding_store import CACHE_HELP, Contents, encode_stored
from sid_builder.errors import InputError


@dataclass(frozen=True)
class SentenceTransformerConfig:
    """Which model encodes, and how."""

    model: str = field(
        default=PACKAGED,
        metadata={
            "help": f"Directory or hub name; {PACKAGED!r} is the model inside the PyPI package of that name."
        },
    )
    revision: str | None = field(default=None, metadata={"help": REVISION_HELP})
    batch_size: int = field(
        default=64, metadata={"help": "Texts per forward pass; texts of like length go together."}
    )
    max_tokens: int | None = field(
        default=None, metadata={"help": "Cut texts here; default: what the model was made for."}
    )
    dtype: Dtype = field(default="float32", metadata={"help": DTYPE_HELP})
    device: str | None = field(default=None, metadata={"help": DEVICE_HELP})
    prompt: str | None = field(
        default=None, metadata={"help": "Put before every text, for models trained with one."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": CACHE_HELP})


class SentenceTransformerEmbedder:
    """`encode(items)` goes through the store; the model is loaded when there is something to encode."""

    def __init__(self, config: SentenceTransformerConfig, seed: int = 0) -> None:
        if find_spec("sentence_transformers") is None:
            raise InputError(
                "embedder: 'sentence_transformer' needs sentence-transformers; pip install 'sidereal[embed]'"
            )
        check_positive(batch_size=config.batch_size, max_tokens=config.max_tokens)
        self.config = config
        self.model_files = ModelFiles.find(config.model, config.revision)
        self.notes: dict[str, Any] = {}

    def encode(self, items: ItemData) -> np.ndarray:
        """Embeddings float32 [N, d] as the model gives them; nothing is drawn, so there is no seed."""
        contents = Contents.of_texts(items.texts)
        embeddings_ND, self.notes = encode_stored(self, contents, self.config.cache_dir, items.work_dir)
        self.__dict__.pop("_model", None)  # what follows wants its memory
        return embeddings_ND

    def identity(self) -> dict[str, Any]:
        config = self.config
        return {
            "embedder": "sentence_transformer",
            "model": self.model_files.identity,
            "max_tokens": config.max_tokens,
            "prompt": config.prompt,
            "dtype": choose_dtype(config.dtype, choose_device(config.device)),
        }

    def encode_batches(self, values: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for low in range(0, len(values), self.config.batch_size):
            texts = list(values[low : low + self.config.batch_size])
            vectors = self._model.encode(
                texts,
                batch_size=len(texts),
                prompt=self.config.prompt,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
            yield np.arange(low, low + len(texts)), vectors.astype(np.float32)

    @cached_property
    def _model(self) -> Any:
        # Imported here: torch and transformers take ten seconds or more, arguments are checked before.
        from sentence_transformers import SentenceTransformer

        device = choose_device(self.config.device)
        options = {"dtype": choose_dtype(self.config.dtype, device)}
        model = self.model_files.load(SentenceTransformer, device=device, model_kwargs=options)
        if self.config.max_tokens is not None:
            model.max_seq_length = self.config.max_tokens
        return model
