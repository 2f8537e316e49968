"""SID history -> title of the next item: tokens lead back to words (MiniOneRec's `FusionSeqRecDataset`)."""

from collections.abc import Iterator

import numpy as np

from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import over_cases


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per train case whose target has a title."""
    return over_cases(context, "sid_history2title", rng)
