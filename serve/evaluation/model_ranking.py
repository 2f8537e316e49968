"""Ranks of a model's targets over a split: for `serve.evaluate` and for callbacks on models in training.

Legend: C cases, N items, K beams.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from serve import DECODERS
from serve.decoding.fitted_prior import FittedPrior
from serve.decoding.ranking import ItemFilter, Ranking
from serve.decoding.recommender import Recommender
from serve.evaluation.metrics import COVERAGE_CUTOFF, RankedCases, metrics_of_ranks
from sid_builder.errors import InputError
from sid_builder.interactions import Histories
from sid_builder.registry import resolve
from sid_builder.trie import SidTrie

DEFAULT_BEAMS = 50
DEFAULT_BATCH_TOKENS = 4096  # 2,048 to 8,192 were fastest on 2 CPU cores; give a GPU more


def sample_cases(histories: Histories, max_cases: int, seed: int = 0) -> Histories:
    """All cases, or `max_cases` of them drawn without replacement, in their original order (0 means all)."""
    if not 0 < max_cases < len(histories):
        return histories
    chosen = np.random.default_rng(seed).choice(len(histories), max_cases, replace=False)
    return histories.take(np.sort(chosen))


def rank_targets(
    recommender: Recommender,
    histories: Histories,
    num_beams: int = DEFAULT_BEAMS,
    decoder: str = "tree_beam",
    score: str = "full",
    constraint: str = "trie",
    exclude_history: bool | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
    wording: int = 0,
    prior: FittedPrior | None = None,
) -> RankedCases:
    """Decode every case's seqrec prompt and find its target in the list.

    Under a free beam (`constraint="none"`) beams that are no SID are counted and dropped; the history is then
    filtered from the list, where the trie would have kept the beam from spending on it.

    Args:
        decoder: a name in `serve.DECODERS` or a path `my.module:decode`.
        exclude_history: leave the items of the whole given history out; None: if the data has no repeats.
        batch_tokens: prompt and beam tokens decoded at once, padding included; at least one case.
        wording: number of the seqrec template that asks, in the model's prompt pack.
        prior: fused with the model; the decoder is given `priors=` for it.

    Raises:
        InputError: for num_beams < 1, unknown decoders, settings the decoder cannot honour, and a prior that
            has counted what the cases ask for.
    """
    if num_beams < 1:
        raise InputError(f"num_beams: {num_beams}; at least 1 is needed")
    if exclude_history is None:
        exclude_history = not histories.interactions.has_repeats
    if prior is not None and prior.newer is not None:
        raise InputError(
            "prior: has counted new interactions, valid's and test's targets among them; fit it again without"
        )
    decode = resolve(DECODERS, decoder, "decoder")
    trie = recommender.index.trie
    free = constraint == "none"
    item_rank_C, sid_rank_C = (np.zeros(len(histories), dtype=np.int32) for _ in range(2))
    covered_N = np.zeros(trie.num_items, dtype=bool)
    totals = np.zeros(3, dtype=np.int64)
    targets_C = histories.targets_C
    started = time.monotonic()
    was_training = recommender.model.training
    recommender.model.eval()
    try:
        with tqdm(
            total=len(histories), desc="ranking", unit="case", disable=not progress, mininterval=1.0
        ) as bar:
            for cases, prompts in batches(recommender, histories, batch_tokens, num_beams, wording):
                filters = [_history_filter(histories, case) for case in cases] if exclude_history else None
                given = None if free else filters
                fused = {}  # other decoders need not know of priors
                if prior is not None:
                    fused["priors"] = prior.of_histories([histories.history(case) for case in cases])
                rankings = decode(
                    recommender.model, prompts, recommender.trie, num_beams, given, score, constraint, **fused
                )
                for row, (case, ranking) in enumerate(zip(cases, rankings, strict=True)):
                    items = ranking.items_K
                    if free and filters is not None:
                        items = items[filters[row].keeps(items)]
                    item_rank_C[case], sid_rank_C[case] = target_ranks(items, int(targets_C[case]), trie)
                    covered_N[items[:COVERAGE_CUTOFF]] = True
                    totals += _beam_counts(ranking)
                bar.update(len(cases))
    finally:
        recommender.model.train(was_training)
    seconds = time.monotonic() - started
    beams, invalid, duplicate = totals.tolist()
    removed = trie.num_items - trie.num_live
    return RankedCases(item_rank_C, sid_rank_C, covered_N, beams, invalid, duplicate, seconds, removed)


def flat_metrics(ranked: RankedCases) -> dict[str, float]:
    """Item-level metrics as one flat dict: for the logs of a training run."""
    return {
        **metrics_of_ranks(ranked.item_rank_C),
        "coverage@10": ranked.coverage,
        "invalid": ranked.invalid_rate,
    }


def batches(
    recommender: Recommender, histories: Histories, batch_tokens: int, num_beams: int, wording: int = 0
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Cases and prompts under a token budget, longest first: memory runs out at once or never."""
    template = recommender.template
    prompts = [template.seqrec_prompt(histories.history(case), wording) for case in range(len(histories))]
    for cases in prompt_batches(prompts, recommender.index.trie, batch_tokens, num_beams):
        yield cases, [prompts[case] for case in cases]


def prompt_batches(
    prompts: Sequence[Sequence[int]], trie: SidTrie, batch_tokens: int, num_beams: int
) -> Iterator[list[int]]:
    """Which prompts to decode together: under a token budget, longest first."""
    lengths = np.array([len(prompt) for prompt in prompts])
    order = np.argsort(-lengths, kind="stable")
    grown = min(num_beams, trie.num_leaves) * (trie.depth - 1)
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // (int(lengths[order[start]]) + grown))
        yield order[start : start + size].tolist()
        start += size


def target_ranks(items_K: np.ndarray, target: int, trie: SidTrie) -> tuple[int, int]:
    """Rank of the target item in a list, and of its SID among the list's distinct SIDs; 0: not in it."""
    if target < 0 or not len(items_K):
        return 0, 0
    leaves_K = trie.leaf_of_item_N[items_K]
    same = np.flatnonzero(leaves_K == trie.leaf_of_item_N[target])
    if not len(same):
        return 0, 0
    at = np.flatnonzero(items_K == target)
    # Items of one SID stand next to each other, so every change of leaf is a new SID.
    sid_rank = 1 + int(np.count_nonzero(np.diff(leaves_K[: same[0] + 1])))
    return (int(at[0]) + 1 if len(at) else 0), sid_rank


def _history_filter(histories: Histories, case: int) -> ItemFilter:
    history = histories.history(case)
    return ItemFilter(exclude=history[history >= 0].astype(np.int64))


def _beam_counts(ranking: Ranking) -> Sequence[int]:
    """Beams, those that are no SID of the catalogue, and legal ones that occur a second time."""
    legal_codes = ranking.codes_BL[ranking.legal_B]
    num_legal = len(legal_codes)
    distinct = len({row.tobytes() for row in legal_codes})
    return len(ranking.legal_B), len(ranking.legal_B) - num_legal, num_legal - distinct
