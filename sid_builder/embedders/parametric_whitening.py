"""Parametric whitening: a learnt linear map that spreads vectors out and brings co-occurring items together.

UniSRec (Hou et al. 2022) puts PW(x) = W (dropout(x) - b) before its recommender and learns W and b with it,
by in-batch InfoNCE at temperature .07. Here no recommender follows, so W is learnt by the same loss on what a
recommender would learn from: pairs of items near each other in train. A pair is drawn together, and the other
pairs of a step, its negatives, push everything else apart (alignment and uniformity, Wang and Isola 2020).
Being linear, the map serves items without interactions as well.

b stays the mean. InfoNCE does not see a shift of all cosines, and a learnt b uses that to damp them: on the
generated vectors of tests/sid_builder/test_fusion.py the mean pairwise cosine then ends at .7, not 0.

Legend: N items, D dimensions, P pairs, p pairs of one step.
"""

from dataclasses import dataclass, field

import numpy as np

from sid_builder.errors import InputError


@dataclass(frozen=True)
class ParametricWhiteningConfig:
    """How the map is learnt; temperature and dropout are UniSRec's."""

    window: int = field(
        default=3, metadata={"help": "Items at most this many places apart in a train sequence are a pair."}
    )
    steps: int = field(default=1000, metadata={"help": "Steps of Adam."})
    batch_pairs: int = field(
        default=1024, metadata={"help": "Pairs per step; the others of a step are each one's negatives."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Of Adam, constant."})
    temperature: float = field(default=0.07, metadata={"help": "Divides the cosines."})
    dropout: float = field(default=0.2, metadata={"help": "Share of input dimensions set to zero."})

    def check(self, prefix: str) -> None:
        """InputError for a value that cannot be used; `prefix` names the mapping it stands in."""
        for name, least in (("window", 1), ("steps", 1), ("batch_pairs", 2)):
            if getattr(self, name) < least:
                raise InputError(
                    f"{prefix}.{name}: {getattr(self, name)} is below {least}; give at least {least}"
                )
        for name in ("learning_rate", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(
                    f"{prefix}.{name}: {getattr(self, name)} is not above 0; give a small number"
                )
        if not 0 <= self.dropout < 1:
            raise InputError(f"{prefix}.dropout: {self.dropout} is outside 0..1; give 0.2, say")


def learn_whitening(
    vectors_ND: np.ndarray, pairs_P2: np.ndarray, config: ParametricWhiteningConfig, seed: int
) -> np.ndarray:
    """W float32 [D, D]: the whitened vectors are x @ W.T.

    Starts from the identity, so give centred float32 vectors that are whitened by PCA: the loss then has
    nothing to undo. Computed on the CPU: it takes seconds, and every process of a launch gets the same map.

    Args:
        pairs_P2: int64 rows of `vectors_ND` that belong together.
    """
    import torch
    from torch.nn import functional as F
    from tqdm import trange

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        weight_DD = torch.eye(vectors_ND.shape[1], requires_grad=True)
        optimizer = torch.optim.Adam([weight_DD], lr=config.learning_rate)
        for _ in trange(config.steps, desc="parametric whitening", unit="step", mininterval=1.0):
            pairs_p2 = pairs_P2[rng.integers(len(pairs_P2), size=config.batch_pairs)]
            first_pD, second_pD = (
                F.normalize(F.dropout(x_pD, config.dropout) @ weight_DD.T, dim=1)
                for x_pD in torch.from_numpy(vectors_ND[pairs_p2.T])
            )
            loss = _info_nce(first_pD, second_pD, torch.from_numpy(pairs_p2), config.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weight_DD.detach().numpy()


def _info_nce(first_pD, second_pD, items_p2, temperature: float):
    """Symmetric InfoNCE of unit vectors. A column that holds the row's own target item is left out: setting
    its logit to 0, as UniSRec's code does, would still count it.
    """
    import torch
    from torch.nn import functional as F

    logits_pp = first_pD @ second_pD.T / temperature
    own = torch.arange(len(logits_pp))
    losses = []
    for logits, items_p in ((logits_pp, items_p2[:, 1]), (logits_pp.T, items_p2[:, 0])):
        same_pp = items_p[:, None] == items_p[None, :]
        same_pp.fill_diagonal_(False)
        losses.append(F.cross_entropy(logits.masked_fill(same_pp, float("-inf")), own))
    return (losses[0] + losses[1]) / 2
