"""Item pictures through a CLIP-type encoder: CLIP, SigLIP, or any model with `get_image_features`."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

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
from sid_builder.embedding_store import CACHE_HELP, Contents, content_key, encode_stored
from sid_builder.errors import InputError
from sid_builder.processes import Processes


@dataclass(frozen=True)
class ClipImageConfig:
    """Which model looks at which pictures."""

    model: str = field(metadata={"help": "Directory or hub name of a CLIP or SigLIP model."})
    revision: str | None = field(default=None, metadata={"help": REVISION_HELP})
    column: str = field(
        default="image",
        metadata={"help": "Catalogue column with a picture's path, relative to the data's directory."},
    )
    missing: Literal["error", "zero", "text"] = field(
        default="error",
        metadata={
            "help": "An item without a picture: an error, a vector of zeros, or its text through the "
            "same model's text encoder."
        },
    )
    normalize: bool = field(default=False, metadata={"help": "Scale every vector to length 1 (zeros stay)."})
    batch_size: int = field(default=32, metadata={"help": "Pictures per forward pass."})
    dtype: Dtype = field(default="auto", metadata={"help": DTYPE_HELP})
    device: str | None = field(default=None, metadata={"help": DEVICE_HELP})
    cache_dir: str | None = field(default=None, metadata={"help": CACHE_HELP})


# What stands for an item in `Contents.values`: a picture's path, a text, or None for a vector of zeros.
Value = Path | str | None


class ClipImageEmbedder:
    """`encode(items)` goes through the store; the model is loaded when there is something to encode.

    A picture's key is the sha256 of its file, so equal pictures under many names are encoded once.
    """

    def __init__(self, config: ClipImageConfig, seed: int = 0) -> None:
        check_positive(batch_size=config.batch_size)
        self.config = config
        self.model_files = ModelFiles.find(config.model, config.revision)
        self.notes: dict[str, Any] = {}

    def encode(self, items: ItemData) -> np.ndarray:
        """Embeddings float32 [N, d] in the space pictures and texts share; nothing is drawn, so there is
        no seed.

        Raises:
            InputError: for a column that is not there, an item without a picture under `missing: error`,
            a file that is no picture.
        """
        values = self._values(items)
        shown = tqdm(values, desc="read pictures", unit="item", disable=not Processes.current().is_main)
        keys_N = np.array([_key(value) for value in shown], dtype="S32")
        sizes_N = np.array([isinstance(value, Path) for value in values], dtype=np.int64)
        contents = Contents(values, keys_N, sizes_N)
        embeddings_ND, self.notes = encode_stored(self, contents, self.config.cache_dir, items.work_dir)
        self.notes["without_picture"] = int((sizes_N == 0).sum())
        self.__dict__.pop("_model", None)  # what follows wants its memory
        return embeddings_ND

    def _values(self, items: ItemData) -> list[Value]:
        config, table = self.config, items.catalog.table
        if config.column not in table.column_names:
            raise InputError(
                f"embedder_args.column: {config.column!r} is no catalogue column; "
                f"use one of {table.column_names}"
            )
        root = items.data_dir or Path()
        paths = [root / str(name) if name else None for name in table.column(config.column).to_pylist()]
        values: list[Value] = [path if path is not None and path.is_file() else None for path in paths]
        missing = [index for index, value in enumerate(values) if value is None]
        if missing and config.missing == "error":
            first = missing[0]
            raise InputError(
                f"embedder_args.missing: {len(missing)} of {len(values)} items have no picture, first "
                f"item_id {items.catalog.item_ids[first]!r} ({paths[first] or 'no path'}); "
                "set missing to zero or text"
            )
        if config.missing == "text":
            for index in missing:
                values[index] = items.texts[index]
        return values

    def identity(self) -> dict[str, Any]:
        config = self.config
        return {
            "embedder": "clip_image",
            "model": self.model_files.identity,
            "normalize": config.normalize,
            "dtype": choose_dtype(config.dtype, choose_device(config.device)),
        }

    def encode_batches(self, values: Sequence[Value]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for kind, encode in (
            (Path, self._picture_vectors),
            (str, self._text_vectors),
            (type(None), self._zeros),
        ):
            rows = [row for row, value in enumerate(values) if isinstance(value, kind)]
            for low in range(0, len(rows), self.config.batch_size):
                batch = rows[low : low + self.config.batch_size]
                yield np.array(batch), encode([values[row] for row in batch])

    def _picture_vectors(self, paths: list[Any]) -> np.ndarray:
        with ThreadPoolExecutor() as threads:  # decoding releases the interpreter's lock
            pictures = list(threads.map(_read_picture, paths))
        pixels = self._image_processor(pictures, return_tensors="pt")["pixel_values"]
        return self._features("get_image_features", pixel_values=pixels)

    def _text_vectors(self, texts: list[Any]) -> np.ndarray:
        longest = self._model.config.text_config.max_position_embeddings
        # SigLIP was trained on texts padded to the full length; CLIP gives the same with any padding.
        tokens = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        )
        return self._features("get_text_features", **tokens)

    def _zeros(self, values: list[Any]) -> np.ndarray:
        return np.zeros((len(values), self._dim), dtype=np.float32)

    def _features(self, method: str, **inputs: Any) -> np.ndarray:
        import torch

        model = self._model
        inputs = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        with torch.inference_mode():
            features = getattr(model, method)(**inputs).pooler_output.float()
            if self.config.normalize:
                features = torch.nn.functional.normalize(features, dim=1)
        return features.cpu().numpy()

    @cached_property
    def _dim(self) -> int:
        from PIL import Image

        pixels = self._image_processor([Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]
        return self._features("get_image_features", pixel_values=pixels).shape[1]

    @cached_property
    def _model(self) -> Any:
        # Imported here: torch and transformers take ten seconds or more, arguments are checked before.
        from transformers import AutoModel

        device = choose_device(self.config.device)
        dtype = choose_dtype(self.config.dtype, device)
        model = self.model_files.load(AutoModel.from_pretrained, dtype=dtype)
        if not hasattr(model, "get_image_features"):
            raise InputError(
                f"embedder_args.model: {self.config.model} is a {type(model).__name__}, which has no picture "
                "encoder of CLIP's kind; give a CLIP or SigLIP model"
            )
        return model.to(device).eval()

    @cached_property
    def _image_processor(self) -> Any:
        # transformers 5.17 hands out `transformers.AutoImageProcessor` only where torchvision is installed,
        # though the class works on PIL without it; a test says when the plain import will do.
        from transformers.models.auto.image_processing_auto import AutoImageProcessor

        return self.model_files.load(AutoImageProcessor.from_pretrained, backend="pil")

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return self.model_files.load(AutoTokenizer.from_pretrained)


def _key(value: Value) -> bytes:
    if isinstance(value, Path):
        return content_key(b"picture\0" + value.read_bytes())
    return content_key(b"zeros\0" if value is None else b"text\0" + value.encode())


def _read_picture(path: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"embedder_args.column: {path} is no readable picture ({error}); replace the file, or "
            "remove it and set embedder_args.missing"
        ) from error
