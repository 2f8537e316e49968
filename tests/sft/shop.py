"""A small shop with everything a task may meet: items without a title or a description, items off the shelf,
requests, conversations and tastes in every split.
"""

import numpy as np

from prompts.intents import Intent, Intents
from prompts.pack import PromptPack
from prompts.template import PromptTemplate
from sft.examples import TaskContext
from sid_builder.catalog import Catalog
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex
from tests.builders import make_tokenizer
from tests.sft.builders import CHATML, make_interactions

NUM_ITEMS = 120
REMOVED = (5, 40)
COLOURS, KINDS = ("red", "blue", "green", "white"), ("shoe", "tent", "lamp")


def make_shop_index(described: bool = True, titled: bool = True, pattern: str | None = None) -> SidIndex:
    """Every tenth item has no title, every third no description, none of either where they are switched
    off.
    """
    rng = np.random.default_rng(11)
    codes = np.unique(rng.integers(0, 8, (300, 3)), axis=0)
    codes_NL = rng.permutation(codes)[:NUM_ITEMS].astype(np.int32)
    rows = []
    for item in range(NUM_ITEMS):
        row: dict = {"item_id": f"P{item:03d}", "brand": f"Brand{item % 5}", "price": 5.0 + item}
        row["categories"] = ["Outdoor", KINDS[item % 3]]
        if titled and item % 10:
            row["title"] = f"{COLOURS[item % 4]} {KINDS[item % 3]} no. {item}"
        if described and item % 3:
            row["description"] = f"A {COLOURS[item % 4]} thing, made {item} times. Fits."
        rows.append(row)
    ids = SemanticIds(codes_NL, (8, 8, 8), **({"pattern": pattern} if pattern else {}))
    removed_N = np.isin(np.arange(NUM_ITEMS), REMOVED)
    return SidIndex(Catalog.from_rows(rows), ids, np.arange(NUM_ITEMS), removed_N=removed_N)


def make_intents(catalog: Catalog, held_out_words: str = "of another split") -> Intents:
    """Sixty requests of train (one in three a conversation), tastes of twenty users and of an unknown one,
    and as many of valid and test, in a mixed order.
    """
    rows: list[Intent] = []
    for split in ("train", "valid", "test"):
        told = "" if split == "train" else f" {held_out_words}"
        for number in range(60):
            item = (7 * number + 3) % NUM_ITEMS
            words = f"a {COLOURS[item % 4]} {KINDS[item % 3]}{told}"
            turns, shown = ((words,), ()) if number % 3 else ((words, "cheaper" + told), ((item + 1) % 60,))
            history = tuple(range(number, number + number % 4))
            kind = "query" if number % 2 else "intention"
            rows.append(Intent(kind, turns, item, shown, history, split=split))
        for user in range(20):
            history = (user, user + 1) if user % 2 else ()
            text = f"{COLOURS[user % 4]} things{told}"
            rows.append(Intent("preference", (text,), history=history, user=f"user-{user}", split=split))
        rows.append(Intent("preference", ("nobody's taste" + told,), user="unknown", split=split))
    order = np.random.default_rng(5).permutation(len(rows))
    return Intents.of([rows[row] for row in order], catalog)


def make_template(pack: PromptPack | str, index: SidIndex) -> PromptTemplate:
    tokenizer = make_tokenizer(index)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return PromptTemplate(PromptPack.load(pack) if isinstance(pack, str) else pack, tokenizer, index)


def make_shop(pack: PromptPack | str = "plain", index: SidIndex | None = None) -> TaskContext:
    index = index or make_shop_index()
    intents = make_intents(index.catalog)
    return TaskContext(index, make_interactions(NUM_ITEMS), make_template(pack, index), intents)
