"""What becomes of one prompt's candidates: which of them are its group, in which order, with which ranks.

Legend: C candidates, in the order they came (a beam's by rank, draws as drawn); G completions of a group;
B groups, N = B * G rows, F reward functions.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Group:
    """Completions of one prompt, or candidates for them.

    Attributes:
        leaves_G: int64; leaves of the trie.
        scores_G: float32; log-probs of their SIDs under the policy, over the whole vocabulary.
    """

    leaves_G: np.ndarray
    scores_G: np.ndarray

    def take(self, rows: np.ndarray) -> "Group":
        return Group(self.leaves_G[rows], self.scores_G[rows])

    def select(self, size: int, truth: int) -> "Group":
        """`size` of the candidates: a hit, then distinct SIDs in the order they came, then repeats.

        MiniOneRec's dynamic sampling keeps every hit there is; one is enough, and a group of hits alone has
        no advantage. In the order they came: of a beam the best, of draws what fewer would have been.
        """
        is_first_C = np.zeros(len(self.leaves_G), dtype=bool)
        is_first_C[np.unique(self.leaves_G, return_index=True)[1]] = True
        turn_C = np.where(is_first_C, np.where(self.leaves_G == truth, 0, 1), 2)
        return self.take(np.argsort(turn_C, kind="stable")[:size])

    def with_truth(self, truth: int, score: float) -> "Group":
        """The truth in place of the last completion, unless it is among them already."""
        if truth in self.leaves_G:
            return self
        scores_G = np.append(self.scores_G[:-1], np.float32(score))
        return Group(np.append(self.leaves_G[:-1], truth), scores_G)

    def ordered(self) -> "Group":
        """Best first: score descending, then codes (hence leaves) ascending, as a beam is."""
        return self.take(np.lexsort((self.leaves_G, -self.scores_G)))

    def ranks(self) -> np.ndarray:
        """Of an ordered group: how many distinct SIDs stand before each; copies share a rank. int64 [G]."""
        return np.cumsum(np.append(False, self.leaves_G[1:] != self.leaves_G[:-1]))


def beside(beam: Group, drawn: Group, count: int) -> Group:
    """A beam, and of distinct draws the first `count` that it left out."""
    left_out = np.flatnonzero(~np.isin(drawn.leaves_G, beam.leaves_G))
    rest = drawn.take(left_out[:count])
    return Group(np.append(beam.leaves_G, rest.leaves_G), np.append(beam.scores_G, rest.scores_G))


def are_idle(rewards_NF: np.ndarray, weights_F: np.ndarray, group_size: int, aggregation: str) -> np.ndarray:
    """Bool [B]: whether all completions of a group earn the same, so that TRL's advantages are all 0.

    Args:
        aggregation: TRL's `multi_objective_aggregation`. Normalised one by one, rewards that differ count
            even where their sum does not.
    """
    if aggregation == "sum_then_normalize":
        rewards_NF = (rewards_NF * weights_F).sum(axis=1, keepdims=True)
    grouped = rewards_NF.reshape(-1, group_size, rewards_NF.shape[1])
    return (grouped == grouped[:, :1]).all(axis=(1, 2))
