"""SID -> title, description or both: LC-Rec's task of this name."""

from collections.abc import Iterator

import numpy as np

from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import over_items


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per item, told by what it has."""
    return over_items(context, "index2item", rng)
