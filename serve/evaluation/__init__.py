"""Ranking metrics, floors, ranks of models. `sft` and `rl` borrow it, so it never imports vllm or fastapi."""
