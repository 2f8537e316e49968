"""Requests in words as cases of an evaluation, and the lists a model answers them with.

Legend: C cases, N items, K places of a list.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from prompts.budget import FittedPrompt, warn_of_cuts
from prompts.intents import Intent, IntentKind, Intents, IntentSplit
from prompts.template import PromptTemplate
from serve import DECODERS
from serve.decoding.ranking import ItemFilter
from serve.decoding.recommender import Recommender
from serve.evaluation.model_ranking import prompt_batches
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.registry import resolve
from sid_builder.sid_index import SidIndex

LIST_SIZE = 50
SEARCH_TASKS = ("itemsearch", "query2sid")


@dataclass(frozen=True)
class SearchCases:
    """Requests that ask for an item on the shelf.

    `exclude_history` leaves the items of a request's history out of every list. What was shown in a
    conversation is left out always: it has been turned down.
    """

    intents: Sequence[Intent]
    exclude_history: bool

    def __len__(self) -> int:
        return len(self.intents)

    @cached_property
    def targets_C(self) -> np.ndarray:
        return np.array([intent.item for intent in self.intents], dtype=np.int64)

    @cached_property
    def texts(self) -> list[str]:
        """What a search engine without a memory is given: all turns of a conversation, in order."""
        return [". ".join(intent.turns) for intent in self.intents]

    def excluded(self, case: int) -> np.ndarray:
        """Items that cannot be the answer, int64."""
        intent = self.intents[case]
        history = intent.history if self.exclude_history else ()
        return np.array([*intent.shown, *history], dtype=np.int64)


@dataclass(frozen=True)
class SearchLists:
    """What one system answers: `items_CK` int64, best first, -1 behind the end of a short list."""

    items_CK: np.ndarray
    seconds: float


def select_cases(
    intents: Intents,
    kinds: Sequence[IntentKind],
    split: IntentSplit,
    index: SidIndex,
    max_cases: int,
    seed: int,
    exclude_history: bool,
) -> SearchCases:
    """The requests of a split, or `max_cases` of them drawn without replacement (0: all), in order.

    Raises:
        InputError: when there are none.
    """
    chosen = [intent for intent in intents.select(kinds, split) if index.live_N[intent.item]]
    if not chosen:
        found = pc.value_counts(intents.table["split"]).to_pylist()
        counts = {entry["values"]: entry["counts"] for entry in found}
        raise InputError(
            f"split: {split!r} holds no {' or '.join(kinds)} whose item is on the shelf; the intents have "
            f"{counts}"
        )
    if 0 < max_cases < len(chosen):
        drawn = np.random.default_rng(seed).choice(len(chosen), max_cases, replace=False)
        chosen = [chosen[place] for place in np.sort(drawn)]
    return SearchCases(chosen, exclude_history)


def check_catalog(intents: Intents, catalog: Catalog, name: str) -> None:
    """InputError when the intents speak of an item that the catalogue has not."""
    known = pa.array(catalog.item_ids)
    for column in ("item_id", "shown", "history"):
        values = intents.table[column].combine_chunks()
        ids = values if column == "item_id" else pc.list_flatten(values)
        strange = ids.filter(pc.invert(pc.or_(pc.is_in(ids, known), pc.equal(ids, ""))))
        if len(strange):
            raise InputError(
                f"intents: {name} is of another catalogue: it speaks of {strange[0].as_py()!r}, which is "
                f"none of the model's {catalog.num_items} items; use intents made from the model's catalogue"
            )


def search_prompt(template: PromptTemplate, intent: Intent) -> FittedPrompt:
    """The prompt of a request, worded as in training: in the first wording of itemsearch, else of query2sid,
    that holds its words and its history.

    Raises:
        InputError: when the model's pack has no such wording, or the prompt is over its budget.
    """
    for task in SEARCH_TASKS:
        if task in template.pack.tasks:
            wording = template.request_wording(task, intent.kind, intent.history)
            if wording is not None:
                turns = list(zip(intent.turns[:-1], intent.shown, strict=True))
                words: dict[str, str] = {intent.kind: intent.text}
                asked = template.pack.tasks[task][wording]
                return template.fitted(asked, intent.history, turns, words)
    behind = " and a history" if intent.history else ""
    raise InputError(
        f"kinds: the model's prompt pack has no wording of {' or '.join(SEARCH_TASKS)} for {{{intent.kind}}}"
        f"{behind}; leave this kind out, or train with a pack that has one"
    )


def model_lists(
    recommender: Recommender, cases: SearchCases, num_beams: int, decoder: str, batch_tokens: int
) -> SearchLists:
    """Decode every request under the trie, without the items that are excluded for it. Warns once of all
    prompts that had a text cut to fit.

    Raises:
        InputError: from `search_prompt`, for unknown decoders, and settings the decoder cannot honour.
    """
    decode = resolve(DECODERS, decoder, "decoder")
    template = recommender.template
    fitted = [search_prompt(template, intent) for intent in cases.intents]
    warn_of_cuts((prompt.cut_from for prompt in fitted), template.pack.max_prompt_tokens)
    prompts = [prompt.ids for prompt in fitted]
    items_CK = np.full((len(cases), LIST_SIZE), -1, dtype=np.int64)
    started = time.monotonic()
    with tqdm(total=len(cases), desc="model", unit="request", mininterval=1.0, disable=None) as bar:
        for batch in prompt_batches(prompts, recommender.index.trie, batch_tokens, num_beams):
            filters = [ItemFilter(exclude=cases.excluded(case)) for case in batch]
            asked = [prompts[case] for case in batch]
            rankings = decode(recommender.model, asked, recommender.trie, num_beams, filters)
            for case, ranking in zip(batch, rankings, strict=True):
                listed = ranking.items_K[:LIST_SIZE]
                items_CK[case, : len(listed)] = listed
            bar.update(len(batch))
    return SearchLists(items_CK, time.monotonic() - started)
