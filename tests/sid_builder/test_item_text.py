"""Item texts from a template over catalogue columns."""

import pyarrow as pa
import pytest

from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.item_text import DEFAULT_TEMPLATE, check_template, item_texts

CATALOG = Catalog.from_rows(
    [
        {
            "item_id": "a",
            "title": "Red shoes",
            "brand": "Acme",
            "categories": ["Shoes", "Trail"],
            "price": 9.5,
        },
        {"item_id": "b", "title": "Blue tent", "description": "Wide."},
        {"item_id": "c"},
    ]
)


def test_optional_parts_go_with_their_empty_fields():
    assert item_texts(CATALOG, DEFAULT_TEMPLATE) == [
        "Red shoes. Acme. Shoes, Trail",
        "Blue tent. Wide.",
        "",
    ]
    assert item_texts(CATALOG, "[{brand}: ]{title}[ for {price}]") == [
        "Acme: Red shoes for 9.5",
        "Blue tent",
        "",
    ]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("title", "has no field; write one such as {title}"),
        ("{title}[{brand}", "brackets inside brackets or unclosed"),
        ("{title}[[{brand}]]", "brackets inside brackets or unclosed"),
    ],
)
def test_templates_that_cannot_work_are_named(template, message):
    with pytest.raises(InputError, match=f"text_template: .*{message}"):
        check_template(template)
    with pytest.raises(InputError, match="text_template: 'colour' is no catalogue column"):
        item_texts(CATALOG, "{title} {colour}")


def test_further_columns_of_any_kind_are_spelled():
    table = CATALOG.table.append_column("sizes", pa.array([[38, None, 40], None, []]))
    table = table.append_column("year", pa.array([2018, None, 2020]))
    texts = item_texts(Catalog(table), "{title}[, {year}][: {sizes}]")
    assert texts == ["Red shoes, 2018: 38, 40", "Blue tent", "2020"]


def test_texts_follow_the_rows_of_a_table_in_chunks():
    table = pa.concat_tables([CATALOG.table.slice(row, 1) for row in (2, 0, 1)])
    assert item_texts(Catalog(table), "[{brand}: ]{item_id}") == ["c", "Acme: a", "b"]
