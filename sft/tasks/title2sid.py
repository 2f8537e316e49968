"""Title -> SID of one item."""

from collections.abc import Iterator

import numpy as np

from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import draw


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per item that has a title, in a wording drawn by `rng`."""
    for item, title in enumerate(context.index.catalog.titles):
        if title:
            rendered = context.template.render("title2sid", item, wording=draw(context, "title2sid", rng))
            yield TaskExample.of("title2sid", rendered, item)
