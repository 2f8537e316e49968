"""The model of a planned run without its weights: built on torch's meta device from config.json alone.

It is wrapped by the very PEFT configuration that training uses, so its parameters are counted and not
computed. What autograd would keep of a batch is counted in the same way: the model's own forward pass runs on
fake tensors, which have shapes and dtypes and no memory.
"""

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sid_builder.errors import InputError

# bitsandbytes' nf4 with double quantisation (QLoRA, Dettmers et al. 2023, section 3): half a byte a weight, a
# byte per block of 64 for its scale, and an fp32 per 256 blocks.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class ModelShape:
    """Sizes that cost and memory follow from.

    Attributes:
        total, trainable: parameters. With adapters, `total` counts them and the SID rows as well.
        weight_bytes: of all parameters in the dtypes they are kept in, nf4 where the base is quantised.
        trainable_bytes: of the trainable ones, in theirs.
        linear: weights of the linear layers between embedding and head; `adapters`: of LoRA's A and B.
        identity: multiply-adds that DoRA spends a forward pass on the norms of its weights, whatever the
            batch (PEFT sends an identity matrix through every adapter).
        base_passes: 2 where DoRA has dropout: PEFT then runs each frozen layer on the dropped-out input too.
        base_learns, head_learns: whether the linear layers' own weights, and the head's, have a gradient.
            `rows`: that of the head is one of all its rows, since PEFT copies the new ones into it.
    """

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    total: int
    trainable: int
    weight_bytes: float
    trainable_bytes: int
    linear: int
    adapters: int
    identity: int
    base_passes: int
    base_learns: bool
    head_learns: bool
    rows: bool
    itemsize: int

    @property
    def trainable_itemsize(self) -> float:
        """Bytes of a trained parameter; 0 where nothing is trained."""
        return self.trainable_bytes / max(self.trainable, 1)

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, or of the head: vocabulary x hidden."""
        return self.vocabulary * self.hidden


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Modules built inside have parameters without memory."""
    with torch.device("meta"):
        yield


def config_model(path: str, dtype: torch.dtype | None) -> Any:
    """The causal LM that `path`'s config.json describes, on the meta device.

    Args:
        dtype: of its weights; None: as config.json says.

    Raises:
        InputError: when there is none.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model_name_or_path: {path!r} has no config.json within reach; a plan needs that and the "
            "tokenizer's files (tokenizer.json, tokenizer_config.json), no weights; without network, give a "
            "directory that holds them"
        ) from error
    with on_meta():
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype or config.dtype or torch.float32, attn_implementation="sdpa"
        )


def adapted(model: Any, peft_config: Any) -> Any:
    """The model wrapped by PEFT, still on the meta device; as it is without a configuration."""
    if peft_config is None:
        return model
    from peft import get_peft_model

    with on_meta():
        return get_peft_model(model, peft_config)


def plain(model: Any) -> Any:
    """The transformers model inside PEFT's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def shape_of(model: Any, quantised: bool = False) -> ModelShape:
    """Count a meta model.

    Args:
        quantised: count linear layers but the head in nf4, and what is trained in bfloat16 as TRL casts it
            (DoRA's magnitudes stay fp32).
    """
    inner = plain(model)
    config = inner.config.get_text_config()
    adapters, base, identity = 0, [], 0
    for name, module in inner.base_model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if ".lora_" in name:
            adapters += module.weight.numel()
        else:
            base.append(module.weight)
    dora = dropout = False
    for module in inner.modules():
        if getattr(module, "lora_magnitude_vector", None):
            dora = True
            dropout = dropout or any(isinstance(drop, nn.Dropout) for drop in module.lora_dropout.values())
            rank = sum(module.r.values())
            identity += rank * module.in_features * (module.in_features + module.out_features)
    quantised_ids = {id(weight) for weight in base} if quantised else set()
    weight_bytes, trainable_bytes, total, trainable = 0.0, 0, 0, 0
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        itemsize: float = parameter.element_size()
        if id(parameter) in quantised_ids:
            itemsize = NF4_BYTES
        elif quantised and parameter.requires_grad and "lora_magnitude_vector" not in name:
            itemsize = 2
        total, weight_bytes = total + size, weight_bytes + size * itemsize
        if parameter.requires_grad:
            trainable, trainable_bytes = trainable + size, trainable_bytes + int(size * itemsize)
    rows = any("trainable_tokens_delta" in name for name, p in model.named_parameters() if p.requires_grad)
    head = inner.get_output_embeddings()
    return ModelShape(
        architecture=config.model_type,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        total=total,
        trainable=trainable,
        weight_bytes=weight_bytes,
        trainable_bytes=trainable_bytes,
        linear=sum(weight.numel() for weight in base),
        adapters=adapters,
        identity=identity,
        base_passes=2 if dora and dropout else 1,
        base_learns=any(weight.requires_grad for weight in base),
        head_learns=rows or any(p.requires_grad for p in head.parameters()),
        rows=rows,
        itemsize=inner.dtype.itemsize,
    )


class _Kept:
    """A tensor in autograd's hands: gone when the graph lets go of it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class _FusedDropout(nn.Module):
    """Dropout as CUDA does it, keeping a mask of one byte a value; on CPU torch keeps a float."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.native_dropout(values, self.p, True)[0]


def saved_bytes(model: Any, rows: int, width: int, mixed: torch.dtype | None, masked: bool = True) -> int:
    """Bytes autograd keeps of one forward pass through embedding and layers, without checkpointing.

    Every storage counts once, weights not at all. Attention keeps queries, keys, values, output and one
    number a row, as the fused kernels do; dropout on attention weights, which they draw again, is left out.
    The model's parameters are replaced by fake ones: count them before.

    Args:
        mixed: autocast to this dtype.
        masked: whether the batch brings a 4-D mask.
    """
    inner = plain(model)
    with FakeTensorMode():
        _make_fake(model)
        for module in inner.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        model.train()
        weights = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

        def pack(tensor: torch.Tensor) -> _Kept:
            holder = _Kept(tensor)
            kept.add(holder)
            return holder

        ids = torch.zeros(rows, width, dtype=torch.long)
        # Without a mask, transformers would look for examples in the values of position_ids; here are none.
        mask = torch.zeros(rows, 1, width, width, dtype=inner.dtype) if masked else None
        autocast = torch.autocast("cpu", mixed) if mixed is not None else contextlib.nullcontext()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor), autocast:
            output = inner.base_model(
                input_ids=ids, position_ids=ids if masked else None, attention_mask=mask, use_cache=False
            ).last_hidden_state
        assert output.requires_grad
        storages = {_storage(holder.tensor): holder.tensor.untyped_storage().nbytes() for holder in kept}
        return sum(size for storage, size in storages.items() if storage not in weights)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _make_fake(model: nn.Module) -> None:
    """Replace parameters, buffers and dropout of a meta model in place; shared parameters stay shared."""
    made: dict[int, Any] = {}

    def fake(tensor: torch.Tensor) -> Any:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            made[id(tensor)] = empty
        return made[id(tensor)]

    for module in list(model.modules()):
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = fake(tensor)
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, _FusedDropout(child.p))
