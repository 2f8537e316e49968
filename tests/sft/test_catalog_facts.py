"""What titles tell: things, brands, traits, in a shop of invented cosmetics whose truth is known."""

from pathlib import Path

import numpy as np
import pytest

from sft.intents.facts import CatalogFacts, Trait
from sft.intents.titles import article, measures, packs, plural_of, segments
from sid_builder.catalog import Catalog

BEAUTY = Path(__file__).parents[3] / "shared" / "data" / "amazon14_beauty" / "items.jsonl"
BRANDS = ("Calla's Garden", "Dorrit", "Vandelay Row", "Moxi", "St. Aubin")
THINGS = ("Mascara", "Nail Polish", "Body Wash", "Hair Dryer")
TRAITS = ("Waterproof", "Hydrating", "Organic")
# What a title may end with, and what that is.
ENDS = {
    "for Dry Skin": Trait("for", "dry skin"),
    "with Aloe": Trait("with", "aloe"),
    "- Teal": Trait("colour", "teal"),
    "12 Ounce": Trait("size", "12 oz"),
    "(Pack of 3)": Trait("pack", "pack of 3"),
}
SHADES = ("Opal", "Fern", "Dune", "Comet", "Tulip", "Cider", "Fjell", "Quartz", "Umbra", "Zephyr")


@pytest.fixture(scope="module")
def shop():
    titles = [
        f"{brand} {trait} {thing} {end}"
        for brand in BRANDS
        for trait in TRAITS
        for thing in THINGS
        for end in ENDS
    ]
    titles += [f"{BRANDS[n % 5]} Organic {THINGS[n % 4]}, {shade} Dream" for n, shade in enumerate(SHADES)]
    rows = [{"item_id": f"i{n}", "title": title} for n, title in enumerate(titles)]
    return titles, CatalogFacts(Catalog.from_rows(rows))


def test_things_brands_and_traits_are_found_without_a_column(shop):
    titles, facts = shop
    for title, item in zip(titles, facts.items, strict=True):
        (brand,) = [brand for brand in BRANDS if title.startswith(brand)]
        (thing,) = [thing for thing in THINGS if thing in title]
        (trait,) = [trait for trait in TRAITS if trait in title]
        assert (item.brand.replace(".", ""), item.brand_given) == (brand.replace(".", ""), False)
        assert (item.thing, item.category) == (thing.lower(), "")
        assert Trait("before", trait.lower()) in item.traits
        for end, expected in ENDS.items():
            assert (expected in item.traits) == title.endswith(end), title
        shade = [f"{shade.lower()} dream" for shade in SHADES if shade in title]
        assert item.names == tuple(shade)


def test_siblings_are_of_one_kind(shop):
    titles, facts = shop
    assert set(facts.siblings) == {"mascara", "nail polish", "body wash", "hair dryer"}
    for item in facts.siblings["nail polish"]:
        assert "Nail Polish" in titles[item]
    first = facts.items[0]
    assert first.kind == "mascara" and facts.num_siblings(first) == 78
    assert facts.share(first, "hydrating") == pytest.approx(25 / 78)
    assert facts.share(first, "opal dream") == pytest.approx(1 / len(titles))


def test_a_category_names_the_thing():
    rows = [
        {"item_id": f"i{n}", "title": f"Fjord {n} Wool Socks", "categories": ["Clothing", "wool sock"]}
        for n in range(3)
    ]
    for item in CatalogFacts(Catalog.from_rows(rows)).items:
        assert (item.thing, item.category, item.plural) == ("wool socks", "wool sock", True)
        assert item.named("red wool socks") == "some red wool socks"


def test_prices_have_levels_where_there_are_enough():
    rows = [{"title": "shiny torch", "price": 1.0 + n} for n in range(9)]
    rows += [{"title": "shiny lamp", "price": 1.0} for _ in range(4)]
    rows = [{"item_id": n, "brand": f"Brand{n % 3}", **row} for n, row in enumerate(rows)]
    levels = CatalogFacts(Catalog.from_rows(rows)).price_levels
    assert levels == {"torch": (3.0, 7.0)}


@pytest.mark.parametrize(
    ("phrase", "word"),
    [
        *[
            ("red tent", "a"),
            ("orange tent", "an"),
            ("8 oz jar", "an"),
            ("18-inch rod", "an"),
            ("80 oz", "an"),
        ],
        *[
            ("12 oz jar", "a"),
            ("unique pin", "a"),
            ("USB fan", "a"),
            ("unscented soap", "an"),
            ("hourglass", "an"),
        ],
        *[
            ("LED lamp", "an"),
            ("led lamp", "an"),
            ("TV mount", "a"),
            ("European plug", "a"),
            ("one-piece", "a"),
        ],
    ],
)
def test_articles(phrase, word):
    assert article(phrase) == word


def test_plurals():
    plurals = {"brush": "brushes", "body spray": "body sprays", "putty knife": "putty knifes", "bag": "bags"}
    plurals |= {"battery": "batteries", "socks": "socks", "tweezers": "tweezers", "tubing": "tubing"}
    assert {thing: plural_of(thing) for thing in plurals} == plurals


def test_parts_of_a_title():
    title = "St. Ives Scrub w/ Apricot, No. 5 - Fresh &amp; Clean (Pack of 2), 6 Fl. oz."
    assert segments(title) == [
        ["St", "Ives", "Scrub", "with", "Apricot"],
        ["No", "5"],
        ["Fresh", "&", "Clean"],
        ["Pack", "of", "2"],
        ["6", "Fl", "oz"],
    ]
    assert measures(title) == ["6 oz"] and packs(title) == ["pack of 2"]
    assert measures("0.5-Fluid Ounce and 1.75mm, 3/4-inch") == ["0.5 oz", "1.75 mm"]


@pytest.mark.data
@pytest.mark.skipif(not BEAUTY.is_file(), reason=f"real data: {BEAUTY} is absent")
def test_real_titles_are_mostly_understood():
    from sid_builder.sources.jsonl import JsonlArgs, load

    catalog = load(JsonlArgs(path=str(BEAUTY.parent))).catalog
    facts = CatalogFacts(catalog)
    named = np.mean([bool(item.thing) for item in facts.items])
    branded = np.mean([bool(item.brand) for item in facts.items])
    assert named > 0.75 and branded > 0.5
    things = {item.thing for item in facts.items}
    assert {"nail polish", "shampoo", "mascara", "eau de parfum spray", "flat iron"} <= things
    brands = {item.brand for item in facts.items}
    assert {"Maybelline New York", "OPI", "Burt's Bees", "Neutrogena"} <= brands
    assert not {"The", "New", "Nail", "Hair"} & brands
