"""The Bayes ceiling of the toy shop: the best any model can score, from the true posterior over the next
item.

Legend: K categories, P items per category, N items, T tastes.
"""

import numpy as np

from sid_builder.interactions import Interactions, Split
from sid_builder.sources.toy import ToyShop


def next_item_posterior(shop: ToyShop, history: np.ndarray) -> np.ndarray:
    """P(next item | history) under the generator, float64 [N]; items of the history have probability 0.

    The taste is unknown to the reader: it is inferred from every item bought, each given its category and
    what was left in it then. History must hold at least two items.
    """
    size = shop.args.items_per_category
    left_TKP = shop.taste_weight_TN.reshape(-1, shop.num_categories, size).copy()
    log_posterior_T = np.zeros(len(left_TKP))
    for item in history:
        category, slot = divmod(int(item), size)
        weight_TP = left_TKP[:, category]
        log_posterior_T += np.log(weight_TP[:, slot] / weight_TP.sum(axis=1))
        left_TKP[:, category, slot] = 0.0
    posterior_T = np.exp(log_posterior_T - log_posterior_T.max())
    posterior_T /= posterior_T.sum()
    share_TKP = left_TKP / left_TKP.sum(axis=2, keepdims=True)
    inside_KP = np.einsum("t,tkp->kp", posterior_T, share_TKP)
    before_last, last = (int(item) // size for item in history[-2:])
    return (inside_KP * shop.category_probability(before_last, last)[:, None]).reshape(-1)


def bayes_ceiling(shop: ToyShop, interactions: Interactions, split: Split, k: int = 10) -> dict[str, float]:
    """HR@k and NDCG@k of ranking by the true posterior, over all cases of a split. No model can expect more.

    Returns:
        `{"hr@k": ..., "ndcg@k": ...}`, history excluded (the generator never repeats an item).
    """
    cases = interactions.histories(split)
    hits = gain = 0.0
    for case in range(len(cases)):
        probability_N = next_item_posterior(shop, cases.history(case))
        rank = 1 + int((probability_N > probability_N[cases.targets_C[case]]).sum())
        if rank <= k:
            hits += 1
            gain += 1 / np.log2(rank + 1)
    return {f"hr@{k}": hits / len(cases), f"ndcg@{k}": gain / len(cases)}
