"""Constrained decoding, ranking metrics, evaluation, vLLM plugin and endpoint."""

DECODERS = {
    "tree_beam": "serve.decoding.tree_beam:decode",
    "generate": "serve.decoding.generate:decode",
}
