"""The weight of a prior, learnt on valid: every weight is tried in ONE walk of the model per case.

A few beams descend together, from the model alone to the prior alone. For any leaf one of them ends at,
P_model and P_prior are known, so its score under any weight is; their union is ranked once per weight. That
is the list a beam with this weight finds, up to leaves that only a weight in between would have kept.

Legend: C cases, F forms, W weights tried, U leaves of the union, K items of its list.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from tqdm import tqdm

from serve.decoding.fitted_prior import Feature, PriorWeights, buckets_of, item_prior
from serve.decoding.prior_mass import PriorMass, joint_score
from serve.decoding.ranking import Form, ItemFilter, ItemPrior
from serve.decoding.recommender import Recommender
from serve.decoding.tree_beam import PriorBeam
from serve.decoding.tree_model import TreeModel
from serve.evaluation.metrics import gains, hits
from serve.evaluation.model_ranking import prompt_batches
from serve.evaluation.report import figure_text, markdown_table
from sid_builder.interactions import Histories
from sid_builder.trie import SidTrie

FORMS: tuple[Form, ...] = ("linear", "log_linear")
WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_BEAMS: tuple[tuple[Form, float], ...] = (
    ("linear", 0.0),
    ("linear", 0.5),
    ("log_linear", 0.7),
    ("linear", 1.0),
)
_FEATURES: tuple[Feature, ...] = ("history_length", "last_item_count", "evidence")
_BUCKETS = 4


def ranks_by_weight(
    recommender: Recommender,
    cases: Histories,
    masses: sp.csr_matrix,
    num_beams: int,
    batch_tokens: int,
    exclude_history: bool,
) -> np.ndarray:
    """Rank of every case's target under each of `FORMS` and `WEIGHTS`, int32 [C, F, W]; 0: not in the list.

    Args:
        masses: the prior's, [C, N].
    """
    trie, histories = recommender.trie, [cases.history(case) for case in range(len(cases))]
    prompts = [recommender.template.seqrec_prompt(history) for history in histories]
    model = TreeModel(recommender.model, trie, "trie")
    rank_CFW = np.zeros((len(cases), len(FORMS), len(WEIGHTS)), dtype=np.int32)
    with tqdm(total=len(cases), desc="weighing", unit="case", mininterval=1.0) as bar:
        for batch in prompt_batches(prompts, trie.trie, batch_tokens, len(_BEAMS) * num_beams):
            filters = [
                ItemFilter(exclude=histories[case].astype(np.int64)) if exclude_history else None
                for case in batch
            ]
            prior = PriorMass(trie, [item_prior(masses, case, 1.0) for case in batch], filters)
            beams = [
                PriorBeam(num_beams, prior, weight * prior.weight_B, form, normalised=True)
                for form, weight in _BEAMS
            ]
            leaves_BU = torch.cat(model.descend([prompts[case] for case in batch], filters, beams), dim=1)
            log_model_BU = torch.cat([beam.model_BK for beam in beams], dim=1)
            score_FWBU = _scores(prior, leaves_BU, log_model_BU)
            for row, case in enumerate(batch):
                leaves_U, first_U = np.unique(leaves_BU[row].cpu().numpy(), return_index=True)
                found_U = leaves_U >= 0
                rank_CFW[case] = _target_ranks(
                    trie.trie,
                    leaves_U[found_U],
                    score_FWBU[:, :, row, first_U[found_U]],
                    int(cases.targets_C[case]),
                    filters[row],
                    prior.used[row],
                )
            bar.update(len(batch))
    return rank_CFW


def _scores(prior: PriorMass, leaves_BU: torch.Tensor, log_model_BU: torch.Tensor) -> np.ndarray:
    """Scores of leaves under every form and weight, float32 [F, W, B, U] as a beam has them."""
    request = torch.arange(len(leaves_BU), device=leaves_BU.device).repeat_interleave(leaves_BU.shape[1])
    weights = torch.tensor(WEIGHTS, dtype=torch.float64, device=leaves_BU.device)
    weight_WB1 = weights[:, None, None] * prior.weight_B[:, None]
    scores = []
    for form in FORMS:
        mass = prior.of_nodes(leaves_BU.flatten().clamp(min=0), request, prior.trie.depth, form)
        scores.append(joint_score(log_model_BU, mass.view_as(log_model_BU).log(), weight_WB1, form))
    return torch.stack(scores).float().cpu().numpy()


def _target_ranks(
    trie: SidTrie,
    leaves_U: np.ndarray,
    score_FWU: np.ndarray,
    target: int,
    item_filter: ItemFilter | None,
    prior: ItemPrior | None,
) -> np.ndarray:
    """Rank of an item in the lists that leaves (ascending) and their scores make, int64 [F, W]; 0: not there.

    Items of one SID stand in the order of `Ranking.from_leaves`: by the prior where it has weight.
    """
    leaf_K, items_K = trie.items_of_leaves(leaves_U)
    if item_filter is not None:
        kept_K = item_filter.keeps(items_K)
        leaf_K, items_K = leaf_K[kept_K], items_K[kept_K]
    if target not in items_K:
        return np.zeros(score_FWU.shape[:2], dtype=np.int64)
    at_W = np.full(len(WEIGHTS), np.flatnonzero(items_K == target)[0])
    if prior is not None:
        by_prior_K = items_K[np.lexsort((-prior.mass_of(items_K), leaf_K))]
        at_W[np.array(WEIGHTS) > 0] = np.flatnonzero(by_prior_K == target)[0]
    score_FWK = score_FWU[..., leaf_K]
    own_FW1 = np.take_along_axis(score_FWK, np.broadcast_to(at_W[:, None], (len(FORMS), len(at_W), 1)), -1)
    before_WK = np.arange(len(items_K)) < at_W[:, None]
    ahead_FWK = (score_FWK > own_FW1) | ((score_FWK == own_FW1) & before_WK)
    return np.where(own_FW1[..., 0] > -np.inf, 1 + ahead_FWK.sum(axis=-1), 0)


@dataclass(frozen=True)
class LearntWeights:
    """Weights learnt on all cases; `table` says what such weights are worth on cases they have not seen: its
    rows hold list, form, weights, ndcg@10 and hr@10.
    """

    weights: PriorWeights
    table: list[dict[str, Any]]


def learn_weights(
    rank_CFW: np.ndarray, features: dict[str, np.ndarray], seed: int, forms: Sequence[Form] = FORMS
) -> LearntWeights:
    """The form and the weight with the best mean NDCG@10, for all cases or for each bucket of a feature.

    Cases are cut into two halves at random, and each is judged with the weights learnt on the other. One
    weight under the first form is what has to be beaten: another form, and quartiles of a feature, are taken
    only where they beat what was taken so far by more than a standard error of the difference.
    """
    half_C = np.random.default_rng(seed).permutation(len(rank_CFW)) % 2 == 0
    plain_C, alone_C = rank_CFW[:, 0, 0], rank_CFW[:, 0, -1]
    table = [_row("model alone", "", "0", plain_C), _row("prior alone", "", "1", alone_C)]
    chosen: PriorWeights | None = None
    judged_C = plain_C
    trials: list[tuple[Form, Feature]] = [(form, "none") for form in forms]
    trials += [(form, feature) for form in forms for feature in _FEATURES]
    for form, feature in trials:
        rank_CW = rank_CFW[:, FORMS.index(form)]
        weights = _best_weights(rank_CW, features, form, feature)
        ranks_C = _judged(rank_CW, features, form, feature, half_C)
        name = "one weight" if feature == "none" else f"by {feature}"
        table.append(_row(name, form, ", ".join(f"{weight:g}" for weight in weights.weights), ranks_C))
        better_C = gains(ranks_C, 10) - gains(judged_C, 10)
        if chosen is None or better_C.mean() > better_C.std() / np.sqrt(len(better_C)):
            chosen, judged_C = weights, ranks_C
    assert chosen is not None
    return LearntWeights(chosen, table)


def _best_weights(
    rank_CW: np.ndarray, features: dict[str, np.ndarray], form: Form, feature: Feature
) -> PriorWeights:
    """The lowest of the best weights in each bucket."""
    edges: list[float] = []
    if feature != "none":
        # Cuts that are values themselves leave no bucket empty.
        cuts = np.quantile(features[feature], np.arange(1, _BUCKETS) / _BUCKETS, method="higher")
        edges = [float(cut) for cut in np.unique(cuts) if cut > features[feature].min()]
    bucket_C, gain_CW = buckets_of(features, feature, edges), gains(rank_CW, 10)
    best = [gain_CW[bucket_C == bucket].mean(axis=0).argmax() for bucket in range(len(edges) + 1)]
    return PriorWeights([WEIGHTS[at] for at in best], form, feature, edges)


def _judged(
    rank_CW: np.ndarray, features: dict[str, np.ndarray], form: Form, feature: Feature, half_C: np.ndarray
) -> np.ndarray:
    """Ranks [C] of each half's targets under the weights learnt on the other half."""
    rank_C = np.zeros(len(rank_CW), dtype=rank_CW.dtype)
    for own_C in (half_C, ~half_C):
        theirs = {name: values_C[~own_C] for name, values_C in features.items()}
        weights = _best_weights(rank_CW[~own_C], theirs, form, feature)
        own = {name: values_C[own_C] for name, values_C in features.items()}
        column = np.searchsorted(WEIGHTS, weights.of(own))
        rank_C[own_C] = rank_CW[np.flatnonzero(own_C), column]
    return rank_C


def _row(name: str, form: str, weights: str, rank_C: np.ndarray) -> dict[str, Any]:
    scores = {"ndcg@10": float(gains(rank_C, 10).mean()), "hr@10": float(hits(rank_C, 10).mean())}
    return {"list": name, "form": form, "weights": weights, **scores}


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """The table of `learn_weights`."""
    head = ["list", "form", "weight of the prior", "NDCG@10", "HR@10"]
    body = [
        [row["list"], row["form"], row["weights"], figure_text(row["ndcg@10"]), figure_text(row["hr@10"])]
        for row in table
    ]
    return markdown_table(head, body)
