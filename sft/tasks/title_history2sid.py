"""Title history -> next SID: the words of what was chosen lead to an item."""

from collections.abc import Iterator

import numpy as np

from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import draw


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per train case, in a wording drawn by `rng`."""
    histories = context.interactions.histories("train")
    for case in range(len(histories)):
        target = int(histories.targets_C[case])
        wording = draw(context, "title_history2sid", rng)
        rendered = context.template.render("title_history2sid", target, histories.history(case), wording)
        yield TaskExample.of("title_history2sid", rendered, target)
