"""A few of an item's words -> its SID: how people ask when they do not know the title."""

import re
from collections.abc import Iterator

import numpy as np

from sft.examples import TaskContext, TaskExample
from sft.tasks.wordings import drawn
from sid_builder.catalog import Catalog
from sid_builder.item_text import item_texts

_WORD = re.compile(r"[\w'-]+")
_MOST_WORDS = 5
_TEMPLATE = "{title}[. {brand}][. {categories}]"


def examples(context: TaskContext, rng: np.random.Generator) -> Iterator[TaskExample]:
    """One row per item on the shelf: one to five words of its title, brand and categories, in their order or
    shuffled.
    """
    items, table = context.items(), context.index.catalog.table
    first, last = (int(items[0]), int(items[-1])) if len(items) else (0, -1)
    texts = item_texts(Catalog(table.slice(first, last + 1 - first)), _TEMPLATE)
    for item in items.tolist():
        words = list(dict.fromkeys(_WORD.findall(texts[item - first])))
        if not words:
            continue
        size = int(rng.integers(1, min(_MOST_WORDS, len(words)) + 1))
        chosen = rng.choice(len(words), size=size, replace=False)
        if rng.random() < 0.5:
            chosen = np.sort(chosen)
        query = " ".join(words[word] for word in chosen)
        query = query if rng.random() < 0.5 else query.lower()
        yield from drawn(context, "query2sid", rng, item, query=query)
