"""The user's taste in words and the history -> next SID: MiniOneRec's `UserPreference2sid`."""

from collections.abc import Iterator

import numpy as np

from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import over_tastes


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per preference of train and train case of its user."""
    return over_tastes(context, "preference2sid", rng)
