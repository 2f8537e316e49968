"""vLLM: logits processor and server process. A leaf: only this package imports vllm."""
