"""The training table: tasks drawn by weight, tokenised once, in a seeded order."""

from collections.abc import Mapping

import datasets
import numpy as np
from tqdm.auto import tqdm

from sft import TASKS
from sft.examples import TaskContext, TaskExample
from sid_builder.errors import InputError
from sid_builder.registry import resolve

_FEATURES = datasets.Features(
    {
        "task": datasets.Value("string"),
        "input_ids": datasets.List(datasets.Value("int32")),
        "shift_labels": datasets.List(datasets.Value("int32")),
        "target_items": datasets.List(datasets.Value("int32")),
        "branch_attach": datasets.List(datasets.Value("int32")),
        "branch_length": datasets.List(datasets.Value("int32")),
        "length": datasets.Value("int64"),
    }
)


def build_table(context: TaskContext, task_weights: Mapping[str, float], seed: int) -> datasets.Dataset:
    """Rows of all tasks.

    Weight 1 is one pass over the task's data, 2.5 two passes (wordings drawn anew each time) and a random
    half of a third. Every task has its own random stream, so adding one leaves the others' rows as they were.
    """
    rows: list[dict] = []
    for task, weight in sorted(task_weights.items()):
        examples = resolve(TASKS, task, "task_weights")
        rng = np.random.default_rng([seed, *task.encode()])
        passes, share = int(weight), weight - int(weight)
        found = 0
        for number in range(passes + (share > 0)):
            # The last, partial pass keeps each example with probability `share`.
            whole = number < passes
            for example in tqdm(
                examples(context, rng), desc=f"tokenise {task}", unit="row", leave=False, disable=None
            ):
                if whole or rng.random() < share:
                    rows.append(_checked(example))
                    found += 1
        if weight > 0 and not found:
            raise InputError(f"task_weights.{task}: the data holds no example for it; set its weight to 0")
    columns = {name: [row[name] for row in rows] for name in _FEATURES}
    return datasets.Dataset.from_dict(columns, features=_FEATURES)


def _checked(example: TaskExample) -> dict:
    assert len(example.input_ids) == len(example.shift_labels), example.task
    return example.as_row()
