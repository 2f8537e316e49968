"""Examples in a wording drawn at random: over the train cases, or over the items that have a title."""

from collections.abc import Iterator

import numpy as np

from sft.examples import TaskContext, TaskExample


def draw(context: TaskContext, task: str, rng: np.random.Generator) -> int:
    """Number of a wording of `task` to train on, uniformly."""
    wordings = context.template.pack.wordings(task)
    return wordings[int(rng.integers(len(wordings)))]


def over_cases(context: TaskContext, task: str, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per train case: its history asked in a drawn wording, its target as the answer."""
    histories = context.train_cases()
    for case in range(len(histories)):
        target = int(histories.targets_C[case])
        wording = draw(context, task, rng)
        rendered = context.template.render(task, target, histories.history(case), wording)
        yield TaskExample.of(task, rendered, target)


def over_titles(context: TaskContext, task: str, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per item on the shelf that has a title, in a drawn wording."""
    titles = context.index.catalog.titles
    for item in context.items().tolist():
        if titles[item]:
            rendered = context.template.render(task, item, wording=draw(context, task, rng))
            yield TaskExample.of(task, rendered, item)
