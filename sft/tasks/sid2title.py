"""SID -> title of one item: half of MiniOneRec's `SidItemFeatDataset`."""

from collections.abc import Iterator

import numpy as np

from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import over_items


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per item that has a title."""
    return over_items(context, "sid2title", rng)
