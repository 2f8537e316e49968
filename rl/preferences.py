"""Preference pairs from the model's own beams: the truth against the best items it wrongly places around it.

Legend: C cases, K beams.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from serve.decoding.ranking import ItemFilter, Ranking
from serve.decoding.recommender import Recommender
from serve.decoding.tree_beam import decode
from serve.evaluation.model_ranking import DEFAULT_BATCH_TOKENS, batches
from sid_builder.errors import InputError
from sid_builder.interactions import Histories


@dataclass(frozen=True)
class Preference:
    """One pair in token ids: both answers are SID tokens and the end-of-turn token, as
    `PromptTemplate.render` writes them.

    `rejected_rank` is the beam rank (0 is first) of the rejected SID; the item indices are for inspection.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_item: int
    rejected_item: int
    rejected_rank: int

    def row(self) -> dict[str, Any]:
        """The columns `rl.dpo_trainer` trains on."""
        return {key: getattr(self, key) for key in ("prompt_ids", "chosen_ids", "rejected_ids")}


def build_preferences(
    recommender: Recommender,
    cases: Histories,
    num_beams: int,
    num_negatives: int,
    max_pairs: int | None = None,
    seed: int = 0,
    only_hits: bool = False,
) -> list[Preference]:
    """Pairs from one constrained beam per case, in an order drawn by seed.

    The target is chosen, the `num_negatives` best beams with another SID are rejected. An item that shares
    the target's SID is never rejected: the model could not tell them apart.

    Args:
        num_beams: beam width; at least num_negatives + 1, so that a beam that holds the truth still has
            enough wrong ones.
        only_hits: leave out cases whose beam misses the target (there the pair teaches recall, not order).
        max_pairs: drawn by seed when there are more; None keeps all.

    Raises:
        InputError: when no pair could be built.
    """
    exclude_history = not cases.interactions.has_repeats
    pairs: list[Preference] = []
    for part, rankings in _beams(recommender, cases, num_beams, exclude_history):
        for case, ranking in zip(part, rankings, strict=True):
            pairs += _pairs_of(
                recommender,
                cases.history(case),
                int(cases.targets_C[case]),
                ranking,
                num_negatives,
                only_hits,
            )
    if not pairs:
        raise InputError("preferences: no pair could be built; lower --num_negatives, or unset --only_hits")
    order = np.random.default_rng(seed).permutation(len(pairs))[:max_pairs]
    return [pairs[row] for row in order]


def _beams(
    recommender: Recommender, cases: Histories, num_beams: int, exclude_history: bool
) -> Iterator[tuple[list[int], list[Ranking]]]:
    with tqdm(total=len(cases), desc="beams for preferences", unit="prompt") as bar:
        for part, prompts in batches(recommender, cases, DEFAULT_BATCH_TOKENS, num_beams):
            filters = [ItemFilter(exclude=cases.history(case)) for case in part] if exclude_history else None
            yield part, decode(recommender.model, prompts, recommender.trie, num_beams, filters)
            bar.update(len(part))


def _pairs_of(
    recommender: Recommender,
    history: np.ndarray,
    target: int,
    ranking: Ranking,
    num_negatives: int,
    only_hits: bool,
) -> list[Preference]:
    template, trie = recommender.template, recommender.index.trie
    wrong = (ranking.codes_BL != recommender.index.semantic_ids.codes_NL[target]).any(axis=1)
    if only_hits and wrong.all():
        return []
    prompt_ids = template.seqrec_prompt(history)
    chosen_ids = [*template.sid_ids[target], *template.end_ids]
    pairs = []
    for rank in np.flatnonzero(wrong)[:num_negatives].tolist():
        codes = ranking.codes_BL[rank]
        leaf = trie.leaf_of([int(code) for code in codes if code >= 0])
        assert leaf is not None
        rejected = int(trie.items_of_leaf(leaf)[0])
        rejected_ids = [*template.vocabulary.encode(codes), *template.end_ids]
        pairs.append(Preference(prompt_ids, chosen_ids, rejected_ids, target, rejected, rank))
    return pairs
