"""How requests are said: noun phrases with what is wanted and what is not, in many frames.

Some frames are held out: requests of valid and test use them, training never does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sft.intents.facts import ItemFacts, Trait
from sft.intents.titles import AMBIGUOUS_COLOURS, plural_of

# {a}: "a red tent under 80 dollars", {some}: the same in the plural. A frame that goes on behind it takes no
# ending that was set off by a comma.
_ASKED_FOR_ONE = (
    *("{a}", "{a}", "{a}, please", "I am looking for {a}", "I'm looking for {a}.", "looking for {a}"),
    *("I need {a}", "need {a}", "I want {a}.", "I would like {a}, please.", "I'd like {a}"),
    *("do you have {a}?", "can you find me {a}?", "could you show me {a}?", "is there {a}?", "find me {a}"),
    *("show me {a}", "help me find {a}", "{a} would be nice", "where can I find {a}?", "please get me {a}"),
    *("could I see {a}?", "I could do with {a}", "we are after {a}", "my old one broke, so I need {a}"),
    *("have you {a} in stock?", "what about {a}?", "how about {a}?", "suggest {a}", "I fancy {a}"),
    *("what is a good choice for somebody who wants {a}?", "I have been looking everywhere for {a}"),
    *("I would love {a}", "my brother asked for {a}", "let us find {a}", "point me to {a}", "send me {a}"),
    *("can I get {a} here?", "I wonder whether you sell {a}", "it has to be {a}", "one thing: {a}"),
)
_ASKED_FOR_SOME = (
    *("{some}", "{some}, please", "show me {some}", "which {some} do you have?", "what {some} are there?"),
    *("do you sell {some}?", "any {some}?", "I want to see {some}.", "list {some}", "I am comparing {some}"),
    *("give me an overview of {some}", "could I see some {some}?", "which are your best {some}?"),
    *("I am in the market for {some}", "we need {some}", "have you {some} in stock?", "what about {some}?"),
    *("I like {some}", "pick a few {some} for me", "tell me about your {some}", "where are your {some}?"),
)
_HELD_OUT_FOR_ONE = (
    *(
        "got {a}?",
        "what would you suggest if I wanted {a}?",
        "my next purchase should be {a}",
        "search for {a}",
    ),
    *("I was hoping to find {a}.", "recommend me {a}"),
)
_HELD_OUT_FOR_SOME = (
    "are there any {some}?",
    "let me look at {some}",
    "what do you have in the way of {some}?",
)
_OPENINGS = (
    *("I need {a}.", "I am looking for {a}.", "Looking for {a}.", "Show me {a}.", "{a}, please."),
    *("I have to buy {a}.", "Suggest {a}.", "We are after {a}.", "A friend needs {a}.", "I want {a}."),
)
# What people say before they ask: whoever learns from few frames reads the frame and not what is asked for.
_LEADS = (
    *("hi, ", "hello, ", "hey, ", "good morning, ", "ok, ", "so, ", "well, ", "a question: ", "once more: "),
    *("for a friend: ", "for my holiday: ", "for work: ", "as a gift: ", "it is for me, ", "if I may: "),
)
_HELD_OUT_OPENINGS = ("I was thinking of {a}.", "My sister wants {a}.")
_BY_NAMES = ("do you have {}?", "looking for {}", "{}, please", "I am after {}", "find {}")
_HELD_OUT_BY_NAMES = ("got any {}?", "search for {}", "anything like {}?")
_WISHES = ("{}, please.", "{} if possible.", "Ideally {}.")
_WISH_OF_BEING = "It should be {}."  # fits these only
_BEING = ("not ", "under ", "below ", "less ", "over ", "above ", "between ")


@dataclass(frozen=True)
class Said:
    """What one request says, before it is words.

    Attributes:
        before: words before the thing, such as "cheap".
        brand: as the catalogue spells it; empty where none is asked for.
        price: "under 10 dollars"; empty without a bound.
        unwanted: "not brown"; empty without an exclusion.
        names: what else a title says, of what is asked for.
    """

    facts: ItemFacts
    traits: Sequence[Trait] = ()
    before: str = ""
    brand: str = ""
    price: str = ""
    unwanted: str = ""
    names: Sequence[str] = ()


def pick(forms: Sequence[str], rng: np.random.Generator) -> str:
    return forms[int(rng.integers(len(forms)))]


def sentence(said: Said, rng: np.random.Generator, held_out: bool) -> str:
    """One request, drawn among all the ways to say it."""
    style = rng.random()
    if not said.facts.thing:
        text = _by_names(said, rng, held_out)
    elif style < 0.15 and not held_out:
        text = _terse(said, rng)
    elif style < 0.3 and (said.price or said.unwanted):
        text = _in_two(said, rng, held_out)
    else:
        text = _framed(said, rng, held_out)
    draw = rng.random()
    return text.lower() if draw < 0.3 else text[0].upper() + text[1:] if draw < 0.6 else text


def noun_phrase(said: Said, rng: np.random.Generator, plural: bool = False) -> str:
    """What is wanted, without an article: "red Aurora tent under 80 dollars, not two-person"."""
    before = [said.before] if said.before else []
    behind = ""
    by_role: dict[str, list[str]] = {}
    for trait in said.traits:
        by_role.setdefault(trait.role, []).append(trait.words)
    described = [*by_role.get("line", ()), *by_role.get("before", ())]
    for colour in by_role.get("colour", ()):
        if colour in AMBIGUOUS_COLOURS or len(by_role["colour"]) > 1 or rng.random() < 0.7:
            described.append(colour)
        else:
            behind += f" in {colour}"
    for role in ("with", "for"):
        behind += f" {role} {' and '.join(by_role[role])}" if role in by_role else ""
    if said.brand:
        if rng.random() < 0.4:
            before.append(said.brand)
        else:
            behind += f" {pick(('from', 'by'), rng)} {said.brand}"
    behind += f" {said.price}" if said.price else ""
    sizes = by_role.get("size", [])
    if sizes and rng.random() < 0.5:
        before, sizes = [*before, *sizes], []
    apart = [*said.names, *sizes, *by_role.get("pack", ())]
    apart += [pick(("{}", "but {}"), rng).format(said.unwanted)] if said.unwanted else []
    thing = plural_of(said.facts.thing) if plural else said.facts.thing
    return " ".join([*before, *described, thing]) + "".join([behind, *(f", {words}" for words in apart)])


def _framed(said: Said, rng: np.random.Generator, held_out: bool) -> str:
    plural = said.facts.plural or rng.random() < 0.25
    if plural:
        forms = _HELD_OUT_FOR_SOME if held_out else _ASKED_FOR_SOME
        if said.facts.plural and rng.random() < 0.6:  # "I need some red socks"
            forms = _HELD_OUT_FOR_ONE if held_out else _ASKED_FOR_ONE
    else:
        forms = _HELD_OUT_FOR_ONE if held_out else _ASKED_FOR_ONE
    phrase = noun_phrase(said, rng, plural)
    if "," in phrase or said.price:
        forms = [form for form in forms if form.rstrip(".?").endswith("}")]
    form = pick(forms, rng)
    text = form.format(a=said.facts.named(phrase), some=phrase)
    # Who types a bare phrase often leaves the article out.
    text = phrase if form == "{a}" and rng.random() < 0.3 else text
    return pick(_LEADS, rng) + text if rng.random() < 0.2 and not held_out else text


def _in_two(said: Said, rng: np.random.Generator, held_out: bool) -> str:
    """The thing first, what it may cost and must not be in a sentence of its own."""
    wishes = " and ".join(words for words in (said.price, said.unwanted) if words)
    phrase = noun_phrase(replace(said, price="", unwanted=""), rng)
    opening = pick(_HELD_OUT_OPENINGS if held_out else _OPENINGS, rng).format(a=said.facts.named(phrase))
    forms = [*_WISHES, _WISH_OF_BEING] if wishes.startswith(_BEING) and "no " not in wishes else _WISHES
    wish = pick(forms, rng).format(wishes)
    return f"{opening[0].upper()}{opening[1:]} {wish[0].upper()}{wish[1:]}"


def _terse(said: Said, rng: np.random.Generator) -> str:
    """Search words in no certain order."""
    words = [said.facts.thing, *(trait.words for trait in said.traits), *said.names]
    words += [said.brand] if said.brand else []
    words = [words[place] for place in rng.permutation(len(words))]
    words = [*([said.before] if said.before else []), *words, said.price, said.unwanted]
    return " ".join(filter(None, words)).lower()


def _by_names(said: Said, rng: np.random.Generator, held_out: bool) -> str:
    """A thing nobody can name is asked for by what is remembered of its title."""
    words = [*([said.brand] if said.brand else []), *said.names, *(trait.words for trait in said.traits)]
    phrase = " ".join(words) + (f" {said.price}" if said.price else "")
    if rng.random() < 0.5 and not held_out:
        return phrase
    return pick(_HELD_OUT_BY_NAMES if held_out else _BY_NAMES, rng).format(phrase)
