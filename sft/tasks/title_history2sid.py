"""Title history -> next SID: the words of what was chosen lead to an item (MiniOneRec's
`TitleHistory2SidSFTDataset`).
"""

from collections.abc import Iterator

import numpy as np

from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import over_cases


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per train case whose history has a title."""
    return over_cases(context, "title_history2sid", rng)
