"""The one object that turns items and words into token ids: for SFT, RL, evaluation and the endpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jinja2 import TemplateError

from prompts.budget import FittedPrompt, beginning, fit
from prompts.pack import HISTORY_FIELDS, TEXT_FIELDS, USER_FIELDS, PromptPack, Template, fields_of
from prompts.vocabulary import SidTokenIds, SidVocabulary
from sid_builder.errors import InputError
from sid_builder.sid_index import SidIndex

PACK_FILE = "prompt_pack.yaml"
_MARK = "\u241e"  # stands for what varies while a frame is cut in two

Turn = tuple[str, int]  # what the user said, and the item that was shown in answer


@dataclass(frozen=True)
class Rendered:
    """Token ids of one prompt and of its answer (the answer ends with the pack's `answer_end`).

    `cut_from`: tokens of the prompt before a text of it was cut; 0: none was.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    cut_from: int = 0


@dataclass(frozen=True)
class SeqrecPieces:
    """Token ids that are the same in every seqrec prompt of one wording.

    SID tokens are whole tokens, so a prompt is exactly `before + sid + between + sid + ... + after`:
    histories of one user share a trunk, and evaluation renders without running the tokenizer.
    """

    before: list[int]
    between: list[int]
    after: list[int]


class PromptTemplate:
    """A pack bound to a tokenizer and a SID index.

    A prompt's history is the newest `max_history` items, and fewer when the prompt would exceed
    `max_prompt_tokens`: the oldest are dropped. A prompt that exceeds it with a single item has its texts
    (titles, descriptions, a user's words; not earlier turns) cut to as many characters each as fit, at the
    end of a word. Answers are never cut.
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
        try:
            self._frame(self.messages("a"), generation_prompt=True)
        except TemplateError as error:
            raise InputError(
                f"prompt_pack: the chat template cannot frame a request ({error}); mend its Jinja, or leave "
                "out the pack's `system` if the template takes none"
            ) from error

    def _frame(self, messages: list[dict[str, str]], generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            chat_template=self._chat_template,
            add_generation_prompt=generation_prompt,
            tokenize=False,
            **self.pack.chat_template_kwargs,
        )

    @cached_property
    def end_ids(self) -> list[int]:
        """What every SID ends with as an answer, by `answer_end` of the pack."""
        if self.pack.answer_end is not None:
            if "{eos}" in self.pack.answer_end and not self.tokenizer.eos_token:
                raise InputError(
                    f"pack: answer_end is {self.pack.answer_end!r}, and the tokenizer has no eos token; "
                    "write the end token's own text"
                )
            sids = self.index.semantic_ids
            return self._encode(sids.spell(0) + self._end_text)[int((sids.codes_NL[0] >= 0).sum()) :]
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        ids = self._encode(self._frame(turns, generation_prompt=False).partition(_MARK)[2])
        if not ids:
            raise InputError(
                "prompt_pack: the chat template puts nothing after an answer; end it with eos_token"
            )
        return ids[:1]

    @property
    def end_id(self) -> int:
        """The last token of an answer: where generation stops."""
        return self.end_ids[-1]

    @property
    def _end_text(self) -> str:
        return (self.pack.answer_end or "").format(eos=self.tokenizer.eos_token or "")

    def _answer(self, text: str) -> list[int]:
        """Ids of a whole answer. An end written as text is tokenised with it: ".\n" may be one token."""
        if self.pack.answer_end is not None:
            return self._encode(text + self._end_text)
        return [*self._encode(text), *self.end_ids]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def messages(self, user: str, turns: Sequence[Turn] = ()) -> list[dict[str, str]]:
        """Chat messages of a request, as an OpenAI client sends them.

        Args:
            turns: what was said and shown before, oldest first.
        """
        messages = [{"role": "system", "content": self.pack.system}] if self.pack.system else []
        for said, shown in turns:
            messages.append({"role": "user", "content": said})
            messages.append({"role": "assistant", "content": self.index.semantic_ids.spell(shown)})
        return [*messages, {"role": "user", "content": user}]

    def encode_prompt(self, user: str, turns: Sequence[Turn] = ()) -> list[int]:
        """Token ids of what the model reads before it answers a user who said `user`."""
        return self._encode(self._frame(self.messages(user, turns), generation_prompt=True))

    def spell_history(self, history: Sequence[int] | np.ndarray) -> str:
        spell = self.index.semantic_ids.spell
        return self.pack.history_separator.join(
            self.pack.history_sid.format(sid=spell(int(item))) for item in history
        )

    def title_history(self, history: Sequence[int] | np.ndarray, most: int | None = None) -> str:
        """Titles as the pack spells them, each cut to `most` characters; items without one are left out."""
        titles = [self.index.catalog.titles[int(item)] for item in history]
        return self.pack.title_separator.join(
            self.pack.history_title.format(title=title if most is None else beginning(title, most))
            for title in titles
            if title
        )

    def user_text(
        self,
        template: Template,
        history: Sequence[int] | np.ndarray = (),
        turns: Sequence[Turn] = (),
        fields: Mapping[str, str] | None = None,
    ) -> str:
        """The user's words, bounded as `fitted` bounds them."""
        return self.fitted(template, history, turns, fields).text

    def fitted(
        self,
        template: Template,
        history: Sequence[int] | np.ndarray = (),
        turns: Sequence[Turn] = (),
        fields: Mapping[str, str] | None = None,
    ) -> FittedPrompt:
        """A prompt in a wording, within the pack's budgets of items and tokens.

        Raises:
            InputError: when what may not be cut is over budget with a single item of history, or with none.
        """
        newest, texts = [int(item) for item in history[-self.pack.max_history :]], fields or {}

        def make(kept: int, most: int | None) -> FittedPrompt:
            text = self._fill(template.user, newest[len(newest) - kept :], texts, most)
            return FittedPrompt(text, self.encode_prompt(text, turns))

        return fit(make, len(newest), self.pack.max_prompt_tokens, template.user)

    def _fill(
        self, text: str, history: Sequence[int], fields: Mapping[str, str], most: int | None = None
    ) -> str:
        if most is not None:
            fields = {
                name: beginning(words, most) if name in TEXT_FIELDS else words
                for name, words in fields.items()
            }
        if "{history_sids}" in text:
            fields = {**fields, "history_sids": self.spell_history(history)}
        if "{history_titles}" in text:
            fields = {**fields, "history_titles": self.title_history(history, most)}
        return text.format(**fields)

    def item_fields(self, item: int) -> dict[str, str]:
        """Texts of an item by field; a field the catalogue has nothing for is left out."""
        row = self.index.catalog.row(item)
        words = row["description"].split()[: self.pack.max_description_words]
        texts = {
            "sid": self.index.semantic_ids.spell(item),
            "title": row["title"],
            "description": " ".join(words),
            "brand": row["brand"],
            "categories": ", ".join(row["categories"]),
            "price": "" if row["price"] is None else f"{row['price']:.2f}",
        }
        return {name: text for name, text in texts.items() if text}

    def history_fields(self, history: Sequence[int] | np.ndarray) -> set[str]:
        """The history fields that there is something to say for."""
        newest = [int(item) for item in history[-self.pack.max_history :]]
        titled = any(self.index.catalog.titles[item] for item in newest)
        return ({"history_sids"} if newest else set()) | ({"history_titles"} if titled else set())

    def usable_wordings(self, task: str, given: set[str], held_out: bool = False) -> list[int]:
        """Numbers of the task's wordings that refer to nothing but `given` (field names with a text)."""
        templates = self.pack.templates(task)
        return [n for n in self.pack.wordings(task, held_out) if templates[n].fields <= given]

    def request_wording(self, task: str, asked: str, history: Sequence[int] | np.ndarray = ()) -> int | None:
        """The first wording to train on that holds the words `asked` ("query", ...) and, where there is a
        history, that as well: how a conversation goes on, in training and at the endpoint.

        None where the task has no such wording.
        """
        given = self.history_fields(history)
        for wording in self.pack.wordings(task):
            fields = fields_of(self.pack.templates(task)[wording].user)
            if asked in fields and fields <= {asked, *given} and bool(given) == bool(fields & given):
                return wording
        return None

    def render(
        self,
        task: str,
        item: int | None,
        history: Sequence[int] | np.ndarray = (),
        wording: int = 0,
        turns: Sequence[Turn] = (),
        **texts: str,
    ) -> Rendered:
        """One example: the prompt of `task` in its `wording`-th template and the answer.

        Args:
            item: the item the template's fields `sid`, `title`, ... are about; None where it has none.
            texts: words of the user: `query`, `intention`, `preference`.

        Raises:
            InputError: for a field the template refers to and nothing is given for, naming the item.
        """
        template = self.pack.templates(task)[wording]
        fields = {**(self.item_fields(item) if item is not None else {}), **texts}
        missing = template.fields - HISTORY_FIELDS - fields.keys()
        if missing:
            name = sorted(missing)[0]
            whose = "the request"
            if item is not None and name not in USER_FIELDS:
                whose = f"item {self.index.catalog.item_ids[item]!r}"
            raise InputError(f"pack: task {task!r} refers to {{{name}}}, and {whose} has none; add it")
        prompt = self.fitted(template, history, turns, fields)
        return Rendered(prompt.ids, self._answer(template.answer.format(**fields)), prompt.cut_from)

    def prompt(
        self, task: str, history: Sequence[int] | np.ndarray = (), wording: int = 0, **texts: str
    ) -> list[int]:
        """Prompt ids alone, by default in the task's first wording: what RL and the endpoint ask."""
        return self.fitted(self.pack.templates(task)[wording], history, fields=texts).ids

    def seqrec_pieces(self, wording: int = 0) -> SeqrecPieces:
        """Token ids before the history, between two items and after the history of a seqrec prompt.

        They are cut from a whole prompt at its two SIDs: a tokenizer may spell a text differently at the
        start than behind a token (Llama's marks the first word).
        """
        if wording not in self._pieces:
            text = self.pack.templates("seqrec")[wording].user
            framed = self._frame(self.messages(text.format(history_sids=_MARK)), generation_prompt=True)
            before, mark, after = framed.partition(_MARK)
            assert mark, "seqrec's wordings hold {history_sids}"
            left, right = self.pack.history_sid.format(sid=_MARK).split(_MARK)
            sid = self.index.semantic_ids.spell(0)
            parts = [before + left, sid, right + self.pack.history_separator + left, sid, right + after]
            encoded = self.tokenizer("".join(parts), add_special_tokens=False, return_offsets_mapping=True)
            ends = np.cumsum([len(part) for part in parts])
            part_of = np.searchsorted(ends, [start for start, _ in encoded["offset_mapping"]], side="right")
            pieces: list[list[int]] = [[] for _ in parts]
            for token, part in zip(encoded["input_ids"], part_of, strict=True):
                pieces[part].append(token)
            assert pieces[1] == pieces[3] == self.sid_ids[0]
            self._pieces[wording] = SeqrecPieces(pieces[0], pieces[2], pieces[4])
        return self._pieces[wording]

    @cached_property
    def _pieces(self) -> dict[int, SeqrecPieces]:
        for template in self.pack.templates("seqrec"):
            once = template.user.count("{history_sids}") == 1
            if not once or fields_of(template.user) != {"history_sids"} or template.answer != "{sid}":
                raise InputError(
                    f"pack: task 'seqrec' has the wording {template.user!r} with the answer "
                    f"{template.answer!r}; it needs {{history_sids}} once and alone, answered by {{sid}}"
                )
        return {}

    @cached_property
    def sid_ids(self) -> SidTokenIds:
        """Token ids of every item's SID."""
        return SidTokenIds(self.vocabulary, self.index.semantic_ids.codes_NL)

    def bounded_history(self, history: Sequence[int] | np.ndarray, wording: int = 0) -> list[int]:
        """The newest items of a history that fit a seqrec prompt: at most `max_history`, at least 1."""
        pieces = self.seqrec_pieces(wording)
        newest = [int(item) for item in history[-self.pack.max_history :]]
        room = self.pack.max_prompt_tokens - len(pieces.before) - len(pieces.after) + len(pieces.between)
        for kept, item in enumerate(reversed(newest)):
            room -= len(self.sid_ids[item]) + len(pieces.between)
            if room < 0:
                if not kept:
                    raise InputError(
                        f"max_prompt_tokens: {self.pack.max_prompt_tokens} is too small for a seqrec prompt "
                        f"with a single item; raise it to {self.pack.max_prompt_tokens - room} or more"
                    )
                return newest[len(newest) - kept :]
        return newest

    def seqrec_prompt(self, history: Sequence[int] | np.ndarray, wording: int = 0) -> list[int]:
        """Same ids as `prompt("seqrec", history)` without the tokenizer: for evaluation and rollouts."""
        if not len(history):  # without a SID in between, the frame's two halves may share a token
            return self.prompt("seqrec", wording=wording)
        pieces = self.seqrec_pieces(wording)
        ids = list(pieces.before)
        for position, item in enumerate(self.bounded_history(history, wording)):
            ids += pieces.between if position else []
            ids += self.sid_ids[item]
        return ids + pieces.after
