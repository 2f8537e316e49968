"""Template packs: YAML files that hold every word a model reads, apart from the items.

A pack is exact to the byte: frame, separators, the look of an item in a history, and what ends an answer are
all written in it, so that prompts an existing checkpoint was trained on can be brought along unchanged.
"""

import dataclasses
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from prompts import PACKS
from sid_builder.cli import build_dataclass, load_yaml
from sid_builder.errors import InputError

# What a template may refer to: SIDs as spelled tokens, columns of the catalogue as text, words of a user.
HISTORY_FIELDS = {"history_sids", "history_titles"}
ITEM_FIELDS = {"sid", "title", "description", "brand", "categories", "price"}
TELLTALE_FIELDS = {"sid", "title", "description"}
USER_FIELDS = {"query", "intention", "preference"}
TEXT_FIELDS = {"title", "description", "brand", "categories"} | USER_FIELDS  # may be cut to fit in a prompt
FIELDS = HISTORY_FIELDS | ITEM_FIELDS | USER_FIELDS


def fields_of(text: str) -> set[str]:
    """Names in braces of a template text; InputError for a brace without its partner."""
    try:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise InputError(f"pack: {text!r} is no template ({error}); double a brace to mean itself") from error


@dataclass(frozen=True)
class Template:
    """One wording: what the user says and what the assistant answers.

    A held-out wording is never trained on: it is there to measure what another way of asking costs.
    """

    user: str
    answer: str
    held_out: bool = False

    @cached_property
    def fields(self) -> set[str]:
        """Every field the wording refers to."""
        return fields_of(self.user) | fields_of(self.answer)


@dataclass(frozen=True)
class PromptPack:
    """Every wording of every task, and the frame around them.

    The frame is a chat template: the tokenizer's own when `chat_template` is null, else this Jinja text,
    which vocabulary extension stores in the tokenizer, so that the endpoint frames a conversation as
    training did.

    `answer_end` is what an answer ends with. Null: the first token the frame puts after an answer, the
    end-of-turn token. A text stands for itself, with `{eos}` for the tokenizer's end-of-text token:
    "\\n{eos}" is how MiniOneRec's targets end. `history_sid` and `history_title` are how one item looks in a
    history. Descriptions are cut to their first `max_description_words` words, and what is then over
    `max_prompt_tokens` as `PromptTemplate` says.
    """

    tasks: dict[str, list[Template]]
    system: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    answer_end: str | None = None
    history_sid: str = "{sid}"
    history_separator: str = " "
    history_title: str = "{title}"
    title_separator: str = ", "
    max_history: int = 20
    max_prompt_tokens: int = 512
    max_description_words: int = 40

    def __post_init__(self) -> None:
        for name in ("max_history", "max_prompt_tokens", "max_description_words"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)!r}; at least 1 is needed")
        for name, wanted in (("history_sid", "sid"), ("history_title", "title")):
            text = getattr(self, name)
            if fields_of(text) != {wanted} or text.count(f"{{{wanted}}}") != 1:
                raise InputError(f"pack: {name} is {text!r}; it must hold {{{wanted}}} once and nothing else")
        if self.answer_end is not None and (not self.answer_end or fields_of(self.answer_end) - {"eos"}):
            raise InputError(f"pack: answer_end is {self.answer_end!r}; give a text, {{eos}} or null")
        for task, templates in self.tasks.items():
            if all(template.held_out for template in templates):
                raise InputError(f"pack: task {task!r} has no template to train on; add one")
            if templates[0].held_out:
                raise InputError(
                    f"pack: task {task!r} holds out its first wording, which evaluation, RL and the endpoint "
                    "ask; put one that is trained first"
                )
            for template in templates:
                if template.fields - FIELDS:
                    bad = sorted(template.fields - FIELDS)[0]
                    raise InputError(f"pack: task {task!r} refers to {{{bad}}}; use {sorted(FIELDS)}")
                asked = fields_of(template.user)
                told = asked & fields_of(template.answer)
                if asked & HISTORY_FIELDS:  # item fields are the target's
                    told |= asked & TELLTALE_FIELDS
                if told:
                    raise InputError(
                        f"pack: task {task!r} asks with {{{sorted(told)[0]}}} in {template.user!r}, which "
                        "gives the answer away; take it out"
                    )

    def templates(self, task: str) -> list[Template]:
        if task not in self.tasks:
            raise InputError(
                f"task: {task!r} has no templates in this pack, which has {sorted(self.tasks)}; add wordings "
                f"under tasks.{task}, or give the task no weight"
            )
        return self.tasks[task]

    def wordings(self, task: str, held_out: bool = False) -> list[int]:
        """Numbers of a task's wordings to train on, or of those kept from training."""
        templates = self.templates(task)
        return [number for number, template in enumerate(templates) if template.held_out == held_out]

    def fields(self, tasks: Sequence[str]) -> set[str]:
        """Every field the wordings of these tasks refer to."""
        return {name for task in tasks for template in self.templates(task) for name in template.fields}

    def words(self) -> list[str]:
        """The pack's own words, one text per wording, fields left out."""
        users = [template.user for templates in self.tasks.values() for template in templates]
        return ["".join(text for text, *_ in string.Formatter().parse(user)) for user in users]

    @staticmethod
    def load(name_or_path: str | Path) -> "PromptPack":
        """A pack by its registered name ("chat", "instruction", "plain") or the path of a YAML file."""
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
