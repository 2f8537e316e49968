"""Tastes of users in words, and what they are after next: from the interactions of their own split alone."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from prompts.intents import Intent, IntentSplit
from sft.intents.facts import CatalogFacts, ItemFacts
from sft.intents.requests import RequestWriter
from sft.intents.titles import plural_of
from sid_builder.interactions import Histories, Interactions
from sid_builder.sid_index import SidIndex

_MOST_HISTORY = 20
_LEAST_HISTORY = 2
_AFTER = (
    "after what I bought so far, {a}",
    "I would like {a} to go with the rest",
    "next I am after {a}",
    "{a}, in keeping with what I have",
    "time for {a}",
)


def newest_cases(index: SidIndex, interactions: Interactions, split: IntentSplit) -> Histories:
    """The newest case of every user in a split that a decoder can get right and that has some history."""
    cases = index.reachable(interactions.histories(split))
    last_C = np.diff(cases.sequence_C, append=-1) != 0
    return cases.take(np.flatnonzero(last_C & (cases.position_C >= _LEAST_HISTORY)))


def intentions(
    writer: RequestWriter, cases: Histories, split: IntentSplit, rng: np.random.Generator
) -> Iterator[Intent]:
    """What each case's user is after: its target, by what it shares with the history where it does."""
    users = cases.interactions.users
    for case in range(len(cases)):
        target = int(cases.targets_C[case])
        history = cases.history(case, _MOST_HISTORY)
        facts = writer.facts.items[target]
        if not facts.thing:
            continue
        told = {trait.words for item in history for trait in writer.facts.items[int(item)].traits}
        said = [trait for trait in facts.traits if trait.role in ("before", "colour")]
        shared = [trait for trait in said if trait.words in told]
        wanted = {"category": facts.category} if facts.category else {"words": [facts.thing]}
        words = facts.thing
        if shared:
            trait = shared[int(rng.integers(len(shared)))]
            wanted["words"] = [*wanted.get("words", ()), trait.words]
            words = f"{trait.words} {words}"
        if not writer.shelf.holds(target, wanted):
            continue
        yield Intent(
            "intention",
            (_AFTER[int(rng.integers(len(_AFTER)))].format(a=facts.named(words)),),
            target,
            history=tuple(map(int, history)),
            user=str(users[int(cases.sequence_C[case])]),
            split=split,
            wanted=wanted,
        )


def preferences(facts: CatalogFacts, cases: Histories, rng: np.random.Generator) -> Iterator[Intent]:
    """The taste of each case's user, out of the case's history."""
    users = cases.interactions.users
    for case in range(len(cases)):
        history = cases.history(case, _MOST_HISTORY)
        text = _taste([facts.items[int(item)] for item in history], rng)
        if text:
            yield Intent(
                "preference",
                (text,),
                history=tuple(map(int, history)),
                user=str(users[int(cases.sequence_C[case])]),
            )


def _taste(items: list[ItemFacts], rng: np.random.Generator) -> str:
    """One or two sentences; empty where the items share nothing that has a name."""
    things = Counter(plural_of(facts.thing) for facts in items if facts.thing)
    brands = Counter(facts.brand for facts in items if facts.brand)
    traits = Counter(
        trait.words for facts in items for trait in facts.traits if trait.role in ("before", "colour")
    )
    if not things:
        return ""
    names = [name for name, _ in things.most_common(3)]
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    opening = ("Buys {}", "Mostly after {}", "Interested in {}", "Likes {}")[int(rng.integers(4))]
    text = opening.format(listed)
    brand, count = brands.most_common(1)[0] if brands else ("", 0)
    if count > 1:
        text += (", often from {}", ", keeps coming back to {}")[int(rng.integers(2))].format(brand)
    liked = [words for words, times in traits.most_common(2) if times > 1]
    if liked:
        text += ". " + ("Prefers things that are {}", "Tends to choose {}")[int(rng.integers(2))].format(
            " and ".join(liked)
        )
    return text + "."
