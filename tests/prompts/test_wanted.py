"""Constraints as data: what words are equal, and which items satisfy them."""

import itertools

import numpy as np
import pytest

from prompts.wanted import Shelf, check_wanted, fitting
from prompts.word_index import WordIndex, words_of
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError

ROWS = [
    {
        "item_id": "0",
        "title": "Red Lipsticks, Matte",
        "brand": "Aurora",
        "price": 9.5,
        "categories": ["Lips"],
    },
    {"item_id": "1", "title": "Lipstick", "description": "A red one, 12 Fl. Ounces", "brand": "AURORA"},
    {"item_id": "2", "title": "Fragrance-free balm", "brand": "Cairn", "price": 10},
    {"item_id": "3", "title": "Balm with fragrance", "brand": "", "price": 10.01, "categories": ["Skin"]},
    {
        "item_id": "4",
        "title": "Nail polish. Red",
        "brand": "Cairn",
        "price": 0,
        "categories": ["Skin", "Lips"],
    },
    {"item_id": "5", "title": "Redwood nail", "description": "polish", "brand": "Fjord", "price": 99},
]


@pytest.fixture(scope="module")
def shelf():
    return Shelf(Catalog.from_rows(ROWS))


@pytest.mark.parametrize(
    ("wanted", "items"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"words": ["red"]}, [0, 1, 4]),
        ({"words": ["lipstick", "RED"]}, [0, 1]),
        ({"words": ["12 oz"]}, [1]),
        ({"words": ["fragrance"]}, [3]),
        ({"words": ["fragrance free"]}, [2]),
        ({"not_words": ["fragrance"]}, [0, 1, 2, 4, 5]),
        ({"words": ["nail polish"]}, [4]),  # a phrase does not reach from the title into the description
        ({"words": ["polish", "nail"]}, [4, 5]),
        ({"words": ["unheard of"]}, []),
        ({"not_words": ["unheard of"]}, [0, 1, 2, 3, 4, 5]),
        ({"brand": "aurora"}, [0, 1]),
        ({"not_brand": ["Aurora", "cairn"]}, [3, 5]),
        ({"brand": "nobody"}, []),
        ({"category": "lips"}, [0, 4]),
        ({"max_price": 10}, [0, 2, 4]),
        ({"min_price": 10}, [2, 3, 5]),
        ({"min_price": 9.5, "max_price": 10}, [0, 2]),
        ({"category": "Skin", "not_brand": ["Cairn"], "words": ["balm"]}, [3]),
    ],
)
def test_which_items_fit(shelf, wanted, items):
    assert np.flatnonzero(shelf.fits(wanted)).tolist() == items
    assert [item for item in range(len(ROWS)) if shelf.holds(item, wanted)] == items


def test_what_is_off_the_shelf_fits_nothing():
    live_N = np.array([False, True, True, True, True, False])
    fits = fitting(Catalog.from_rows(ROWS), live_N)
    assert np.flatnonzero(fits({"words": ["red"]})).tolist() == [1, 4]
    assert not Shelf(Catalog.from_rows(ROWS), live_N).holds(0, {"words": ["red"]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("L'Oréal Paris women's", "loréal pari women"),
        ("8-Ounces 0.5-Fluid Ounce 7.25 oz. Jar", "8oz 0.5oz 7.25oz jar"),
        ("brushes glasses accessories sizes dress lens", "brush glass accessory size dress len"),
        ("(Pack of 3) 50 count", "pack of 3 50pc"),
        ("no parabens, free of dyes; without alcohol", "no-paraben no-dye no-alcohol"),
        ("sugar free and free", "sugar-free and-free"),
        ("free", "free"),
        ("no", "no"),
        ("a\nfree b", "a \n free b"),
        ("!! ...", ""),
    ],
)
def test_words_are_compared_in_one_form(text, words):
    assert words_of(text) == (words.split(" ") if words else [])


def test_the_index_finds_what_reading_finds():
    """Against a search through the words, over all phrases of up to three words of a small language."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcd"), rng.integers(0, 9))) for _ in range(60)]
    index = WordIndex(texts)
    for size in (1, 2, 3):
        for phrase in map(" ".join, itertools.product("abcd", repeat=size)):
            expected = [row for row, text in enumerate(texts) if f" {phrase} " in f" {text} "]
            assert index.rows(phrase).tolist() == expected
            assert [row for row in range(len(texts)) if index.holds(row, phrase)] == expected
    assert not len(index.rows("e")) and not index.holds(0, "a e") and not len(index.rows("--"))
    assert not len(WordIndex([]).rows("a")) and not len(WordIndex(["", ""]).rows("a"))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([], r"w is \[\]; expected an object"),
        ({"colour": "red"}, "w.colour: unknown key; known keys: brand, category"),
        ({"max_prize": 3}, "w.max_prize: unknown key; did you mean 'max_price'"),
        ({"max_price": "10"}, "w.max_price is '10'; expected a number"),
        ({"max_price": True}, "w.max_price is True; expected a number"),
        ({"words": "red"}, "w.words is 'red'; expected texts"),
        ({"words": ["red", "-"]}, "w.words is .*; expected texts"),
        ({"brand": ["Aurora"]}, "w.brand is .*; expected a text"),
    ],
)
def test_constraints_that_make_no_sense_are_named(wanted, message):
    with pytest.raises(InputError, match=message):
        check_wanted(wanted, "w")
