"""Models without a checkpoint: a tokenizer trained on the catalogue's own words and a decoder built from its
config.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sid_builder.errors import InputError

PAD, END_OF_TEXT = "<|pad|>", "<|end|>"


@dataclass(frozen=True)
class ScratchConfig:
    """A decoder from its config alone (`from_scratch:` in YAML)."""

    architecture: str = field(default="qwen3", metadata={"help": "model type: qwen2, qwen3 or llama"})
    hidden_size: int = field(default=128, metadata={"help": "width of the residual stream"})
    num_layers: int = field(default=4, metadata={"help": "decoder layers"})
    num_heads: int = field(default=4, metadata={"help": "attention heads; also key-value heads"})
    intermediate_size: int = field(default=384, metadata={"help": "width of the MLP"})
    tie_word_embeddings: bool = field(default=True, metadata={"help": "share input and output embeddings"})
    attention_dropout: float = field(
        default=0.0, metadata={"help": "dropout on attention weights while training"}
    )
    text_vocab_size: int = field(
        default=2048, metadata={"help": "most byte-pair tokens learnt from the catalogue's text"}
    )
    max_position_embeddings: int = field(default=1024, metadata={"help": "longest sequence"})


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer trained in memory; any text can be encoded, eos is `<|end|>`, pad is
    `<|pad|>`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END_OF_TEXT)


def build_model(
    config: ScratchConfig, vocab_size: int, eos_token_id: int, pad_token_id: int, seed: int
) -> Any:
    """A randomly initialised causal LM in fp32.

    Raises:
        InputError: for an unknown architecture or a width that the heads do not divide.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    if config.architecture not in ("qwen2", "qwen3", "llama"):
        raise InputError(
            f"from_scratch.architecture: {config.architecture!r} is not one of ['llama', 'qwen2', 'qwen3']"
        )
    if config.hidden_size % config.num_heads:
        raise InputError(
            f"from_scratch.hidden_size: {config.hidden_size} is no multiple of num_heads {config.num_heads}"
        )
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_dropout": config.attention_dropout,
        "eos_token_id": eos_token_id,
        "bos_token_id": None,
        "pad_token_id": pad_token_id,
    }
    if config.architecture == "qwen3":
        settings["head_dim"] = config.hidden_size // config.num_heads
    set_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(config.architecture, **settings))
