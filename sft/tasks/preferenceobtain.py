"""History -> the user's taste in words: LC-Rec's task of this name."""

from collections.abc import Iterator

import numpy as np

from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import drawn


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per preference of train, behind the history it was written from: its own, else all that the
    user did in train.
    """
    for intent, cases in context.train_preferences():
        history = list(intent.history)
        if not history and len(cases):
            history = [*cases.history(len(cases) - 1).tolist(), int(cases.targets_C[-1])]
        if history:
            yield from drawn(context, "preferenceobtain", rng, history=history, preference=intent.text)
