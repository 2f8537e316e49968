"""Item texts from a template over catalogue columns."""

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
