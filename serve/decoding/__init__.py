"""One trie, one beam: everything that turns a model into a ranked list. Never imports vllm or fastapi."""
