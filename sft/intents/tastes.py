"""Tastes of users in words, and what they are after next: from the interactions before a case's target, and
for an intention the target itself. Those of train know nothing of valid and test.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from prompts.intents import Intent, IntentSplit
from sft.intents.facts import CatalogFacts, ItemFacts, Trait
from sft.intents.grammar import pick
from sft.intents.lexicon import describes_by_form
from sft.intents.requests import RequestWriter, add
from sft.intents.titles import plural_of
from sid_builder.interactions import Histories, Interactions
from sid_builder.sid_index import SidIndex

_MOST_HISTORY = 20
_LEAST_HISTORY = 2
_MOST_THINGS = 3
_LEAST_TIMES = 2  # once is no taste
_LEAST_PRICED, _SHARE_PRICED = 3, 0.5  # cheap (or dear) items that make a thrifty (or generous) buyer
_OF_QUALITY = ("preferably {}", "mostly {}", "the more {} the better")
_OF_BRAND = ("often from {}", "above all from {}", "by {} again and again")
_CHEAP = ("the cheaper the better", "nothing expensive", "on a budget")
_DEAR = ("from the upper price range", "money is no object")
_PLAIN = (
    *("now I need {a}", "I would like {a} to go with the rest", "next I am after {a}", "time for {a}"),
    *("what goes with my things is {a}", "I could use {a} as well"),
)
_SAME_THING = (
    "another {one}, a different one",
    "one more {one}",
    "I keep buying {some}, what else is there?",
)
_SAME_BRAND = (
    *("I like what {brand} makes, now I want {a}", "{a}, from {brand} again", "{brand} once more: {a}"),
    "I keep coming back to {brand}, so {a} of theirs",
)
_SAME_TRAIT = ("{a}, like what I had before", "{a} again in that style", "I seem to like {trait} things: {a}")


def newest_cases(index: SidIndex, interactions: Interactions, split: IntentSplit) -> Histories:
    """The newest case of every sequence in a split that a decoder can get right and that has some history."""
    cases = index.reachable(interactions.histories(split))
    last_C = np.diff(cases.sequence_C, append=-1) != 0
    return cases.take(np.flatnonzero(last_C & (cases.position_C >= _LEAST_HISTORY)))


def intentions(writer: RequestWriter, cases: Histories, split: IntentSplit, seed: int) -> Iterator[Intent]:
    """What each case's user is after: its target, by what it has in common with the history."""
    users = cases.interactions.users
    for case in range(len(cases)):
        target = int(cases.targets_C[case])
        history = cases.history(case, _MOST_HISTORY)
        facts = writer.facts.items[target]
        if not facts.thing:
            continue
        sequence = int(cases.sequence_C[case])
        rng = np.random.default_rng([seed, 1, sequence])
        before = [writer.facts.items[int(item)] for item in history]
        text, wanted = _intention(writer, facts, before, rng)
        if writer.shelf.holds(target, wanted):
            yield Intent(
                "intention",
                (text,),
                target,
                history=tuple(history.tolist()),
                user=str(users[sequence]),
                split=split,
                wanted=wanted,
            )


def _intention(
    writer: RequestWriter, facts: ItemFacts, before: Sequence[ItemFacts], rng: np.random.Generator
) -> tuple[str, dict]:
    wanted = writer.thing_wanted(facts)
    reasons = []
    if facts.brand and any(other.brand == facts.brand for other in before):
        reasons.append("brand")
    told = {trait for other in before for trait in other.traits if trait.role in ("before", "colour")}
    shared: list[Trait] = [trait for trait in facts.traits if trait in told]
    reasons += ["trait"] if shared else []
    reasons += ["thing"] if any(other.kind == facts.kind for other in before) else []
    reason = pick(reasons, rng) if reasons else ""
    if reason == "brand":
        add(wanted, "words", *(() if facts.brand_given else (facts.brand,)))
        wanted |= {"brand": facts.brand} if facts.brand_given else {}
        return pick(_SAME_BRAND, rng).format(brand=facts.brand, a=writer.phrase(facts, [], rng)), wanted
    if reason == "thing":
        one, some = facts.thing, plural_of(facts.thing)
        return pick(_SAME_THING[2:] if facts.plural else _SAME_THING, rng).format(one=one, some=some), wanted
    if reason == "trait":
        trait = shared[int(rng.integers(len(shared)))]
        add(wanted, "words", trait.words)
        phrase = writer.phrase(facts, [trait], rng)
        return pick(_SAME_TRAIT, rng).format(a=phrase, trait=trait.words), wanted
    return pick(_PLAIN, rng).format(a=writer.phrase(facts, [], rng)), wanted


def preferences(facts: CatalogFacts, cases: Histories, split: IntentSplit, seed: int) -> Iterator[Intent]:
    """The taste of each case's user, out of the case's history."""
    users = cases.interactions.users
    for case in range(len(cases)):
        history = cases.history(case, _MOST_HISTORY).tolist()
        sequence = int(cases.sequence_C[case])
        text = taste(facts, history, np.random.default_rng([seed, 2, sequence]))
        if text:
            yield Intent(
                "preference", (text,), history=tuple(history), user=str(users[sequence]), split=split
            )


def taste(facts: CatalogFacts, history: Sequence[int], rng: np.random.Generator) -> str:
    """What somebody likes, in words that follow "likes": kinds of things, then qualities, brands and price
    level as far as they recur; empty where nothing has a name.
    """
    items = [facts.items[item] for item in history]
    things = Counter(plural_of(item.thing) for item in items if item.thing)
    brands = _recurring(item.brand for item in items if item.brand)
    qualities = _recurring(
        trait.words
        for item in items
        for trait in item.traits
        if trait.role == "colour" or (trait.role == "before" and describes_by_form(trait.words))
    )
    parts = [_listed([name for name, _ in things.most_common(_MOST_THINGS)])] if things else []
    if qualities and parts:
        parts.append(
            pick(("preferably {}", "mostly {}", "the more {} the better"), rng).format(_listed(qualities))
        )
    if brands:
        said = (
            ("often from {}", "above all from {}", "by {} again and again") if parts else ("things from {}",)
        )
        parts.append(pick(said, rng).format(_listed(brands)))
    level = _price_level(facts, history)
    if level and parts:
        parts.append(pick(_CHEAP if level < 0 else _DEAR, rng))
    return ", ".join(parts)


def _recurring(words: Iterable[str]) -> list[str]:
    """The two most frequent of those that recur."""
    return [word for word, times in Counter(words).most_common(2) if times >= _LEAST_TIMES]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _price_level(facts: CatalogFacts, history: Sequence[int]) -> int:
    """-1 for somebody who buys what is cheap for its kind, 1 for what is dear, 0 where neither is plain."""
    below = above = 0
    for item in history:
        low, high = facts.price_levels.get(facts.items[item].kind, (-np.inf, np.inf))
        price = facts.prices_N[item]
        below, above = below + (price <= low), above + (price >= high)
    plain = max(below, above) >= max(_LEAST_PRICED, _SHARE_PRICED * len(history))
    return 0 if not plain else -1 if below > above else 1
