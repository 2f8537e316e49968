"""SID history -> next SID, every train position of a user in one row.

The user's history is the trunk; each next item hangs off its position as a branch "end of the prompt + SID".
One pass over the row gives exactly the loss of all sliding windows. A target whose history is longer than a
prompt may hold gets a row of its own, since a shared trunk would already have read the items that its prompt
drops.
"""

from collections.abc import Iterator

import numpy as np

from prompts.branches import IGNORE, Branch
from sft.examples import TaskContext, TaskExample


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """Rows in sequence order; `rng` is not used (one wording, the one evaluation asks with)."""
    template = context.template
    before, between, after = template.seqrec_pieces()
    histories = context.train_cases()
    starts = np.flatnonzero(np.diff(histories.sequence_C, prepend=-1))
    ends = np.append(starts, len(histories))[1:]
    for first, last in zip(starts, ends, strict=True):
        shared = [c for c in range(first, last) if _fits(template, histories.history(c))]
        if shared:
            items = histories.history(shared[-1])
            trunk, item_ends = list(before), []
            for position, item in enumerate(items):
                trunk += (between if position else []) + template.sid_ids[int(item)]
                item_ends.append(len(trunk) - 1)
            branches, targets = [], []
            for case in shared:
                target = int(histories.targets_C[case])
                sid = template.sid_ids[target]
                labels = [IGNORE] * (len(after) - 1) + sid + [template.end_id]
                branches.append(Branch(item_ends[int(histories.position_C[case]) - 1], after + sid, labels))
                targets.append(target)
            yield TaskExample.tree("seqrec", trunk, branches, targets)
        for case in range(first + len(shared), last):
            target = int(histories.targets_C[case])
            prompt = template.seqrec_prompt(histories.history(case))
            sid = template.sid_ids[target]
            labels = [IGNORE] * (len(prompt) - 1) + sid + [template.end_id]
            yield TaskExample("seqrec", prompt + sid, labels, [target])


def _fits(template, history: np.ndarray) -> bool:
    return len(template.bounded_history(history)) == len(history)
