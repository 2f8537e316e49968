"""What the language model is told: a YAML of texts with fields, shipped in our words and replaceable."""

import json
from dataclasses import dataclass
from pathlib import Path

from prompts.intents import IntentKind
from prompts.pack import fields_of
from sid_builder.cli import build_dataclass, load_yaml
from sid_builder.errors import InputError
from sid_builder.item_text import check_template

SHIPPED = Path(__file__).parent / "prompts.yaml"
ANSWER_KEY = "texts"
OPTIONAL_FIELDS = {"number", "max_words", "title_rule"}
NEEDED_FIELDS: dict[IntentKind, set[str]] = {
    "query": {"item", "shape"},
    "intention": {"items", "item", "shape"},
    "preference": {"items", "shape"},
}


@dataclass(frozen=True)
class EndpointPrompts:
    """One text per kind of intent, what an item looks like in it, and bounds of the answers.

    `title_rule` is the sentence that forbids exact titles; null allows them. `item` is a template of
    `sid_builder.item_text`, cut to `max_item_words` words; a customer is their newest `max_items` items.
    """

    system: str
    item: str
    query: str
    intention: str
    preference: str
    title_rule: str | None = None
    max_words: int = 40
    max_item_words: int = 120
    max_items: int = 20

    def __post_init__(self) -> None:
        for name in ("max_words", "max_item_words", "max_items"):
            if getattr(self, name) < 1:
                raise InputError(f"prompts.{name}: {getattr(self, name)!r}; at least 1 is needed")
        check_template(self.item)
        for kind, needed in NEEDED_FIELDS.items():
            given = fields_of(self.text(kind))
            for name in sorted(given - needed - OPTIONAL_FIELDS):
                raise InputError(
                    f"prompts.{kind}: {{{name}}} is no field; use {sorted(needed | OPTIONAL_FIELDS)}"
                )
            for name in sorted(needed - given):
                raise InputError(f"prompts.{kind}: {{{name}}} is missing; the text cannot do without it")

    def text(self, kind: IntentKind) -> str:
        return {"query": self.query, "intention": self.intention, "preference": self.preference}[kind]

    def messages(self, kind: IntentKind, number: int, **items: str) -> list[dict[str, str]]:
        """Chat messages that ask for `number` texts about these items."""
        shape = json.dumps({ANSWER_KEY: ["..."] * number})
        asked = self.text(kind).format(
            number=number,
            max_words=self.max_words,
            title_rule=self.title_rule or "",
            shape=shape,
            **items,
        )
        return [{"role": "system", "content": self.system}, {"role": "user", "content": asked}]

    @staticmethod
    def load(path: str | None) -> "EndpointPrompts":
        """The shipped prompts, or those of a YAML file.

        Raises:
            InputError: naming the key that is missing or unknown, or the field a text lacks or cannot use.
        """
        return build_dataclass(EndpointPrompts, load_yaml(path or SHIPPED), "prompts")
