"""SID history -> title or description of the next item, or title history -> its SID: LC-Rec's task of this
name.
"""

from collections.abc import Iterator

import numpy as np

from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import over_cases


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per train case, in a shape that its target and its history have the texts for."""
    return over_cases(context, "fusionseqrec", rng)
