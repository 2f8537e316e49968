"""From a request's items and words to a prompt, and from an engine's ranking to what clients see.

Legend: C candidates, L levels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np

from prompts.template import PromptTemplate, Turn
from serve.decoding.ranking import ItemFilter, Ranking
from serve.engine.item_filters import ItemFilters
from serve.engine.protocol import Engine
from serve.engine.recommendation import Recommendation, recommendations
from serve.engine.request_prompt import request_ids, search_wording
from serve.engine.titles import Mention, TitleIndex
from serve.http.errors import ApiError
from serve.http.limits import HttpLimits
from serve.http.metrics import Metrics
from serve.http.schema import Asked
from sid_builder.errors import InputError
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class Prompt:
    """Token ids, the item indices of the history that are in play, and the titles it was read from."""

    ids: Sequence[int]
    history: list[int]
    mentions: list[Mention]


@dataclass(frozen=True)
class Ranked:
    """An answer, best first: `candidates` items could have been in it. Items are read once."""

    items: Iterator[Recommendation]
    candidates: int
    beam_width: int

    def by_sid(self, n: int) -> list[list[Recommendation]]:
        """The items of each of the n best SIDs; items of one SID follow each other."""
        groups = groupby(self.items, key=lambda item: item.sid)
        return [list(group) for _, group in islice(groups, n)]


class Service:
    """One model directory served by one engine.

    Args:
        name: what clients call the model.
    """

    def __init__(
        self, name: str, template: PromptTemplate, engine: Engine, limits: HttpLimits, metrics: Metrics
    ) -> None:
        self.name = name
        self.template = template
        self.index: SidIndex = template.index
        self.engine = engine
        self.limits = limits
        self.metrics = metrics
        self.titles = TitleIndex(self.index)
        self.filters = ItemFilters(self.index)

    def check_model(self, name: str | None) -> None:
        """404 for a model that is not served here."""
        if name is not None and name != self.name:
            message = f"model: {name[:80]!r} is not served here; ask for {self.name!r}"
            raise ApiError(404, message, "model", "model_not_found")

    def item_indices(self, references: Sequence[str | int], field: str) -> list[int]:
        """Items by item_id, else by title.

        Raises:
            InputError: naming the first that is neither.
        """
        found = []
        for place, reference in enumerate(references):
            item = self.index.catalog.find(reference)
            if item is None:
                item = self.titles.item_of(str(reference))
            if item is None:
                raise InputError(
                    f"{field}[{place}]: {str(reference)[:80]!r} is neither an item_id nor a title of the "
                    f"catalogue of {self.index.catalog.num_items} items; check the key"
                )
            found.append(item)
        return found

    def prompt(
        self,
        text: str,
        references: Sequence[str | int] | None,
        resolve_titles: bool,
        turns: Sequence[Turn] = (),
        field: str = "text",
    ) -> Prompt:
        """The prompt of a request: its words and its history in the words of training.

        Without a history, the titles that stand in the text are one, where the model's pack has a wording for
        words behind a history.

        Args:
            field: what the words are called in the request, for errors.

        Raises:
            InputError: when nothing is asked, for unknown items, and for what does not fit in a prompt.
        """
        text = text.strip()
        self.limits.at_most(field, len(text), "max_text_chars")
        self.limits.at_most("history", len(references or ()), "max_history")
        history, mentions = self.item_indices(references or (), "history"), []
        if not text and (turns or not history):
            raise InputError(f"{field}: nothing is asked; give words, a history, or both")
        if references is None and resolve_titles:
            mentions = self.titles.mentions(text)
            history = [mention.item_index for mention in mentions]
            if search_wording(self.template, history) is None:
                history, mentions = [], []
        return Prompt(request_ids(self.template, text, history, turns), history, mentions)

    async def rank(self, prompt: Prompt, asked: Asked, k: int, limit_field: str = "k") -> Ranked:
        """Items for a prompt, best first: at least the k best SIDs, or all that may be answered.

        Raises:
            InputError: for limits passed, unknown items, filters that cannot be read.
            EngineBusy: when the engine has no room.
        """
        self.limits.at_most(limit_field, k, "max_items")
        beam_width = asked.beam_width or max(k, self.limits.beam_width)
        self.limits.at_most("beam_width", beam_width, "max_beam_width")
        if beam_width < k:
            raise InputError(f"beam_width: {beam_width} cannot find {k} items; give at least {k}")
        for field in ("exclude_items", "allow_items"):
            self.limits.at_most(field, len(getattr(asked, field) or ()), "max_history")
        exclude = self.item_indices(asked.exclude_items, "exclude_items")
        if asked.exclude_history and not prompt.mentions:
            exclude += prompt.history
        allow = asked.allow_items
        item_filter, candidates = self.filters.item_filter(
            asked.filters,
            np.array(exclude, dtype=np.int64),
            None if allow is None else np.array(self.item_indices(allow, "allow_items"), dtype=np.int64),
        )
        if not candidates:
            return Ranked(iter(()), 0, beam_width)
        ranking = await self.engine.recommend(prompt.ids, beam_width, item_filter)
        legal = self._legal(ranking, item_filter)
        self.metrics.items.inc(len(legal.items_K))
        return Ranked(recommendations(self.index, legal), candidates, beam_width)

    def _legal(self, ranking: Ranking, item_filter: ItemFilter | None) -> Ranking:
        """What an engine should never send is counted and withheld, whichever engine it is."""
        items_K = ranking.items_K
        legal_K = self.index.live_N[items_K]
        if item_filter is not None:
            legal_K = legal_K & item_filter.keeps(items_K)
        if legal_K.all():
            return ranking
        self.metrics.invalid.inc(int((~legal_K).sum()))
        return Ranking(
            items_K[legal_K],
            ranking.scores_K[legal_K],
            ranking.codes_BL,
            ranking.beam_scores_B,
            ranking.legal_B,
        )

    async def score(self, prompt: Prompt, items: Sequence[int]) -> np.ndarray:
        """Log-probs of the items' SID tokens, float32 [C, L], 0 after the end of a short SID."""
        codes_CL = np.asarray(self.index.semantic_ids.codes_NL[np.asarray(items)], dtype=np.int32)
        return await self.engine.score(prompt.ids, codes_CL)
