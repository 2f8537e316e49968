"""One line of an answer, as clients see it."""

from collections.abc import Iterator
from dataclasses import dataclass

from serve.decoding.ranking import Ranking
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class Recommendation:
    """One line of an answer; `score` is the log-prob of the item's SID over the whole vocabulary."""

    rank: int
    item_index: int
    item_id: str
    title: str
    sid: str
    score: float


def recommendations(index: SidIndex, ranking: Ranking) -> Iterator[Recommendation]:
    """The list of a ranking from rank 1 on, made as far as it is read."""
    catalog, spell = index.catalog, index.semantic_ids.spell
    pairs = zip(ranking.items_K.tolist(), ranking.scores_K.tolist(), strict=True)
    for rank, (item, score) in enumerate(pairs, start=1):
        yield Recommendation(rank, item, catalog.item_ids[item], catalog.titles[item], spell(item), score)
