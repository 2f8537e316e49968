"""A sparse prior over items beside the model, at every node of the trie.

    linear:      score(prefix) = log((1 - w) P_model(prefix) + w P_prior(prefix))
    log_linear:  score(prefix) = (1 - w) log P_model(prefix) + w log P'_prior(prefix)

P_model is the product of the model's next-token probabilities over each step's legal tokens, so that no mass
leaves the trie; P_prior is the prior's mass on the leaves below the prefix. Both are distributions over the
legal leaves. A beam (`tree_beam.PriorBeam`) keeps prefixes for what the prior sees behind them, and so comes
to items the model would never have reached; nothing is re-ranked afterwards.

Linear is a distribution too: a prefix weighs exactly what the leaves below it do. Log-linear asks that both
agree. P'_prior keeps a twentieth for all leaves alike, or the prior could veto what it has never counted. A
leaf's score is exact, and so is the order of a list wide enough for all of them; a prefix's bounds from above
what the leaves below it weigh together (Hoelder's inequality), as no sum over them is at hand.

Legend: B requests, E nodes, P items (or leaves) with prior mass, of all requests together.
"""

from collections.abc import Sequence

import numpy as np
import torch

from serve.decoding.ranking import Form, ItemFilter, ItemPrior
from serve.decoding.trie_step import DeviceTrie
from sid_builder.errors import InputError

UNCOUNTED_SHARE = 0.05  # 0.01 to 0.2 made no difference on Beauty's valid


class PriorMass:
    """The priors of a batch of requests on any node of the trie, by two binary searches in prefix sums.

    Items off the shelf and items a filter takes away have no part in it; what is left is normalised to 1 in
    each request. Items of one SID add up.

    Attributes:
        used: the priors that count, None for a request without one, with weight 0 or with nothing left.
        weight_B: float64 on the trie's device, 0 where None is used.
        form: of all of them.

    Raises:
        InputError: for items that are not in the catalogue, and for priors of both forms.
    """

    def __init__(
        self,
        trie: DeviceTrie,
        priors: Sequence[ItemPrior | None],
        filters: Sequence[ItemFilter | None],
    ) -> None:
        self.trie = trie
        self.stride = trie.trie.num_leaves + 1
        self.used: list[ItemPrior | None] = [None] * len(priors)
        keys, masses = [np.empty(0, dtype=np.int64)], [np.empty(0)]
        for request, (prior, item_filter) in enumerate(zip(priors, filters, strict=True)):
            if prior is None or prior.weight == 0.0 or not len(prior.items_P):
                continue
            leaves_P, mass_P = self._on_leaves(prior, item_filter)
            if len(mass_P):
                self.used[request] = prior
                keys.append(request * self.stride + leaves_P)
                masses.append(mass_P / mass_P.sum())
        forms: list[Form] = sorted({prior.form for prior in self.used if prior is not None})
        if len(forms) > 1:
            raise InputError("prior: requests decoded together have both forms; give all of them one")
        self.form: Form = forms[0] if forms else "linear"
        keys_P, mass_P = np.concatenate(keys), np.concatenate(masses)
        order = np.argsort(keys_P, kind="stable")
        weights = [0.0 if prior is None else prior.weight for prior in self.used]
        below_P1 = np.concatenate([[0.0], np.cumsum(mass_P[order])])
        self.weight_B = torch.tensor(weights, dtype=torch.float64, device=trie.device)
        self._keys_P = torch.from_numpy(keys_P[order]).to(trie.device)
        self._below_P1 = torch.from_numpy(below_P1).to(trie.device)

    def _on_leaves(self, prior: ItemPrior, item_filter: ItemFilter | None) -> tuple[np.ndarray, np.ndarray]:
        """Leaves int64 and masses of the items that count."""
        leaf_of_item_N, items_P = self.trie.trie.leaf_of_item_N, prior.items_P
        if items_P[0] < 0 or items_P[-1] >= len(leaf_of_item_N):
            wrong = items_P[0] if items_P[0] < 0 else items_P[-1]
            raise InputError(
                f"prior: item_index {wrong} is outside the catalogue of {len(leaf_of_item_N)} items"
            )
        leaves_P = leaf_of_item_N[items_P].astype(np.int64)
        kept_P = (leaves_P >= 0) & (prior.mass_P > 0)
        if item_filter is not None:
            kept_P &= item_filter.keeps(items_P)
        return leaves_P[kept_P], prior.mass_P[kept_P]

    def of_nodes(
        self, nodes_E: torch.Tensor, request_E: torch.Tensor, level: int, form: Form
    ) -> torch.Tensor:
        """P_prior (linear; exactly 0 where there is none) or P'_prior of nodes of `level`, float64 [E]."""
        low, high = self.trie.leaf_ranges(nodes_E, level)
        first = request_E * self.stride
        before = torch.searchsorted(self._keys_P, first + low)
        # Neighbours in the tree share an edge, and most neighbours among candidates are such.
        after = before.roll(-1)
        apart = torch.ones_like(after, dtype=torch.bool)
        apart[:-1] = (first + high)[:-1] != (first + low)[1:]  # never across requests: their keys have a gap
        after[apart] = torch.searchsorted(self._keys_P, (first + high)[apart])
        mass = self._below_P1[after] - self._below_P1[before]
        if form == "linear":
            return mass
        return (1 - UNCOUNTED_SHARE) * mass + UNCOUNTED_SHARE * (high - low) / self.trie.trie.num_leaves


def joint_score(
    log_model: torch.Tensor, log_prior: torch.Tensor, weight: torch.Tensor, form: Form
) -> torch.Tensor:
    """The score above, float64; -inf where, under a linear mixture, neither has any mass.

    Args:
        weight: 0 to 1; broadcasts.
    """
    if form == "log_linear":
        return (1 - weight) * log_model + weight * log_prior
    return torch.logaddexp(torch.log1p(-weight) + log_model, weight.log() + log_prior)
