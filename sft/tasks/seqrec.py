"""SID history -> next SID, every train position of a user in one row.

The user's history is the trunk; each next item hangs off its position as a branch "end of the prompt + SID".
One pass over the row gives exactly the loss of all sliding windows. A target whose history is longer than a
prompt may hold gets a row of its own, since a shared trunk would already have read the items that its prompt
drops. With `positions: windows` every target has a row of its own: the plain path, same loss, more tokens.
"""

from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from prompts.branches import IGNORE, Branch
from prompts.template import PromptTemplate
from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import pick
from sid_builder.interactions import Histories


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """Rows in sequence order, one wording per sequence."""
    template = context.template
    wordings = template.pack.wordings("seqrec")
    histories = context.train_cases(whole_sequences=True)
    starts = np.flatnonzero(np.diff(histories.sequence_C, prepend=-1))
    ends = np.append(starts, len(histories))[1:]
    for first, last in zip(starts, ends, strict=True):
        wording = pick(wordings, rng)
        alone = first
        if context.positions == "all":
            # Every history holds the one before it: from some case on, none fits.
            alone += bisect_left(
                range(first, last),
                True,
                key=lambda case: not _fits(template, histories.history(case), wording),
            )
        if alone > first:
            yield _tree(template, histories, range(first, alone), wording)
        for case in range(alone, last):
            target = int(histories.targets_C[case])
            prompt = template.seqrec_prompt(histories.history(case), wording)
            answer = template.sid_ids[target] + template.end_ids
            labels = [IGNORE] * (len(prompt) - 1) + answer
            yield TaskExample("seqrec", prompt + answer[:-1], labels, [target])


def _tree(template: PromptTemplate, histories: Histories, cases: range, wording: int) -> TaskExample:
    """Cases of one sequence, in order, as branches of the last one's history."""
    pieces = template.seqrec_pieces(wording)
    trunk, item_ends = list(pieces.before), []
    for position, item in enumerate(histories.history(cases[-1])):
        trunk += (pieces.between if position else []) + template.sid_ids[int(item)]
        item_ends.append(len(trunk) - 1)
    branches, targets = [], []
    for case in cases:
        target = int(histories.targets_C[case])
        answer = template.sid_ids[target] + template.end_ids
        labels = [IGNORE] * (len(pieces.after) - 1) + answer
        attach = item_ends[int(histories.position_C[case]) - 1]
        branches.append(Branch(attach, pieces.after + answer[:-1], labels))
        targets.append(target)
    return TaskExample.tree("seqrec", trunk, branches, targets)


def _fits(template: PromptTemplate, history: np.ndarray, wording: int) -> bool:
    return len(template.bounded_history(history, wording)) == len(history)
