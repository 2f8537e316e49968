"""SID history -> title of the next item: tokens lead back to words."""

from collections.abc import Iterator

import numpy as np

from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import draw


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per train case, in a wording drawn by `rng`."""
    histories = context.interactions.histories("train")
    for case in range(len(histories)):
        target = int(histories.targets_C[case])
        wording = draw(context, "sid_history2title", rng)
        rendered = context.template.render("sid_history2title", target, histories.history(case), wording)
        yield TaskExample.of("sid_history2title", rendered, target)
