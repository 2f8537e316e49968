"""Conversations: a request, the item shown, and what the customer says to it.

The shown item fits everything said before. What is said next is a difference between it and the target that
the data proves: cheaper, another brand, a trait that one of them has and the other has not. So it no longer
fits, and the target does.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from prompts.intents import Intent, IntentSplit
from sft.intents.facts import Trait
from sft.intents.grammar import pick
from sft.intents.lexicon import describes_by_form
from sft.intents.requests import RequestWriter, add, without
from sft.intents.titles import AMBIGUOUS_COLOURS

_THIRD_TURN = 0.35
_LEAST_SAVING = 0.95  # "cheaper" by a cent is no answer
_CHEAPER = ("cheaper", "something cheaper", "do you have it cheaper?", "too expensive, what else is there?")
_DEARER = ("something better, it may cost more", "a more expensive one, please", "rather a pricier one")
_NOT_BRAND = ("not that brand", "another brand, please", "not from {}", "anything but {}?", "no {} please")
_BRAND = ("the same from {}", "do you have one by {}?", "rather from {}", "only {}, please")
_IN_COLOUR = ("in {} please", "do you have it in {}?", "the same in {}", "rather in {}")
_NOT_COLOUR = ("another colour", "any other colour?", "not {}", "I don't like {}")
_LIKE = ("the same but {}", "I would like it {}", "yes, but {}", "{}, please", "is there a {} one?")
_A = ("rather {}", "I meant {}", "{} instead", "do you have {}?")
_BEHIND = ("the same {}", "one {}, please", "it should be {}", "{}?")
_NOT = ("{}, please", "{}", "the same, only {}", "something similar, but {}")


class Refinement(NamedTuple):
    """What could be said to a shown item: `change` adds what that asks for to the constraints."""

    said: str
    change: Callable[[dict[str, Any]], None]


def conversation(
    writer: RequestWriter, item: int, split: IntentSplit, rng: np.random.Generator
) -> Intent | None:
    """Two or three turns that end at `item`; None where no sibling differs provably."""
    begun = writer.opening(item, rng)
    if begun is None:
        return None
    text, wanted = begun
    turns, shown = [text], []
    for _ in range(1 + int(rng.random() < _THIRD_TURN)):
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
    for other in writer.some_siblings(item, rng):
        if other in shown or not writer.shelf.holds(other, wanted):
            continue
        ways = differences(writer, item, other, rng)
        for number in rng.permutation(len(ways)).tolist():
            refined = copy.deepcopy(wanted)
            ways[number].change(refined)
            if writer.shelf.holds(item, refined) and not writer.shelf.holds(other, refined):
                return other, ways[number].said, refined
    return None


def differences(writer: RequestWriter, item: int, other: int, rng: np.random.Generator) -> list[Refinement]:
    """What may be said to `other` by someone who ends up with `item`."""
    facts, prices_N = writer.facts, writer.facts.prices_N
    target, seen = facts.items[item], facts.items[other]
    price, shown_price = float(prices_N[item]), float(prices_N[other])
    ways = []
    if price < _LEAST_SAVING * shown_price:
        below = round(shown_price - 0.01, 2)
        ways.append(Refinement(pick(_CHEAPER, rng), lambda wanted: wanted.update(max_price=below)))
    elif shown_price < _LEAST_SAVING * price:
        above = round(shown_price + 0.01, 2)
        ways.append(Refinement(pick(_DEARER, rng), lambda wanted: wanted.update(min_price=above)))
    if target.brand_given and seen.brand_given and target.brand.lower() != seen.brand.lower():
        said = pick(_NOT_BRAND, rng).format(seen.brand)
        ways.append(Refinement(said, lambda wanted: add(wanted, "not_brand", seen.brand)))
        said = pick(_BRAND, rng).format(target.brand)
        ways.append(Refinement(said, lambda wanted: wanted.update(brand=target.brand)))
    wished = [trait for trait in writer.lacking(target, other) if not trait.words[0].isdigit()]
    ways += [_adding("words", trait.words, _asked_for(writer, item, trait, rng)) for trait in wished]
    for trait in writer.lacking(seen, item):
        if trait.role == "colour":
            said = pick(_NOT_COLOUR, rng).format(trait.words)
        else:
            said = pick(_NOT, rng).format(without(target, trait, rng))
        ways.append(_adding("not_words", trait.words, said))
    return ways


def _adding(key: str, words: str, said: str) -> Refinement:
    return Refinement(said, lambda wanted: add(wanted, key, words))


def _asked_for(writer: RequestWriter, item: int, trait: Trait, rng: np.random.Generator) -> str:
    if trait.role in ("for", "with"):
        return pick(_BEHIND, rng).format(f"{trait.role} {trait.words}")
    if trait.role == "colour" and trait.words not in AMBIGUOUS_COLOURS:
        return pick(_IN_COLOUR, rng).format(trait.words)
    if trait.role == "before" and describes_by_form(trait.words) and rng.random() < 0.6:
        return pick(_LIKE, rng).format(trait.words)
    return pick(_A, rng).format(writer.phrase(writer.facts.items[item], [trait], rng))
