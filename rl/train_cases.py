"""Which train cases RL asks: drawn once by seed, from train alone.

Valid and test targets never enter: `Interactions.histories("train")` ends two items before a leave-one-out
sequence does.
"""

from typing import Any, Literal

import numpy as np

from prompts.template import PromptTemplate
from serve.decoding.recommender import Recommender
from serve.evaluation.model_ranking import sample_cases
from sid_builder.errors import InputError
from sid_builder.interactions import Histories


def draw_train_cases(
    policy: Recommender, max_prompts: int, positions: Literal["all", "last"], seed: int
) -> Histories:
    """At most `max_prompts` train cases in sequence order; targets are items on the shelf.

    "all" draws from every position, as SFT trained on; "last" from the newest train position of each
    sequence, the nearest there is to what valid and test ask.
    """
    cases = policy.index.reachable(policy.interactions.histories("train"))
    if len(cases) == 0:
        raise InputError(
            "interactions: train has no case with a history; RL needs sequences of two items or more"
        )
    if positions == "last":
        newest = np.append(cases.sequence_C[1:] != cases.sequence_C[:-1], True)
        cases = cases.take(np.flatnonzero(newest))
    return sample_cases(cases, max_prompts, seed)


def prompt_rows(cases: Histories, template: PromptTemplate) -> list[dict[str, Any]]:
    """TRL rows: `prompt` as chat messages, and beside it what belongs to the row: `history` (whole) and
    `target_item`.

    The messages spell the bounded history, so TRL's own chat-template tokenisation gives the ids of
    `template.prompt("seqrec", history)`: SFT, RL, evaluation and the endpoint ask the same question.
    """
    wording = template.pack.templates("seqrec")[0]
    targets_C = cases.targets_C
    rows = []
    for case in range(len(cases)):
        history = cases.history(case)
        text = template.user_text(wording, template.bounded_history(history))
        rows.append(
            {
                "prompt": template.messages(text),
                "history": history.tolist(),
                "target_item": int(targets_C[case]),
            }
        )
    return rows
