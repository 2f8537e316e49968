"""Which of a task's wordings an example uses."""

import numpy as np

from sft.examples import TaskContext


def draw(context: TaskContext, task: str, rng: np.random.Generator) -> int:
    """Index of a template of `task`, uniformly."""
    return int(rng.integers(len(context.template.pack.templates(task))))
