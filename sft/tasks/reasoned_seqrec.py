"""History -> the user's taste in words, then the next SID: MiniOneRec's `PreferenceSFT`."""

from collections.abc import Iterator

import numpy as np

from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import over_tastes


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per preference of train and train case of its user."""
    return over_tastes(context, "reasoned_seqrec", rng)
