"""Requests composed from what is true of an item, and what they ask for as data.

A request says what the item is and then draws traits, brand and price until it would leave few items of its
kind, now and then something that a sibling has and the item has not: "a waterproof mascara under 10 dollars,
not brown". Every constraint is checked against the item before it is said.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from prompts.intents import Intent, IntentSplit
from prompts.wanted import Shelf
from sft.intents.facts import CatalogFacts, ItemFacts, Trait
from sft.intents.grammar import Said, noun_phrase, pick, sentence
from sft.intents.lexicon import describes_by_form
from sft.intents.titles import article, plural_of

_STEPS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000)
_MOST_SIBLINGS_ASKED = 12
_MOST_SAID = 4  # traits, brand, price and names in one request
_GOALS = (1, 2, 5, 15, 40)  # how many items a request may be expected to leave
_UNDER = (
    "under {} dollars",
    "for less than {} dollars",
    "below ${}",
    "under ${}",
    "for under {}",
    "less than ${}",
)
_UP_TO = ("for {} dollars at most", "up to ${}", "for up to {} dollars", "for max ${}")
_OVER = ("over {} dollars", "for more than ${}", "above {} dollars")
_BETWEEN = ("between {} and {} dollars", "for ${} to ${}", "from {} to {} dollars")
_CHEAP = ("cheap", "inexpensive", "affordable", "low-priced")
_DEAR = ("high-end", "upmarket", "expensive")


class RequestWriter:
    """Writes requests over a catalogue.

    Args:
        facts, shelf: of the same catalogue; the shelf says what fits.
    """

    def __init__(self, facts: CatalogFacts, shelf: Shelf) -> None:
        self.facts = facts
        self.shelf = shelf

    def requests(
        self, item: int, count: int, rng: np.random.Generator, held_out: float = 0.0
    ) -> Iterator[Intent]:
        """Up to `count` different requests for an item, each with its constraints.

        Args:
            held_out: share of them that goes to valid, and as much to test. Half of those are said in a frame
                that train's requests never use.
        """
        told: set[str] = set()
        for _ in range(2 * count):
            split = drawn_split(rng, held_out)
            found = self.request(item, rng, held_out_frame=split != "train" and bool(rng.random() < 0.5))
            if found is not None and found[0].lower() not in told:
                told.add(found[0].lower())
                yield Intent("query", (found[0],), item, split=split, wanted=found[1])
            if len(told) == count:
                return

    def request(
        self, item: int, rng: np.random.Generator, held_out_frame: bool = False
    ) -> tuple[str, dict[str, Any]] | None:
        """One request and its constraints; None where the item has no words, or they are not true of it."""
        facts = self.facts.items[item]
        wanted = self.thing_wanted(facts)
        said = self._drawn(item, facts, wanted, rng)
        silent = not (facts.thing or said.names or said.brand)
        if silent or not self.shelf.holds(item, wanted):
            return None
        if facts.thing and rng.random() < 0.25:
            unwanted = self._unwanted(item, wanted, rng)
            said = replace(said, unwanted=unwanted)
        return sentence(said, rng, held_out_frame), wanted

    def opening(self, item: int, rng: np.random.Generator) -> tuple[str, dict[str, Any]] | None:
        """How a conversation begins: the thing and one trait at most, so that siblings fit as well."""
        facts = self.facts.items[item]
        spoken = [trait for trait in facts.traits if trait.role in ("before", "colour", "for")]
        traits = [spoken[int(rng.integers(len(spoken)))]] if spoken and rng.random() < 0.4 else []
        wanted = self.thing_wanted(facts)
        add(wanted, "words", *(trait.words for trait in traits))
        if not facts.thing or not self.shelf.holds(item, wanted):
            return None
        return sentence(Said(facts, traits), rng, held_out=False), wanted

    def phrase(self, facts: ItemFacts, traits: list[Trait], rng: np.random.Generator) -> str:
        """The thing with these traits and its article: "a red tent"."""
        return facts.named(noun_phrase(Said(facts, traits), rng))

    # -- what is said --

    def thing_wanted(self, facts: ItemFacts) -> dict[str, Any]:
        """What asking for the thing alone asks for."""
        if facts.category:
            return {"category": facts.category}
        return {"words": [facts.thing]} if facts.thing else {}

    def _drawn(self, item: int, facts: ItemFacts, wanted: dict[str, Any], rng: np.random.Generator) -> Said:
        """What to say; `wanted` is filled with what that asks for."""
        siblings = self.facts.num_siblings(facts)
        expected, goal = float(siblings), _GOALS[int(rng.integers(len(_GOALS)))]
        names = facts.names[:2] if facts.thing else facts.names
        options: list[tuple[str, Any]] = [("trait", trait) for trait in facts.traits]
        options += [("brand", facts.brand)] if facts.brand else []
        options += [("name", name) for name in names]
        options += [("price", None)] if facts.thing else []
        traits, called, brand, before, price = [], [], "", "", ""
        for number in rng.permutation(len(options))[:_MOST_SAID].tolist():
            what, option = options[number]
            if what == "price":
                before, price = self._price(item, wanted, rng)
                expected *= 0.5 if before or price else 1.0
            elif what == "trait":
                traits.append((number, option))
                add(wanted, "words", option.words)
                expected *= self.facts.share(facts, option.words)
            else:
                if what == "name":
                    called.append((number, option))
                else:
                    brand = option
                if what == "brand" and facts.brand_given:
                    wanted["brand"] = brand
                else:
                    add(wanted, "words", option)
                expected *= self.facts.share(facts, option)
            # What cannot be named takes two things at least that are remembered of it.
            if expected <= goal and (facts.thing or len(traits) + len(called) + bool(brand) > 1):
                break
        ordered = [option for _, option in sorted(traits)]
        return Said(facts, ordered, before, brand, price, "", [name for _, name in sorted(called)])

    def _price(self, item: int, wanted: dict[str, Any], rng: np.random.Generator) -> tuple[str, str]:
        """A true bound on the price: (words before the thing, words behind it), empty where there is none."""
        price = float(self.facts.prices_N[item])
        if np.isnan(price) or price <= 0:
            return "", ""
        levels = self.facts.price_levels.get(self.facts.items[item].kind)
        draw = rng.random()
        if levels and price <= levels[0] and draw < 0.3:
            wanted["max_price"] = levels[0]
            return pick(_CHEAP, rng), ""
        if levels and price >= levels[1] and draw < 0.2:
            wanted["min_price"] = levels[1]
            return pick(_DEAR, rng), ""
        step = next(step for step in _STEPS if step * 20 >= price or step == _STEPS[-1])
        below = math.floor(price / step) * step
        above = below + step * (1 + int(rng.integers(0, 3)))
        if below and price > below and draw > 0.85:
            wanted["min_price"], wanted["max_price"] = below, above
            return "", pick(_BETWEEN, rng).format(below, above)
        if below and price > below and draw > 0.75:
            wanted["min_price"] = round(below + 0.01, 2)
            return "", pick(_OVER, rng).format(below)
        if draw > 0.6:
            wanted["max_price"] = above
            return "", pick(_UP_TO, rng).format(above)
        wanted["max_price"] = round(above - 0.01, 2)  # "under 10 dollars" leaves 10 dollars out
        return "", pick(_UNDER, rng).format(above)

    def _unwanted(self, item: int, wanted: dict[str, Any], rng: np.random.Generator) -> str:
        """Words for something that an item which fits so far has and this one has not; empty where the
        siblings asked tell nothing. `wanted` is filled.
        """
        own = self.facts.items[item]
        for sibling in self.some_siblings(item, rng):
            if not self.shelf.holds(sibling, wanted):
                continue
            other = self.facts.items[sibling]
            brands = own.brand_given and other.brand_given and other.brand.lower() != own.brand.lower()
            if brands and "brand" not in wanted and rng.random() < 0.4:
                wanted["not_brand"] = [other.brand]
                return pick(("not from {}", "not {}", "no {}"), rng).format(other.brand)
            lacking = self.lacking(other, item)
            if lacking:
                trait = lacking[int(rng.integers(len(lacking)))]
                wanted["not_words"] = [trait.words]
                return without(own, trait, rng)
        return ""

    def some_siblings(self, item: int, rng: np.random.Generator) -> list[int]:
        """A few other items of its kind on the shelf, in random order."""
        siblings = self.facts.siblings.get(self.facts.items[item].kind)
        if siblings is None:
            return []
        drawn = siblings[rng.integers(0, len(siblings), _MOST_SIBLINGS_ASKED)]
        return [
            other for other in dict.fromkeys(drawn.tolist()) if other != item and self.shelf.live_N[other]
        ]

    def lacking(self, other: ItemFacts, item: int) -> list[Trait]:
        """Traits of another item that this one's texts know nothing of."""
        return [
            trait
            for trait in other.traits
            if trait.role in ("before", "colour", "with") and not self.shelf.words.holds(item, trait.words)
        ]


def without(facts: ItemFacts, trait: Trait, rng: np.random.Generator) -> str:
    """That a thing lacks a trait: "not red", "without aloe", "not a gel cleanser"."""
    if trait.role == "with":
        return pick(("without {}", "no {}"), rng).format(trait.words)
    if trait.role == "colour" or describes_by_form(trait.words):
        return f"not {trait.words}"
    if facts.plural:
        return f"no {trait.words} {facts.thing}"
    one = f"{trait.words} {facts.thing}"
    return pick((f"not {article(one)} {one}", f"no {trait.words} {plural_of(facts.thing)}"), rng)


def add(wanted: dict[str, Any], key: str, *words: str) -> None:
    """Put words into a list of constraints, each once."""
    if words:
        wanted[key] = list(dict.fromkeys([*wanted.get(key, ()), *words]))


def drawn_split(rng: np.random.Generator, held_out: float) -> IntentSplit:
    """Which split a request goes to: `held_out` of all to valid, and as many to test."""
    draw = rng.random()
    return "valid" if draw < held_out else "test" if draw < 2 * held_out else "train"
