"""SID -> title of one item."""

from collections.abc import Iterator

import numpy as np

from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import draw


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per item that has a title, in a wording drawn by `rng`."""
    for item, title in enumerate(context.index.catalog.titles):
        if title:
            rendered = context.template.render("sid2title", item, wording=draw(context, "sid2title", rng))
            yield TaskExample.of("sid2title", rendered, item)
