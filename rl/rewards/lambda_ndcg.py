"""`lambda_ndcg`: LambdaRank's gradient as a reward: what swapping the hit with each miss would do to NDCG,
where they are close.

Burges, "From RankNet to LambdaRank to LambdaMART" (2010). `rule` and `ranking` push every miss of a group
down, also those far below the hit, and so mix up the tail that HR@50 counts; here a miss matters as long as
its score is near the hit's or above. Values sum to 0 over a group: use it with `scale_rewards: none`, so that
the advantage is the reward itself.
"""

import numpy as np
from scipy.special import expit

from rl.rewards.completions import Completions


def reward(completions: Completions) -> np.ndarray:
    """-delta_i * sigmoid(s_i - s_hit) for a miss, minus their sum for the hit, 0 without a hit; float64 [C].

    s are the policy's log-probs and delta_i = |1 / log2(rank_hit + 2) - 1 / log2(rank_i + 2)| with ranks from
    0 among the group's distinct SIDs. Copies of an SID share its value out, so that draws with repeats push
    each SID as a beam would.
    """
    slot_C, hit_C, copies_C = completions.slot_C, completions.hit_C, completions.copies_C
    found_C = completions.any_in_group(hit_C)

    def of_hit(value_C: np.ndarray) -> np.ndarray:
        """The hit's value brought to each row of its group (the mean of its copies), 0 without one."""
        return np.bincount(slot_C, weights=np.where(hit_C, value_C / copies_C, 0.0))[slot_C]

    gain_C = 1 / np.log2(completions.place_C + 2)
    push_C = np.abs(of_hit(gain_C) - gain_C) * expit(completions.score_C - of_hit(completions.score_C))
    push_C = np.where(found_C & ~hit_C, push_C / copies_C, 0.0)
    return np.where(hit_C, np.bincount(slot_C, weights=push_C)[slot_C] / copies_C, -push_C)
