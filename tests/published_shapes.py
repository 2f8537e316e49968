"""Shapes of published models, as their config.json has them: checkpoints without weights."""

from transformers import AutoConfig

# Published shapes: type, width, layers, heads, key-value heads, MLP, vocabulary, tied, head_dim; parameters.
PUBLISHED = {
    "Qwen2.5-0.5B": (("qwen2", 896, 24, 14, 2, 4864, 151936, True, None), 494.0e6),
    "Qwen2.5-1.5B": (("qwen2", 1536, 28, 12, 2, 8960, 151936, True, None), 1.54e9),
    "Qwen2.5-7B": (("qwen2", 3584, 28, 28, 4, 18944, 152064, False, None), 7.62e9),
    "Qwen3-0.6B": (("qwen3", 1024, 28, 16, 8, 3072, 151936, True, 128), 0.596e9),
    "Qwen3-1.7B": (("qwen3", 2048, 28, 16, 8, 6144, 151936, True, 128), 1.72e9),
    "Llama-3.1-8B": (("llama", 4096, 32, 32, 8, 14336, 128256, False, None), 8.03e9),
    "Llama-3.2-1B": (("llama", 2048, 16, 32, 8, 8192, 128256, True, 64), 1.24e9),
}


def write_shape(path, architecture, hidden, layers, heads, kv_heads, mlp, vocabulary, tied, head_dim):
    config = AutoConfig.for_model(
        architecture,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=mlp,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        **({"head_dim": head_dim} if head_dim else {}),
    )
    config.save_pretrained(path)
    return path
