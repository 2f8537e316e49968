"""What preferences are made for: a prompt's history, the item to prefer, and where rejected ones come from.

Valid and test never enter: cases are train's (`rl.train_cases`), or a user's own feedback without what valid
and test ask that user for (`rl.negatives.feedback`).

Legend: B beams, best first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from sid_builder.interactions import Histories


@dataclass(frozen=True)
class PromptCase:
    """One prompt.

    Attributes:
        number: of the case among all; its random draws are seeded by it.
        history: item indices, oldest first, at least one.
        target: item_index of the answer to prefer, on the shelf.
        logged: item indices that the user is known to like less, on the shelf.
    """

    number: int
    history: np.ndarray
    target: int
    logged: tuple[int, ...] = ()


class NegativeSource(Protocol):
    """Where rejected answers come from. Answers are SIDs, so they are told apart by leaves of the trie."""

    needs_beam: ClassVar[bool]

    def draw(
        self, case: PromptCase, beam_B: np.ndarray, taken: set[int], count: int, rng: np.random.Generator
    ) -> list[int]:
        """`count` distinct leaves that are not `taken`.

        Args:
            beam_B: int64 leaves of the policy's beam by rank; empty where no source needs one.
            taken: leaves that must not be rejected: the target's, those other sources have drawn, and those
                of the history where lists leave it out.
            rng: the case's own.

        Raises:
            InputError: when there are fewer (sources of what was logged give those there are).
        """


def cases_of(histories: Histories) -> list[PromptCase]:
    """The cases of a split's histories, in their order."""
    targets_C = histories.targets_C
    return [
        PromptCase(case, histories.history(case).astype(np.int64), int(targets_C[case]))
        for case in range(len(histories))
    ]


def sample(cases: Sequence[PromptCase], most: int, seed: int) -> list[PromptCase]:
    """All cases, or `most` of them drawn without replacement, in their original order."""
    if len(cases) <= most:
        return list(cases)
    chosen = np.random.default_rng(seed).choice(len(cases), most, replace=False)
    return [cases[row] for row in np.sort(chosen)]
