"""The one object that turns items and words into token ids: for SFT, RL, evaluation and the endpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from prompts.pack import PromptPack, Template
from prompts.vocabulary import SidVocabulary
from sid_builder.errors import InputError
from sid_builder.sid_index import SidIndex

PACK_FILE = "prompt_pack.yaml"
_MARK = "\u241e"  # stands for the history while a frame is cut in two


@dataclass(frozen=True)
class Rendered:
    """Token ids of one prompt and of its answer (the answer ends with the end-of-turn token)."""

    prompt_ids: list[int]
    completion_ids: list[int]


class PromptTemplate:
    """A pack bound to a tokenizer and a SID index.

    A prompt's history is the newest `max_history` items, and fewer when the prompt would exceed
    `max_prompt_tokens`: the oldest are dropped, so truncation never reaches the answer.
    """

    def __init__(self, pack: PromptPack, tokenizer: Any, index: SidIndex) -> None:
        self.pack = pack
        self.tokenizer = tokenizer
        self.index = index
        self.vocabulary = SidVocabulary.of(tokenizer, index.semantic_ids)
        if pack.chat_template is None and not tokenizer.chat_template:
            raise InputError(
                "prompt_pack: the tokenizer has no chat template; use --prompt_pack plain, or one that has it"
            )
        self._chat_template = pack.chat_template or tokenizer.chat_template

    def _frame(self, messages: list[dict[str, str]], generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            chat_template=self._chat_template,
            add_generation_prompt=generation_prompt,
            tokenize=False,
            **self.pack.chat_template_kwargs,
        )

    @cached_property
    def end_id(self) -> int:
        """The end-of-turn token: what the frame puts right after an assistant's answer."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        after = self._frame(turns, generation_prompt=False).partition(_MARK)[2]
        ids = self.tokenizer.encode(after, add_special_tokens=False)
        if not ids:
            raise InputError(
                "prompt_pack: the chat template puts nothing after an answer; end it with eos_token"
            )
        return ids[0]

    def messages(self, user: str) -> list[dict[str, str]]:
        """Chat messages of a request, as an OpenAI client sends them."""
        system = [{"role": "system", "content": self.pack.system}] if self.pack.system else []
        return [*system, {"role": "user", "content": user}]

    def encode_prompt(self, user: str) -> list[int]:
        """Token ids of what the model reads before it answers a user who said `user`."""
        text = self._frame(self.messages(user), generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def spell_history(self, history: Sequence[int] | np.ndarray) -> str:
        return self.pack.history_separator.join(self.index.semantic_ids.spell(int(item)) for item in history)

    def user_text(self, template: Template, history: Sequence[int] | np.ndarray = (), **fields: str) -> str:
        """The user's words, with the history bounded to the pack's item and token budget."""
        history = list(history)[-self.pack.max_history :]
        while True:
            text = self._fill(template.user, history, fields)
            if len(history) <= 1 or len(self.encode_prompt(text)) <= self.pack.max_prompt_tokens:
                return text
            # Drop what is over budget in one go where that is known, else the oldest item.
            history = history[1:]

    def _fill(self, text: str, history: list[int], fields: dict[str, str]) -> str:
        if "{history_sids}" in text:
            fields = {**fields, "history_sids": self.spell_history(history)}
        if "{history_titles}" in text:
            fields = {
                **fields,
                "history_titles": ", ".join(self.index.catalog.titles[int(item)] for item in history),
            }
        return text.format(**fields)

    def render(
        self,
        task: str,
        item: int,
        history: Sequence[int] | np.ndarray = (),
        wording: int = 0,
        query: str = "",
    ) -> Rendered:
        """One example: the prompt of `task` in its `wording`-th template and the answer for `item`."""
        template = self.pack.templates(task)[wording]
        fields = {
            "sid": self.index.semantic_ids.spell(item),
            "title": self.index.catalog.titles[item],
            "query": query,
        }
        prompt_ids = self.encode_prompt(self.user_text(template, history, **fields))
        answer_ids = self.tokenizer.encode(template.answer.format(**fields), add_special_tokens=False)
        return Rendered(prompt_ids, [*answer_ids, self.end_id])

    def prompt(self, task: str, history: Sequence[int] | np.ndarray = (), query: str = "") -> list[int]:
        """Prompt ids alone, in the task's first wording: what RL, evaluation and the endpoint ask."""
        return self.encode_prompt(self.user_text(self.pack.templates(task)[0], history, query=query))

    @cached_property
    def _seqrec_frame(self) -> tuple[list[int], list[int], list[int]]:
        template = self.pack.templates("seqrec")[0]
        user = template.user.format(history_sids=_MARK, query="")
        framed = self._frame(self.messages(user), generation_prompt=True)
        before, mark, after = framed.partition(_MARK)
        assert mark, "seqrec's first wording must hold {history_sids}"
        encode = self.tokenizer.encode
        return tuple(
            encode(text, add_special_tokens=False) for text in (before, self.pack.history_separator, after)
        )

    def seqrec_pieces(self) -> tuple[list[int], list[int], list[int]]:
        """Token ids before the history, between two items and after the history of a seqrec prompt.

        SID tokens are whole tokens, so a prompt is exactly `before + sid + between + sid + ... + after`:
        histories of one user share a trunk, and evaluation renders without running the tokenizer. A test
        holds this against `prompt`.
        """
        return self._seqrec_frame

    @cached_property
    def sid_ids(self) -> list[list[int]]:
        """Token ids of every item's SID."""
        return [self.vocabulary.encode(codes) for codes in self.index.semantic_ids.codes_NL]

    def bounded_history(self, history: Sequence[int] | np.ndarray) -> list[int]:
        """The newest items of a history that fit a seqrec prompt: at most `max_history`, at least 1."""
        before, between, after = self.seqrec_pieces()
        newest = [int(item) for item in history[-self.pack.max_history :]]
        room = self.pack.max_prompt_tokens - len(before) - len(after) + len(between)
        for kept, item in enumerate(reversed(newest)):
            room -= len(self.sid_ids[item]) + len(between)
            if room < 0:
                return newest[len(newest) - max(kept, 1) :]
        return newest

    def seqrec_prompt(self, history: Sequence[int] | np.ndarray) -> list[int]:
        """Same ids as `prompt("seqrec", history)` without the tokenizer: for evaluation and rollouts."""
        if not len(history):  # without a SID in between, the frame's two halves may share a token
            return self.prompt("seqrec")
        before, between, after = self.seqrec_pieces()
        ids = list(before)
        for position, item in enumerate(self.bounded_history(history)):
            ids += between if position else []
            ids += self.sid_ids[item]
        return ids + after
