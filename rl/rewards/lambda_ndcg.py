"""`lambda_ndcg`: LambdaRank's gradient as a reward: what swapping the hit with each miss would do to NDCG,
where they are close.

Burges, "From RankNet to LambdaRank to LambdaMART" (2010). `rule` and `ranking` push every miss of a group
down, also those far below the hit, and so mix up the tail that HR@50 counts; here a miss matters as long as
its score is near the hit's or above. Values sum to 0 over a group: use it with `scale_rewards: none`, so that
the advantage is the reward itself.
"""

import numpy as np

from rl.rewards.completions import Completions


def reward(completions: Completions) -> np.ndarray:
    """-delta_i * sigmoid(s_i - s_hit) for a miss, minus their sum for the hit, 0 without a hit; float64 [C].

    s are the beam's log-probs and delta_i = |1 / log2(rank_hit + 2) - 1 / log2(rank_i + 2)| with ranks from
    0.
    """
    _, slot_C = np.unique(completions.group_C, return_inverse=True)
    hit_C = completions.hit_C
    found_C = completions.any_in_group(hit_C)
    # Of the group's hit, brought to each of its rows; a beam is distinct, so there is one hit at most.
    rank_C = np.bincount(slot_C, weights=np.where(hit_C, completions.rank_C, 0))[slot_C]
    score_C = np.bincount(slot_C, weights=np.where(hit_C, completions.score_C, 0))[slot_C]
    delta_C = np.abs(1 / np.log2(rank_C + 2) - 1 / np.log2(completions.rank_C + 2))
    push_C = np.where(found_C & ~hit_C, delta_C / (1 + np.exp(score_C - completions.score_C)), 0.0)
    return np.where(hit_C, np.bincount(slot_C, weights=push_C)[slot_C], -push_C)
