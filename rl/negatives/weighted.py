"""Items drawn by weight without replacement, in a time that does not grow with the catalogue.

Legend: N items, M leaves, B beams.
"""

from typing import ClassVar

import numpy as np

from rl.preference_cases import PromptCase
from sid_builder.errors import InputError
from sid_builder.trie import SidTrie

_ROUNDS = 8  # of draws by the cumulative weights, before what is left is weighed leaf by leaf


class WeightedNegatives:
    """SIDs drawn one after the other, each by the weights of the items that are still allowed: an SID that
    several items share is as likely as they are together. Items of the case's history are not allowed.

    Args:
        name: of the source, for messages.
        weights_N: float64, at least 0.

    Raises:
        InputError: when no item on the shelf has a weight.
    """

    needs_beam: ClassVar[bool] = False

    def __init__(self, name: str, weights_N: np.ndarray, trie: SidTrie) -> None:
        self._name, self._trie = name, trie
        self._weights_N = np.where(trie.leaf_of_item_N >= 0, weights_N, 0.0)
        self._sum_N = np.cumsum(self._weights_N)
        if not self._sum_N[-1]:
            raise InputError(f"negatives.{name}: no item on the shelf can be drawn; use random")
        self._last = int(np.flatnonzero(self._weights_N)[-1])

    def draw(
        self, case: PromptCase, beam_B: np.ndarray, taken: set[int], count: int, rng: np.random.Generator
    ) -> list[int]:
        leaf_of_item_N = self._trie.leaf_of_item_N
        refused = taken | {int(leaf) for leaf in leaf_of_item_N[case.history] if leaf >= 0}
        found: list[int] = []
        # A draw that is refused is drawn again: so the others are drawn by their weights.
        for _ in range(_ROUNDS):
            points = rng.random(2 * count) * self._sum_N[-1]
            items = np.minimum(np.searchsorted(self._sum_N, points, side="right"), self._last)
            for leaf in leaf_of_item_N[items].tolist():
                if len(found) < count and leaf not in refused:
                    found.append(leaf)
                    refused.add(leaf)
            if len(found) == count:
                return found
        return found + self._rest(refused, count, len(found), rng)

    def _rest(self, refused: set[int], count: int, found: int, rng: np.random.Generator) -> list[int]:
        """Where most of the weight is on what is refused."""
        leaf_of_item_N, some_N = self._trie.leaf_of_item_N, self._weights_N > 0
        mass_M = np.bincount(
            leaf_of_item_N[some_N], weights=self._weights_N[some_N], minlength=self._trie.num_leaves
        )
        mass_M[list(refused)] = 0.0
        left = int((mass_M > 0).sum())
        if found + left < count:
            raise InputError(
                f"negatives.{self._name}: {count}, but for a prompt there are only {found + left} SIDs that "
                "are neither its answer nor in its history; ask for fewer"
            )
        return rng.choice(len(mass_M), count - found, replace=False, p=mass_M / mass_M.sum()).tolist()
