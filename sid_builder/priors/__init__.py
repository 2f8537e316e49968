"""Sparse priors over the next item that need no language model: counts, other recommenders, rules of a shop.

A prior is a class called as `Thing(options, index)`; the annotation of `options` is the dataclass its options
are checked against. Any other class of that shape is used by its path, `my.module:Thing`:

    learn(train)         counts what train asks for; called again, it adds. It is given nothing of valid and
                         test, nor the sequences only they ask for.
    masses(histories)    scipy CSR float64 [B, N] of non-negative masses for histories of item indices, oldest
                         first. The unit is free; the sum of a row may say how much is known (its evidence).
    save(directory), load(directory)    what was learnt, in files of its own; never pickle.

`options` may check itself with `check(prefix)`. A prior that cannot add to what it has learnt says so with
`adds = False`.
"""

from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import scipy.sparse as sp

from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex

PRIORS = {
    "one_hop": "sid_builder.priors.one_hop:OneHopPrior",
    "popularity": "sid_builder.priors.popularity:PopularityPrior",
    "sasrec": "sid_builder.priors.sasrec:SASRecPrior",
}


class Prior(Protocol):
    """What a prior has to offer; see above."""

    adds: ClassVar[bool]

    def __init__(self, options: Any, index: SidIndex) -> None: ...

    def learn(self, train: Interactions) -> None: ...

    def masses(self, histories: list[np.ndarray]) -> sp.csr_matrix: ...

    def save(self, directory: Path) -> None: ...

    def load(self, directory: Path) -> None: ...
