"""Shapes of published models, as their config.json has them: checkpoints without weights."""

from transformers import AutoConfig

FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
    "head_dim",
)
# Type and FIELDS, with None where config.json leaves the width of a head to its default; parameters.
PUBLISHED = {
    "Qwen2.5-0.5B": (("qwen2", 896, 24, 14, 2, 4864, 151936, True, None), 494.0e6),
    "Qwen2.5-1.5B": (("qwen2", 1536, 28, 12, 2, 8960, 151936, True, None), 1.54e9),
    "Qwen2.5-7B": (("qwen2", 3584, 28, 28, 4, 18944, 152064, False, None), 7.62e9),
    "Qwen3-0.6B": (("qwen3", 1024, 28, 16, 8, 3072, 151936, True, 128), 0.596e9),
    "Qwen3-1.7B": (("qwen3", 2048, 28, 16, 8, 6144, 151936, True, 128), 1.72e9),
    "Llama-3.1-8B": (("llama", 4096, 32, 32, 8, 14336, 128256, False, None), 8.03e9),
    "Llama-3.2-1B": (("llama", 2048, 16, 32, 8, 8192, 128256, True, 64), 1.24e9),
}


def write_shape(path, architecture, *values):
    given = {name: value for name, value in zip(FIELDS, values, strict=True) if value is not None}
    AutoConfig.for_model(architecture, **given).save_pretrained(path)
    return path
