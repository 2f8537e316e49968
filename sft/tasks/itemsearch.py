"""A request in words -> SID, alone, behind a history or at the end of a conversation: LC-Rec's task of this
name.

A request is drawn one of the wordings that hold its words (`{query}` or `{intention}`), with or without the
history it came behind. A conversation is asked as the endpoint asks it: what was said and shown before are
earlier turns, and the last words stand in the first wording that holds them and the history (in a pack that
has none, the words alone). A user's taste (`{preference}`) is a request too: for the item that the user's
train ends with. (`preference2sid` asks for every one.)
"""

from collections.abc import Iterator

import numpy as np

from prompts.intents import Intent
from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import drawn


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per request of train whose item is on the shelf, and one per preference, for the newest train
    case of its user.
    """
    for intent in context.train_intents("query", "intention"):
        if not context.index.live_N[intent.item]:
            continue
        if intent.shown:
            yield from _conversation(context, intent)
        else:
            words = {intent.kind: intent.text}
            yield from drawn(context, "itemsearch", rng, intent.item, intent.history, **words)
    for intent, cases in context.train_preferences():
        if len(cases):
            target, history = int(cases.targets_C[-1]), cases.history(len(cases) - 1)
            yield from drawn(context, "itemsearch", rng, target, history, preference=intent.text)


def _conversation(context: TaskContext, intent: Intent) -> Iterator[TaskExample]:
    template = context.template
    wording = template.request_wording("itemsearch", intent.kind, intent.history)
    if wording is None:
        wording = template.request_wording("itemsearch", intent.kind)
    if wording is not None:
        turns = list(zip(intent.turns[:-1], intent.shown, strict=True))
        words = {intent.kind: intent.text}
        rendered = template.render("itemsearch", intent.item, intent.history, wording, turns, **words)
        yield TaskExample.of("itemsearch", rendered, intent.item)
