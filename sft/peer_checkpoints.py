"""Checkpoints of other projects on their way into a model directory: LoRA adapters, deltas, finished models.

*Adapter*: what PEFT saves, with the tokenizer beside it. LC-Rec's hold the whole input embedding and head
(`modules_to_save`) of a base whose vocabulary was extended to the tokenizer's length; the published base has
fewer rows.

*Delta*: a checkpoint of differences, target less base, tensor by tensor, in the delta's own dtype. Tensors
whose shape changed in training (input embedding and head, by the new tokens' rows) are the target's own: that
is how LC-Rec's `make_delta` writes them. The sum is made one tensor at a time in the delta's dtype, which is
what its `merge_delta` does, so the bits are the same.
"""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from sid_builder.artifact import write_json
from sid_builder.errors import InputError

EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")
# Buffers that transformers before 4.32 saved with LLaMA; computed from the config, never learnt.
_COMPUTED = "rotary_emb.inv_freq"


def open_tokenizer(directory: str, field: str) -> Any:
    """The tokenizer of a checkpoint, padding with eos if it names no token for that (LLaMA's do not).

    Raises:
        InputError: when there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{field}: {directory!r} has no tokenizer that opens ({_line(error)}); copy the one it was "
            "trained with, SID tokens included, beside its weights"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def open_model(name_or_path: str, dtype: str = "auto") -> Any:
    """A causal LM; InputError when it cannot be opened."""
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype)
    except (OSError, ValueError) as error:
        raise InputError(
            f"base_model: {name_or_path!r} cannot be opened ({_line(error)}); give a hub name or the path of "
            "a whole model"
        ) from error


def merged_adapter(base_model: str, adapter: str) -> Any:
    """Base with a foreign PEFT adapter merged in: computed in fp32, returned in the base's own dtype.

    An embedding and head that the adapter brings replace the base's, whatever number of rows that had. On a
    tied base they are two matrices, as PEFT trained them, and the result is untied.

    Raises:
        InputError: when the adapter is incomplete or was made for another base.
    """
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, load_peft_weights
    from peft.utils import set_peft_model_state_dict
    from transformers import AutoConfig

    path = Path(adapter)
    if not any((path / f"adapter_model.{suffix}").is_file() for suffix in ("safetensors", "bin")):
        raise InputError(
            f"adapter: {adapter} has no adapter_model.safetensors (or .bin); fetch the weights beside "
            "adapter_config.json"
        )
    model = open_model(base_model, "float32")
    kept = AutoConfig.from_pretrained(base_model).dtype
    config, weights = PeftConfig.from_pretrained(adapter), load_peft_weights(adapter, device="cpu")
    _fit_embeddings(model, config, weights, adapter)
    try:
        wrapped = get_peft_model(model, config)
    except ValueError as error:
        raise InputError(
            f"base_model: {base_model!r} does not fit the adapter {adapter} ({_line(error)}); give the "
            "model it was trained on"
        ) from error
    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    shapes = [
        # Newer PEFT writes an extended embedding several times, under names that nothing is loaded from.
        {n: list(tensor.shape) for n, tensor in tensors.items() if n in expected or not _is_embedding(n)}
        for tensors in (expected, weights)
    ]
    _compare(*shapes, base_model, f"the adapter {adapter}")
    set_peft_model_state_dict(wrapped, weights)
    return wrapped.merge_and_unload().to(kept or torch.float32)


def _is_embedding(name: str) -> bool:
    """Whether an adapter's tensor is a whole embedding or head: PEFT writes several names for one."""
    parts = name.split(".")
    return parts[-1] == "weight" and not {"embed_tokens", "lm_head"}.isdisjoint(parts) and "lora" not in name


def _fit_embeddings(model: Any, config: Any, weights: dict[str, torch.Tensor], adapter: str) -> None:
    """As many rows as the embeddings an adapter brings have, and a head of its own if they differ."""
    shapes = {tuple(tensor.shape) for name, tensor in weights.items() if _is_embedding(name)}
    if not shapes:
        return
    width = model.get_input_embeddings().weight.shape[1]
    if len(shapes) != 1 or {shape[1] for shape in shapes} != {width}:
        raise InputError(
            f"base_model: its embeddings are {width} wide, and those of the adapter {adapter} have shape "
            f"{sorted(shapes)}; give the model it was trained on"
        )
    model.resize_token_embeddings(shapes.pop()[0], mean_resizing=False)
    text_config = model.config.get_text_config()
    trained = [tensor for name, tensor in weights.items() if name.endswith(EMBEDDINGS)]
    same = len(trained) == 2 and torch.equal(*trained)
    if text_config.tie_word_embeddings and not same and not getattr(config, "ensure_weight_tying", False):
        text_config.tie_word_embeddings = False
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())


def local_directory(name_or_path: str, field: str) -> Path:
    """A checkpoint's files on this machine, fetched from the hub if it is no directory here."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name_or_path))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{field}: {name_or_path!r} is no directory and cannot be fetched ({_line(error)}); give a path "
            "or a hub name"
        ) from error


class WeightFiles:
    """The tensors of a checkpoint directory, memory-mapped: safetensors, or `.bin` files without code in
    them.
    """

    def __init__(self, directory: Path, field: str) -> None:
        for prefix, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
            files = sorted(directory.glob(f"{prefix}*.{suffix}"))
            if files:
                break
        else:
            raise InputError(
                f"{field}: {directory} has no model*.safetensors and no pytorch_model*.bin; fetch the weights"
            )
        listing = directory / f"{prefix}.{suffix}.index.json"
        if listing.is_file():
            named = set(json.loads(listing.read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(name for name in named if not (directory / name).is_file())
            if missing:
                raise InputError(
                    f"{field}: {directory} lacks {missing[0]} ({len(missing)} of {len(named)} files of "
                    "weights are missing); fetch it"
                )
            files = [directory / name for name in sorted(named)]
        opened = [_open_weights(path, field) for path in files]
        self.shards: list[list[str]] = [list(tensors.keys()) for tensors in opened]
        self._holder = {
            name: tensors for names, tensors in zip(self.shards, opened, strict=True) for name in names
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        holder = self._holder[name]
        return holder[name] if isinstance(holder, dict) else holder.get_tensor(name)

    def shapes(self) -> dict[str, list[int]]:
        """Shape of every tensor, read without the tensors."""
        return {
            name: list(holder[name].shape if isinstance(holder, dict) else holder.get_slice(name).get_shape())
            for name, holder in self._holder.items()
        }


def _open_weights(path: Path, field: str) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safe_open(path, framework="pt")
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError) as error:
        raise InputError(f"{field}: {path} cannot be read ({_line(error)}); fetch it again") from error


def shape_of(directory: Path, field: str) -> Any:
    """The causal LM a config describes, on the meta device: names and shapes without storage."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{field}: {directory} has no config.json that opens ({_line(error)}); fetch it"
        ) from error
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def write_delta_sum(base_model: Path, delta: Path, config: Any, output: Path) -> None:
    """Write base + delta as safetensors, in as many files as the delta has, with the delta's config.

    Memory: one file of the delta; the rest is memory-mapped. A head that a tied model's files hold as well is
    left out.

    Raises:
        InputError: when files are missing or damaged, or the shapes say that the delta is of another base.
    """
    base, differences = WeightFiles(base_model, "base_model"), WeightFiles(delta, "delta")
    tied = config.get_text_config().tie_word_embeddings
    skipped = (_COMPUTED, "lm_head.weight") if tied else (_COMPUTED,)
    base_shapes, delta_shapes = (
        {name: shape for name, shape in files.shapes().items() if not name.endswith(skipped)}
        for files in (base, differences)
    )
    compared = [
        # New tokens add rows; the width stays.
        {name: shape[1:] if name.endswith(EMBEDDINGS) else shape for name, shape in shapes.items()}
        for shapes in (base_shapes, delta_shapes)
    ]
    _compare(*compared, str(base_model), f"the delta {delta}")
    weight_map: dict[str, str] = {}
    total_size = 0
    for number, names in enumerate(tqdm(differences.shards, desc="base + delta", unit="file", disable=None)):
        tensors = {}
        for name in names:
            if name in delta_shapes:
                tensors[name] = differences[name].clone()
                if base_shapes[name] == delta_shapes[name]:
                    tensors[name] += base[name].to(tensors[name].dtype)
                total_size += tensors[name].nbytes
        file = f"model-{number + 1:05d}-of-{len(differences.shards):05d}.safetensors"
        save_file(tensors, output / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    listing = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    write_json(output / "model.safetensors.index.json", listing)
    config.save_pretrained(output)
    if (delta / "generation_config.json").is_file():
        shutil.copy(delta / "generation_config.json", output)


def _compare(base: dict[str, list[int]], other: dict[str, list[int]], base_model: str, what: str) -> None:
    """InputError at the first tensor that only one side has, or whose shape differs."""
    for name in [*base, *other]:
        shapes = [side.get(name) for side in (base, other)]
        if shapes[0] != shapes[1]:
            seen = ["no such tensor" if shape is None else f"shape {shape}" for shape in shapes]
            raise InputError(
                f"base_model: {base_model} does not fit {what}: {name} is {seen[0]} for the base, "
                f"{seen[1]} for the other; give the model it was trained on, and all of its files"
            )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
