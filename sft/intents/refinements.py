"""Conversations: a request, the item shown, and what the customer says to it.

The shown item fits everything said before; what is said next is a difference between it and the target that
the data proves: cheaper, another brand, a trait one of them has and the other has not.
"""

import copy
from typing import Any

import numpy as np

from prompts.intents import Intent, IntentSplit
from sft.intents.requests import RequestWriter

_MOST_ASKED = 16
_SPOKEN = {
    "cheaper": (
        "cheaper",
        "something cheaper",
        "do you have it cheaper?",
        "too expensive, what else is there?",
    ),
    "dearer": ("something better, it may cost more", "a more expensive one, please", "rather a pricier one"),
    "not_brand": ("not that brand", "another brand, please", "not from {}", "anything but {}?"),
    "brand": ("the same from {}", "do you have one by {}?", "rather from {}"),
    "words": ("the same but {}", "I would like it {}", "yes, but {}", "{}, please"),
    "with": ("the same with {}", "one with {}, please", "does any come with {}?"),
    "for": ("the same for {}", "it should be for {}", "for {}, please"),
    "not_words": ("not {}", "anything that is not {}?", "the same, only not {}"),
}


def conversation(
    writer: RequestWriter, item: int, split: IntentSplit, rng: np.random.Generator
) -> Intent | None:
    """Two or three turns that end at `item`; None where no sibling differs provably."""
    begun = writer.request(item, rng, most_traits=1, plain=True)
    if begun is None:
        return None
    text, wanted = begun
    turns, shown = [text], []
    for _ in range(1 + int(rng.random() < 0.3)):
        found = _refined(writer, item, wanted, shown, rng)
        if found is None:
            break
        other, said, wanted = found
        shown.append(other)
        turns.append(said)
    if not shown:
        return None
    return Intent("query", tuple(turns), item, tuple(shown), split=split, wanted=wanted)


def _refined(
    writer: RequestWriter, item: int, wanted: dict[str, Any], shown: list[int], rng: np.random.Generator
) -> tuple[int, str, dict[str, Any]] | None:
    """An item that fits so far, what is said to it, and all constraints with that one."""
    siblings = writer.facts.siblings.get(writer.facts.items[item].kind, ())
    for other in rng.permutation(siblings)[:_MOST_ASKED].tolist() if len(siblings) else []:
        if other == item or other in shown or not writer.shelf.holds(other, wanted):
            continue
        ways = _differences(writer, item, other)
        for way, value in [ways[number] for number in rng.permutation(len(ways))]:
            refined = copy.deepcopy(wanted)
            if way in ("cheaper", "dearer"):
                price = float(writer.facts.prices_N[other])
                key, bound = ("max_price", price - 0.01) if way == "cheaper" else ("min_price", price + 0.01)
                refined[key] = round(bound, 2)
            elif way == "brand":
                refined["brand"] = value
            else:
                key = "words" if way in ("with", "for") else way
                refined.setdefault(key, []).append(value)
            if writer.shelf.holds(item, refined) and not writer.shelf.holds(other, refined):
                forms = _SPOKEN[way]
                return other, forms[int(rng.integers(len(forms)))].format(value), refined
    return None


def _differences(writer: RequestWriter, item: int, other: int) -> list[tuple[str, str]]:
    """(way of `_SPOKEN`, words) in which the target differs from what was shown."""
    facts, holds = writer.facts, writer.shelf.words.holds
    target, seen = facts.items[item], facts.items[other]
    price, shown_price = float(facts.prices_N[item]), float(facts.prices_N[other])
    ways = []
    if price < shown_price:
        ways.append(("cheaper", ""))
    elif price > shown_price:
        ways.append(("dearer", ""))
    if target.brand_given and seen.brand_given and target.brand != seen.brand:
        ways += [("not_brand", seen.brand), ("brand", target.brand)]
    for trait in target.traits:
        if trait.role in ("before", "colour", "with", "for") and not holds(other, trait.words):
            ways.append(("words" if trait.role in ("before", "colour") else trait.role, trait.words))
    for trait in seen.traits:
        if trait.role in ("before", "colour") and not holds(item, trait.words):
            ways.append(("not_words", trait.words))
    return ways
