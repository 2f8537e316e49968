"""Template packs: YAML files that hold every word a model reads, apart from the items."""

import dataclasses
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prompts import PACKS
from sid_builder.cli import build_dataclass, load_yaml
from sid_builder.errors import InputError

# What a template may refer to. SID fields are spelled tokens, title fields are text, `query` is free text.
FIELDS = {"history_sids", "history_titles", "sid", "title", "query"}


@dataclass(frozen=True)
class Template:
    """One wording: what the user says and what the assistant answers."""

    user: str
    answer: str


@dataclass(frozen=True)
class PromptPack:
    """Every wording of every task, and the frame around them.

    The frame is a chat template: the tokenizer's own when `chat_template` is null, else this Jinja text,
    which vocabulary extension stores in the tokenizer, so that the endpoint frames a conversation as
    training did.
    """

    tasks: dict[str, list[Template]]
    system: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    history_separator: str = " "
    max_history: int = 20
    max_prompt_tokens: int = 512

    def __post_init__(self) -> None:
        if self.max_history < 1:
            raise InputError(f"max_history: {self.max_history!r}; at least 1 item is needed")
        for task, templates in self.tasks.items():
            if not templates:
                raise InputError(f"pack: task {task!r} has no templates; add one")
            for template in templates:
                for text in (template.user, template.answer):
                    names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
                    if names - FIELDS:
                        bad = sorted(names - FIELDS)[0]
                        raise InputError(f"pack: task {task!r} refers to {{{bad}}}; use {sorted(FIELDS)}")

    def templates(self, task: str) -> list[Template]:
        if task not in self.tasks:
            raise InputError(f"task: {task!r} has no templates in this pack; it has {sorted(self.tasks)}")
        return self.tasks[task]

    @staticmethod
    def load(name_or_path: str | Path) -> "PromptPack":
        """A pack by its registered name ("chat", "plain") or the path of a YAML file."""
        registered = PACKS.get(str(name_or_path))
        path = Path(__file__).parent / registered if registered else Path(name_or_path)
        if not path.is_file():
            raise InputError(
                f"prompt_pack: {name_or_path!r} is neither one of {sorted(PACKS)} nor a YAML file"
            )
        return build_dataclass(PromptPack, load_yaml(path), f"prompt_pack {path.name}")

    def save(self, path: Path) -> None:
        content = dataclasses.asdict(self)
        path.write_text(
            yaml.safe_dump(content, sort_keys=True, allow_unicode=True, width=110), encoding="utf-8"
        )
