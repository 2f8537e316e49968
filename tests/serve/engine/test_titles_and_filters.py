"""Items by the words of clients: titles in a text, conditions over the catalogue's columns."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from serve.decoding.ranking import ItemFilter
from serve.engine import item_filters
from serve.engine.item_filters import ItemFilters
from serve.engine.titles import TitleIndex
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex

ROWS = [
    {
        "item_id": "a",
        "title": "Red Trail Shoes",
        "brand": "Acme",
        "categories": ["Shoes", "Trail"],
        "price": 50,
    },
    {"item_id": "b", "title": "red trail shoe", "brand": "acme", "categories": ["Shoes"], "price": 70.5},
    {"item_id": "c", "title": "Red", "brand": "", "categories": [], "price": None},
    {
        "item_id": "d",
        "title": "Red Trail Shoes, size 12",
        "brand": "Ötzi",
        "categories": ["shoes"],
        "price": 20,
    },
    {"item_id": "e", "title": "", "brand": "Other", "categories": ["Lamps"], "price": 0},
    {"item_id": "f", "title": "Lamp: Night-Light", "brand": "Other", "categories": ["Lamps"], "price": 5},
]


def make_shelf(counts=(1, 9, 1, 1, 1, 1), removed=()) -> SidIndex:
    codes = np.arange(6, dtype=np.int32)[:, None]
    removed_N = np.isin(np.arange(6), removed)
    return SidIndex(Catalog.from_rows(ROWS), SemanticIds(codes, (6,)), np.array(counts), removed_N=removed_N)


def test_a_title_is_found_whatever_its_case_plural_and_punctuation():
    titles = TitleIndex(make_shelf())
    assert titles.item_of("RED TRAIL SHOES!") == 1  # of two items the one most frequent in train
    assert TitleIndex(make_shelf(counts=(5, 5, 0, 0, 0, 0))).item_of("red trail shoes") == 0
    assert titles.item_of("night light") is None and titles.item_of("lamp night light") == 5
    assert titles.item_of("Red") == 2
    assert titles.item_of("") is None and titles.item_of("...") is None


def test_mentions_are_the_longest_titles_in_the_order_of_the_text():
    titles = TitleIndex(make_shelf())
    found = titles.mentions("My lamp, night-light, and the red trail shoes (size 12): what else?")
    assert [mention.item_index for mention in found] == [5, 3]
    found = titles.mentions("red trail shoes or red trail shoes size 12")
    assert [(mention.item_index, mention.text) for mention in found] == [
        (1, "red trail shoe"),
        (3, "red trail shoe size 12"),
    ]


def test_what_mentions_nothing():
    titles = TitleIndex(make_shelf())
    assert titles.mentions("something red") == []  # a title of one word is a word
    assert titles.mentions("Red trail shoes") == []  # nothing but the title: a search for it
    assert titles.mentions("the red\ntrail shoes") == []  # a line's end is between them
    assert titles.mentions("") == []


def names(filters, conditions):
    return "".join(ROWS[item]["item_id"] for item in np.flatnonzero(filters.mask(conditions)))


@pytest.mark.parametrize(
    ("conditions", "items"),
    [
        ({"field": "brand", "eq": "ACME"}, "ab"),
        ({"field": "brand", "in": ["ötzi", "other"]}, "def"),
        ({"field": "category", "in": ["Shoes"]}, "abd"),
        ({"field": "category", "eq": "trail"}, "a"),
        ({"field": "price", "min": 5}, "abdf"),
        ({"field": "price", "max": 20}, "def"),
        ({"field": "price", "min": 5, "max": 50}, "adf"),
        ({"field": "price", "in": [0, 70.5]}, "be"),
        ({"not": {"field": "price", "max": 20}}, "abc"),
        ({"and": [{"field": "category", "eq": "shoes"}, {"field": "price", "min": 50}]}, "ab"),
        ({"or": [{"field": "brand", "eq": "other"}, {"not": {"field": "price", "min": 0}}]}, "cef"),
        ({"and": [{"or": [{"field": "brand", "eq": "nobody"}]}]}, ""),
    ],
)
def test_conditions(conditions, items):
    assert names(ItemFilters(make_shelf()), conditions) == items


def test_further_columns_of_a_source_are_fields():
    index = make_shelf()
    table = index.catalog.table.append_column("colour", pa.array(["red", "Red", None, "blue", None, "x"]))
    filters = ItemFilters(dataclasses.replace(index, catalog=Catalog(table)))
    assert filters.fields == ["category", "brand", "price", "domain", "colour"]
    assert names(filters, {"field": "colour", "eq": "RED"}) == "ab"


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({}, "filters: {} is no condition"),
        ({"and": {"field": "brand", "eq": "x"}}, "filters.and: .* is no list"),
        ({"and": ["brand"]}, r"filters.and\[0\]: 'brand' is no condition"),
        ({"and": [{"field": "brand", "eq": "x"}], "or": []}, "filters: .* stand side by side"),
        ({"field": "brand"}, "filters: .* on 'brand'; give eq, in, or min and max"),
        ({"field": "brand", "eq": "x", "in": ["y"]}, "give eq, in, or min and max"),
        ({"field": "brand", "min": 3}, "'brand' is a text and has no min and max"),
        ({"field": "brand", "eq": 3}, "filters.eq: 3 is not a text"),
        ({"field": "price", "min": True}, "filters.min: True is not a number"),
        ({"field": "price", "in": []}, "filters.in: .* is no list of values"),
        ({"field": "brand", "like": "x"}, "filters.like: unknown key"),
        ({"field": "title", "eq": "x"}, "filters.field: 'title' is no field of this catalogue; use"),
        ({"field": ["brand"], "eq": "x"}, "is no field of this catalogue"),
        ({"and": [{"field": "brand", "eq": "x"}] * 64}, "filters: more than 64 conditions"),
    ],
)
def test_conditions_that_cannot_be_read(conditions, words):
    with pytest.raises(InputError, match=words):
        ItemFilters(make_shelf()).mask(conditions)


def test_deep_nesting_is_refused():
    deep = {"field": "brand", "eq": "x"}
    for _ in range(8):
        deep = {"not": deep}
    with pytest.raises(InputError, match="8 levels"):
        ItemFilters(make_shelf()).mask(deep)


def test_masks_are_kept_by_content_and_not_without_end(monkeypatch):
    filters = ItemFilters(make_shelf())
    first = filters.mask({"field": "price", "min": 5, "max": 50})
    assert filters.mask({"max": 50, "min": 5, "field": "price"}) is first
    monkeypatch.setattr(item_filters, "KEPT_FILTERS", 3)
    for low in range(9):
        filters.mask({"field": "price", "min": low})
    assert len(filters._kept) <= 4
    assert filters.mask({"field": "price", "min": 5, "max": 50}) is not first


def test_a_requests_filter():
    filters = ItemFilters(make_shelf(removed=(3,)))
    none, count = filters.item_filter(None)
    assert none is None and count == 5
    seen, count = filters.item_filter(None, exclude=np.array([0, 0, 3]))
    assert isinstance(seen, ItemFilter) and (seen.exclude.tolist(), count) == ([0, 3], 4)
    shoes = {"field": "category", "eq": "shoes"}
    both, count = filters.item_filter(shoes, exclude=np.array([0]), allow=np.array([0, 1, 3, 5]))
    assert both.allow.tolist() == [1, 3] and count == 1
    assert filters.mask(shoes).sum() == 3  # what is kept was not changed
