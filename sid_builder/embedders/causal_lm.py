"""Item texts through a causal language model: the mean over a text's tokens, or its last token.

LC-Rec takes LLaMA and the mean, MiniOneRec takes Qwen3-Embedding, the mean and at most 2048 tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from sid_builder.embedders import ItemData, check_positive
from sid_builder.embedders.model_files import (
    DEVICE_HELP,
    DTYPE_HELP,
    REVISION_HELP,
    Dtype,
    ModelFiles,
    choose_device,
    choose_dtype,
)
from sid_builder.embedding_store import CACHE_HELP, Contents, encode_stored
from sid_builder.errors import InputError

MAX_TOKENS = 2048  # as MiniOneRec cuts


@dataclass(frozen=True)
class CausalLmConfig:
    """Which model reads the texts, and how."""

    model: str = field(
        metadata={"help": "Directory or hub name of a causal LM or an embedding model made of one."}
    )
    revision: str | None = field(default=None, metadata={"help": REVISION_HELP})
    pooling: Literal["mean", "last"] = field(
        default="mean", metadata={"help": "Mean of a text's last hidden states, or that of its last token."}
    )
    max_tokens: int | None = field(
        default=None,
        metadata={"help": f"Cut texts here; default: {MAX_TOKENS}, or the model's positions if fewer."},
    )
    prompt: str = field(default="", metadata={"help": "Put before every text, for models trained with one."})
    normalize: bool = field(default=False, metadata={"help": "Scale every vector to length 1."})
    tokens_per_batch: int = field(
        default=16384,
        metadata={
            "help": "Texts of like length share a forward pass of at most this many tokens, padding counted."
        },
    )
    dtype: Dtype = field(default="auto", metadata={"help": DTYPE_HELP})
    device: str | None = field(default=None, metadata={"help": DEVICE_HELP})
    cache_dir: str | None = field(default=None, metadata={"help": CACHE_HELP})


class CausalLmEmbedder:
    """`encode(items)` goes through the store; the model is loaded when there is something to encode.

    Texts are padded on the right, so a token never sees padding and a text's vector does not depend on its
    batch. A text without any token is read as the end-of-text token alone.
    """

    def __init__(self, config: CausalLmConfig, seed: int = 0) -> None:
        check_positive(max_tokens=config.max_tokens, tokens_per_batch=config.tokens_per_batch)
        self.config = config
        self.model_files = ModelFiles.find(config.model, config.revision)
        self.notes: dict[str, Any] = {}

    def encode(self, items: ItemData) -> np.ndarray:
        """Embeddings float32 [N, hidden size]; nothing is drawn, so there is no seed."""
        config = self.config
        contents = Contents.of_texts(items.texts)
        embeddings_ND, self.notes = encode_stored(self, contents, config.cache_dir, items.work_dir)
        self.__dict__.pop("_model", None)  # what follows wants its memory
        return embeddings_ND

    def identity(self) -> dict[str, Any]:
        config = self.config
        return {
            "embedder": "causal_lm",
            "model": self.model_files.identity,
            "pooling": config.pooling,
            "max_tokens": config.max_tokens,
            "prompt": config.prompt,
            "normalize": config.normalize,
            "dtype": choose_dtype(config.dtype, choose_device(config.device)),
        }

    def encode_batches(self, values: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        tokens = self._tokenize(values)
        lengths = np.array([len(ids) for ids in tokens])
        for rows in batches_by_length(lengths, self.config.tokens_per_batch):
            yield rows, self._vectors([tokens[row] for row in rows])

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        tokenizer = self._tokenizer
        prompted = [self.config.prompt + text for text in texts]
        tokens = tokenizer(prompted, truncation=True, max_length=self._max_tokens)["input_ids"]
        if not all(tokens):
            stand_in = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
            if stand_in is None:
                raise InputError(
                    f"text_template: an item's text is empty and the tokenizer of {self.config.model} has "
                    "neither bos nor eos token to stand for it; set embedder_args.prompt"
                )
            tokens = [ids or [stand_in] for ids in tokens]
        return tokens

    def _vectors(self, tokens: list[list[int]]) -> np.ndarray:
        """Vectors float32 [b, d] of one batch, B tokens of width T after padding."""
        import torch

        lengths = torch.tensor([len(ids) for ids in tokens])
        ids_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in tokens], batch_first=True)
        mask_BT = torch.arange(ids_BT.shape[1]) < lengths[:, None]
        device = self._model.device
        ids_BT, mask_BT, lengths = ids_BT.to(device), mask_BT.to(device), lengths.to(device)
        with torch.inference_mode():
            # The mask changes nothing under causal attention, but some embedding models look both ways.
            hidden_BTD = self._model(
                input_ids=ids_BT, attention_mask=mask_BT.long(), use_cache=False
            ).last_hidden_state
            if self.config.pooling == "last":
                vectors = hidden_BTD[torch.arange(len(tokens), device=device), lengths - 1].float()
            else:
                masked_BTD = hidden_BTD.float() * mask_BT[..., None]
                vectors = masked_BTD.sum(dim=1) / lengths[:, None]
            if self.config.normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors.cpu().numpy()

    @cached_property
    def _tokenizer(self) -> Any:
        # Imported here, as torch is: they take ten seconds or more, arguments are checked before.
        from transformers import AutoTokenizer

        return self.model_files.load(AutoTokenizer.from_pretrained)

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModel

        device = choose_device(self.config.device)
        dtype = choose_dtype(self.config.dtype, device)
        return self.model_files.load(AutoModel.from_pretrained, dtype=dtype).to(device).eval()

    @cached_property
    def _max_tokens(self) -> int:
        positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        given = self.config.max_tokens
        if given is None:
            return min(MAX_TOKENS, positions or MAX_TOKENS)
        if positions is not None and given > positions:
            raise InputError(
                f"embedder_args.max_tokens: {given} is more than the {positions} positions of "
                f"{self.config.model}; give at most {positions}"
            )
        return given


def batches_by_length(lengths_N: np.ndarray, tokens_per_batch: int) -> Iterator[np.ndarray]:
    """Rows in batches, longest first, of at most `tokens_per_batch` tokens after padding (one row at
    least).
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    low = 0
    while low < len(order_N):
        rows = max(1, tokens_per_batch // max(1, int(lengths_N[order_N[low]])))
        yield order_N[low : low + rows]
        low += rows
