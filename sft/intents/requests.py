"""Requests composed from what is true of an item, and what they ask for as data.

A request draws some of an item's traits, a bound on its price, its brand, or something siblings have and it
has not, and says them in one of many forms: "a waterproof mascara under 10 dollars, not brown". Every
constraint is checked against the item before it is said.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from prompts.intents import Intent, IntentSplit
from prompts.wanted import Shelf
from sft.intents.facts import CatalogFacts, ItemFacts, Trait
from sft.intents.titles import COLOURS, plural_of

_STEPS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000)
_MOST_SIBLINGS_ASKED = 12
_ASKED_FOR_ONE = (
    "{a}",
    "{a}, please",
    "I am looking for {a}.",
    "I need {a}.",
    "can you find me {a}?",
    "do you have {a}?",
    "find me {a}",
    "{a} would be nice",
    "looking for {a}",
)
_ASKED_FOR_SOME = (
    "{some}",
    "show me {some}",
    "which {some} do you have?",
    "any good {some}?",
    "{some}, please",
    "I want to see {some}.",
)


class RequestWriter:
    """Writes requests over a catalogue.

    Args:
        facts, shelf: of the same catalogue; the shelf says what fits.
    """

    def __init__(self, facts: CatalogFacts, shelf: Shelf) -> None:
        self.facts = facts
        self.shelf = shelf

    def requests(self, item: int, count: int, rng: np.random.Generator) -> Iterator[tuple[str, dict]]:
        """Up to `count` different requests for an item, each with its constraints."""
        told: set[str] = set()
        for _ in range(2 * count):
            found = self.request(item, rng)
            if found is not None and found[0] not in told:
                told.add(found[0])
                yield found
            if len(told) == count:
                return

    def request(
        self, item: int, rng: np.random.Generator, most_traits: int = 3, plain: bool = False
    ) -> tuple[str, dict[str, Any]] | None:
        """One request and its constraints; None where the item has no words, or they were not true of it.

        Args:
            most_traits: traits to say at most.
            plain: no price, brand or exclusion: how a conversation begins.
        """
        facts = self.facts.items[item]
        if not facts.thing:
            return self._by_keywords(item, facts, rng)
        wanted: dict[str, Any] = {"words": []}
        if facts.category:
            wanted["category"] = facts.category
        else:
            wanted["words"].append(facts.thing)
        traits = self._drawn_traits(facts, rng, most_traits)
        wanted["words"] += [trait.words for trait in traits]
        maker, ending = "", ""
        if not plain:
            if facts.brand and rng.random() < 0.25:
                maker = facts.brand
                if facts.brand_given:
                    wanted["brand"] = facts.brand
                else:
                    wanted["words"].append(facts.brand)
            ending = self._price_phrase(item, wanted, rng) if rng.random() < 0.4 else ""
            if rng.random() < 0.25:
                ending += self._exclusion(item, wanted, rng)
        if not wanted["words"]:
            del wanted["words"]
        if not self.shelf.holds(item, wanted):
            return None
        return self._said(facts, traits, maker, ending, rng), wanted

    def _drawn_traits(self, facts: ItemFacts, rng: np.random.Generator, most: int) -> list[Trait]:
        most = min(most, len(facts.traits))
        count = int(rng.integers(0, most + 1)) if most else 0
        chosen = sorted(rng.choice(len(facts.traits), count, replace=False)) if count else []
        return [facts.traits[number] for number in chosen]

    def _by_keywords(
        self, item: int, facts: ItemFacts, rng: np.random.Generator
    ) -> tuple[str, dict[str, Any]] | None:
        """What people type who know a few words of a title."""
        words = facts.keywords
        if not words:
            return None
        count = int(rng.integers(1, min(4, len(words)) + 1))
        chosen = [words[number] for number in sorted(rng.choice(len(words), count, replace=False))]
        wanted = {"words": chosen}
        return (" ".join(chosen), wanted) if self.shelf.holds(item, wanted) else None

    def _price_phrase(self, item: int, wanted: dict[str, Any], rng: np.random.Generator) -> str:
        """A true bound on the price, as a phrase behind the thing; empty for an item without one."""
        price = float(self.facts.prices_N[item])
        if np.isnan(price) or price <= 0:
            return ""
        levels = self.facts.price_levels.get(self.facts.items[item].kind)
        if levels and price <= levels[0] and rng.random() < 0.3:
            wanted["max_price"] = levels[0]
            return ", as cheap as it gets" if rng.random() < 0.3 else ", something cheap"
        step = next(step for step in _STEPS if step * 20 >= price or step == _STEPS[-1])
        above = (int(price // step) + 1 + int(rng.integers(0, 3))) * step
        below = int(price // step) * step
        wanted["max_price"] = round(above - 0.01, 2)  # "under 10 dollars" leaves 10 dollars out
        if below > 0 and price > below and rng.random() < 0.25:
            wanted["min_price"] = float(below)
            wanted["max_price"] = float(above)
            return f" between {below} and {above} dollars"
        forms = (" under {} dollars", " for less than {} dollars", " below ${}", " under ${}", ", max ${}")
        form = forms[int(rng.integers(len(forms)))]
        if "max" in form:
            wanted["max_price"] = float(above)
        return form.format(above)

    def _exclusion(self, item: int, wanted: dict[str, Any], rng: np.random.Generator) -> str:
        """Something a sibling has and this item has not; empty where the siblings asked tell nothing."""
        own = self.facts.items[item]
        siblings = self.facts.siblings.get(own.kind, ())
        for sibling in rng.permutation(siblings)[:_MOST_SIBLINGS_ASKED] if len(siblings) > 1 else ():
            other = self.facts.items[int(sibling)]
            if own.brand_given and other.brand_given and other.brand != own.brand and rng.random() < 0.4:
                if "brand" in wanted or not other.brand:
                    continue
                wanted["not_brand"] = [other.brand]
                return (", but not from {}", ", not {}", ", anything but {}")[int(rng.integers(3))].format(
                    other.brand
                )
            lacking = [trait for trait in other.traits if trait.role in ("before", "colour", "with")]
            lacking = [trait for trait in lacking if not self.shelf.words.holds(item, trait.words)]
            if any(word in COLOURS for word in wanted["words"]):  # who wants red need not say "not blue"
                lacking = [trait for trait in lacking if trait.role != "colour"]
            if lacking:
                trait = lacking[int(rng.integers(len(lacking)))]
                wanted["not_words"] = [trait.words]
                form = (", without {}", ", no {}") if trait.role == "with" else (", not {}", ", but not {}")
                return form[int(rng.integers(2))].format(trait.words)
        return ""

    def _said(
        self, facts: ItemFacts, traits: list[Trait], maker: str, ending: str, rng: np.random.Generator
    ) -> str:
        by_role: dict[str, list[str]] = {}
        for trait in traits:
            by_role.setdefault(trait.role, []).append(trait.words)
        front = " ".join([*by_role.get("before", ()), *by_role.get("colour", ())])
        back = "".join(
            f" {role} {' and '.join(by_role.get(role, ()))}" for role in ("for", "with") if role in by_role
        )
        back += "".join(f", {words}" for words in (*by_role.get("size", ()), *by_role.get("pack", ())))
        if maker:
            if rng.random() < 0.5:
                front = f"{maker} {front}".strip()
            else:
                back = f"{(' by ', ' from ')[int(rng.integers(2))]}{maker}{back}"
        forms = _ASKED_FOR_SOME if facts.plural or rng.random() < 0.3 else _ASKED_FOR_ONE
        if ending:  # "..., not brown" ends a sentence
            forms = tuple(form for form in forms if form.rstrip(".?").endswith("}"))
        form = forms[int(rng.integers(len(forms)))]
        one = f"{front} {facts.thing}".strip()
        some = f"{front} {plural_of(facts.thing)}".strip()
        terse = rng.random() < 0.25
        text = f"{one}{back}{ending}" if terse else form.format(
            a=f"{facts.named(one)}{back}{ending}", some=f"{some}{back}{ending}"
        )  # fmt: skip
        return text.lower() if rng.random() < 0.3 else text


def drawn_split(rng: np.random.Generator, held_out: float) -> IntentSplit:
    """Which split a request goes to: `held_out` of all to valid, and as many to test."""
    draw = rng.random()
    return "valid" if draw < held_out else "test" if draw < 2 * held_out else "train"


def query(item: int, text: str, wanted: dict[str, Any], split: IntentSplit) -> Intent:
    return Intent("query", (text,), item, split=split, wanted=wanted)
