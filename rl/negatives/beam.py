"""`beam`: the items that the model itself ranks highest and that are wrong."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rl.preference_cases import PromptCase
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class BeamOptions:
    """There are none: the width of the beam is `num_beams`."""


class BeamNegatives:
    """The best wrong beams, in the order of their ranks."""

    needs_beam: ClassVar[bool] = True

    def __init__(self, options: BeamOptions, index: SidIndex, interactions: Interactions) -> None:
        pass

    def draw(
        self, case: PromptCase, beam_B: np.ndarray, taken: set[int], count: int, rng: np.random.Generator
    ) -> list[int]:
        wrong = [leaf for leaf in beam_B.tolist() if leaf not in taken]
        if len(wrong) < count:
            raise InputError(
                f"negatives.beam: {count}, but of a beam of {len(beam_B)} SIDs only {len(wrong)} may be "
                "rejected; ask for fewer, or raise num_beams if the catalogue has more"
            )
        return wrong[:count]
