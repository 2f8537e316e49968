"""Examples in a wording drawn at random: over the train cases, the items on the shelf, or users' tastes.

A wording is drawn among those usable with what there is: an item without a description is asked for by its
title. Where none is usable the row is left out, and a task that leaves out every row is an error of the
mixture; one whose wordings no item of the catalogue could ever fill is refused at once.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from prompts.pack import HISTORY_FIELDS, ITEM_FIELDS
from sft.examples import TaskContext, TaskExample
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError


def pick(wordings: Sequence[int], rng: np.random.Generator) -> int:
    """One of them, uniformly."""
    return wordings[int(rng.integers(len(wordings)))]


def drawn(
    context: TaskContext,
    task: str,
    rng: np.random.Generator,
    item: int = -1,
    history: Sequence[int] | np.ndarray = (),
    **texts: str,
) -> Iterator[TaskExample]:
    """The example in a wording drawn among the usable ones; nothing where there is none.

    Args:
        item: the item the answer is about; -1 where it is about none.
        texts: words of the user: `query`, `intention`, `preference`.
    """
    template = context.template
    given = {*texts, *template.history_fields(history), *(template.item_fields(item) if item >= 0 else ())}
    usable = template.usable_wordings(task, given)
    if usable:
        about = item if item >= 0 else None
        rendered = template.render(task, about, history, pick(usable, rng), **texts)
        yield TaskExample.of(task, rendered, item)


def over_cases(context: TaskContext, task: str, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per train case: its history asked in a drawn wording, its target as the answer."""
    check_fields(context, task)
    histories = context.train_cases()
    for case in range(len(histories)):
        yield from drawn(context, task, rng, int(histories.targets_C[case]), histories.history(case))


def over_items(context: TaskContext, task: str, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per item on the shelf, in a drawn wording."""
    check_fields(context, task)
    for item in context.items().tolist():
        yield from drawn(context, task, rng, item)


def over_tastes(context: TaskContext, task: str, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per preference of train and train case of its user.

    A preference is written from all that the user did in train, so it may speak of the case's own target;
    of valid and test it knows nothing.
    """
    for intent, cases in context.train_preferences():
        for case in range(len(cases)):
            target, history = int(cases.targets_C[case]), cases.history(case)
            yield from drawn(context, task, rng, target, history, preference=intent.text)


def check_fields(context: TaskContext, task: str) -> None:
    """InputError when no item of the catalogue could ever fill any wording of the task."""
    has = _fields_of(context.index.catalog)
    given = has | {"history_sids"} | ({"history_titles"} if "title" in has else set())
    template = context.template
    if template.usable_wordings(task, given):
        return
    first = template.pack.templates(task)[0]
    field = sorted(first.fields - given)[0]
    known = field in ITEM_FIELDS | HISTORY_FIELDS
    nobody = "no item of the catalogue has" if known else "this task has no words for"
    raise InputError(
        f"task_weights.{task}: its wordings refer to {{{field}}}, which {nobody}; add it to the items, write "
        "a wording without it in the prompt pack, or set the weight to 0"
    )


def _fields_of(catalog: Catalog) -> set[str]:
    """Item fields that at least one item has a text for."""

    def some(flags: Any) -> bool:
        return bool(pc.any(flags).as_py())

    table = catalog.table
    has = {name for name in ("title", "description", "brand") if some(pc.not_equal(table[name], ""))}
    has |= {"categories"} if some(pc.greater(pc.list_value_length(table["categories"]), 0)) else set()
    has |= {"price"} if some(pc.is_valid(table["price"])) else set()
    return has | {"sid"}
