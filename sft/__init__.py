"""Alignment tasks, vocabulary extension, LoRA/QLoRA/full SFT, merge."""

TASKS: dict[str, str] = {}
