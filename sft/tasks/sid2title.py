"""SID -> title of one item."""

from collections.abc import Iterator

import numpy as np

from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import over_titles


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per item that has a title."""
    return over_titles(context, "sid2title", rng)
