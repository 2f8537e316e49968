"""How shops write titles: segments, and words that are colours, units or only glue.

"Neutrogena Rapid Clear Eye Makeup Remover for Sensitive Skin, 4 Ounce (Pack of 2)" is three segments; in the
first, a brand, what describes the thing, the thing, and behind a preposition what it is for.
"""

import html
import re
from functools import lru_cache

from prompts.word_index import words_of

# A full stop ends a part behind a word of three letters: "St. Ives" and "No. 5" go on.
_SEPARATOR = re.compile(r"\s[-–—|:~+*]+\s|[,;()\[\]\"“”|®™•★]+|(?<=\w\w\w)[.!?:](?=\s|$)")
_WORD = re.compile(r"[^\W_]+(?:[.'’/-][^\W_]+)*%?|&")
_WITH = re.compile(r"\bw/", re.IGNORECASE)
_MEASURE = re.compile(
    r"(?<![\w.,/-])(\d+(?:\.\d+)?)[\s-]?"
    r"(fl\.? ?oz|fluid ounces?|ounces?|oz|ml|mm|cm|inch|lbs?|kg|watts?|count)\b",
    re.IGNORECASE,
)
_PACK = re.compile(r"\b(pack|set|box|case) of (\d+)\b", re.IGNORECASE)

PREPOSITIONS = frozenset("for with of in by from to and or & on at without as plus".split())
# These may stand inside a phrase: "for dry and damaged hair".
JOINING = frozenset(("and", "or", "to", "&"))
# What follows these describes the thing: "for dry hair", "with aloe".
DESCRIBING = ("for", "with")
COLOURS = frozenset(
    "red blue green black white grey gray yellow orange purple pink brown beige silver gold teal "
    "turquoise violet navy burgundy coral ivory bronze copper lavender magenta maroon mint peach plum "
    "rose lilac khaki olive charcoal amber blonde blond brunette nude clear transparent".split()
)
# Scents and metals as well: nothing comes "in lavender" for certain.
AMBIGUOUS_COLOURS = frozenset(
    "lavender mint peach plum rose lilac olive amber coral charcoal nude ivory gold silver copper bronze "
    "clear transparent".split()
)
# Never what a thing is called, nor a word that describes it alone.
_UNITS = frozenset(
    "oz ounce ml mm cm inch in lb lbs kg g fl fluid pack count ct pcs pc piece pieces pair x size "
    "sizes ea each w set dozen qty quantity gallon liter ft foot feet volt watt watts v awg gauge "
    "gram grams".split()
)
_GLUE = frozenset(
    "a an the all any this that your our my his her its it you we they is are be can will not no new "
    "sale free shipping shade color colour colors colours style type types use used using one two "
    "three assorted original professional brand collection foods smart value genuine bonus gift best "
    "great good more most other up out me us uk usa american version model made quality premium high "
    "low deluxe super ultra each same such than into over per items package twin grade edition project "
    "surface safety extra pump bottle container containers capacity professionals cosmetics naturals "
    "features feature includes included".split()
)
NEVER_ALONE = (
    _UNITS | _GLUE | PREPOSITIONS | {"pro", "plus", "medium", "light", "dark", "large", "small", "mini"}
)
_NO_PLURAL = frozenset("lens gas canvas chassis series species bias atlas iris plus".split())
_UNCOUNTED = frozenset("tubing caulk hair makeup paper grease yeast putty cement toothpaste wire".split())
_ALWAYS_PLURAL = frozenset(
    "scissors tweezers pliers glasses goggles tongs clippers shears pants jeans shorts".split()
)


def segments(text: str) -> list[list[str]]:
    """Words of each part between separators, spelled as they are; parts without a word are left out."""
    text = _WITH.sub("with ", html.unescape(text))
    return [words for part in _SEPARATOR.split(text) if part and (words := _WORD.findall(part))]


@lru_cache(maxsize=1 << 18)
def key(word: str) -> str:
    """What two spellings of a word have in common: case and plural are gone."""
    return " ".join(words_of(word)) or word


def is_plural(word: str) -> bool:
    low = word.lower()
    return low in _ALWAYS_PLURAL or (low.endswith("s") and key(low) != low and low not in _NO_PLURAL)


def is_uncounted(word: str) -> bool:
    """Whether there is "some" of it, and no two of it."""
    return word.lower() in _UNCOUNTED


def plural_of(thing: str) -> str:
    """The last word in the plural: "nail polish" -> "nail polishes"."""
    last = thing.rsplit(" ", 1)[-1]
    if is_plural(last) or is_uncounted(last):
        return thing
    if re.search(r"[^aeiou]y$", thing):
        return thing[:-1] + "ies"
    return thing + ("es" if re.search(r"(?:s|x|z|ch|sh)$", thing) else "s")


def article(phrase: str) -> str:
    """ "a" or "an", by how the first word sounds."""
    first = phrase.split(" ", 1)[0].lower()
    if re.match(r"(?:8|11|18)(?:\D|$)|8\d|l[ec]d\b", first):
        return "an"
    if re.match(r"u(?:ni|s[aeb]|v|r[aeiou]|t[aeiou]|se)|eu|one|\d", first):
        return "a"
    spelled = phrase.split(" ", 1)[0]
    if (
        len(spelled) > 1
        and spelled.isupper()
        and spelled.isalpha()
        and not re.search(r"[AEIOU]", spelled[1:])
    ):
        return "an" if spelled[0] in "AEFHILMNORSX" else "a"  # letters are spelled out: an LED lamp
    return "an" if first[0] in "aeio" or first.startswith(("u", "hour", "heir", "hono")) else "a"


def measures(title: str) -> list[str]:
    """Sizes the title states, as one would say them: "12 oz", "1.75 mm"."""
    found = []
    for number, unit in _MEASURE.findall(title):
        unit = re.sub(r"^(?:fluid|fl)\W*", "", unit.lower())
        unit = {"ounces": "oz", "ounce": "oz", "lbs": "lb", "watts": "watt"}.get(unit, unit)
        found.append(f"{number} {unit}")
    return found


def packs(title: str) -> list[str]:
    """ "pack of 3" and the like."""
    return [
        f"{what.lower()} of {number}" for what, number in _PACK.findall(title) if number not in ("0", "1")
    ]
