"""`beam_rank`: the NDCG of the list that evaluation would make of the group's SIDs, earned by its hit.

D(r) = 1 / log2(r + 1) of the truth's rank r, as SIDReasoner rewards beams. Ranks are those of items, by the
code that evaluates: better SIDs count with all their items, and so do items of the hit's own SID that are
more frequent in train.

One hit per group means that `scale_rewards: group` turns every value into the same advantage, `rule`'s; give
`scale_rewards: batch` or `none` for a hit to teach more the higher it stands.
"""

import numpy as np

from rl.rewards.completions import Completions
from serve.decoding.ranking import ItemFilter, Ranking
from serve.evaluation.model_ranking import target_ranks


def reward(completions: Completions) -> np.ndarray:
    """1 / log2(r + 1) with r from 1 for the hit and its copies, 0 for everything else; float64 [C]."""
    slot_C, place_C, trie = completions.slot_C, completions.place_C, completions.index.trie
    order = np.lexsort((place_C, slot_C))
    order = order[completions.leaf_C[order] >= 0]
    first = np.ones(len(order), dtype=bool)  # of the copies of an SID
    first[1:] = (np.diff(place_C[order]) != 0) | (np.diff(slot_C[order]) != 0)
    distinct = order[first]
    rank_S = np.zeros(slot_C.max(initial=-1) + 1, dtype=np.int64)
    for slot in np.unique(slot_C[completions.hit_C]):
        rows = distinct[slice(*np.searchsorted(slot_C[distinct], [slot, slot + 1]))]
        seen = np.asarray(completions.history_C[rows[0]], dtype=np.int64)
        shown = ItemFilter(exclude=seen) if completions.exclude_history else None
        items_K = Ranking.from_leaves(
            trie, completions.leaf_C[rows], completions.score_C[rows], shown
        ).items_K
        rank_S[slot], _ = target_ranks(items_K, int(completions.target_item_C[rows[0]]), trie)
    # A hit has rank 0 only if its item is left out of the list.
    earns_C = completions.hit_C & (rank_S[slot_C] > 0)
    return np.where(earns_C, 1 / np.log2(np.maximum(rank_S, 1)[slot_C] + 1), 0.0)
