"""The text of an item, as encoders read it: a template over catalogue columns.

    "{title}[. {brand}][. {categories}][. {description}]"

A part in square brackets is left out when a field in it is empty. A list is joined by ", ", and punctuation
left at the front goes.
"""

import re
from typing import Any

from sid_builder.catalog import Catalog
from sid_builder.errors import InputError

DEFAULT_TEMPLATE = "{title}[. {brand}][. {categories}][. {description}]"
_FIELD = re.compile(r"\{(\w+)\}")
_PART = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")


def check_template(template: str) -> None:
    """InputError for a template without a field or with brackets that do not match."""
    if not _FIELD.search(template):
        raise InputError(f"text_template: {template!r} has no field; write one such as {{title}}")
    if "".join(match.group(0) for match in _PART.finditer(template)) != template:
        raise InputError(
            f"text_template: {template!r} has brackets inside brackets or unclosed; use [optional part]"
        )


def item_texts(catalog: Catalog, template: str) -> list[str]:
    """One text per item, in catalogue order.

    Raises:
        InputError: for a field that is no column of the catalogue, or brackets that do not match.
    """
    check_template(template)
    names = list(dict.fromkeys(_FIELD.findall(template)))
    for name in names:
        if name not in catalog.table.column_names:
            raise InputError(
                f"text_template: {name!r} is no catalogue column; use {catalog.table.column_names}"
            )
    texts: list[str] = []
    # in batches: Python objects of every column of a large catalogue would take many times its memory
    for batch in catalog.table.select(names).to_batches(max_chunksize=1 << 16):
        columns = [batch.column(name).to_pylist() for name in names]
        for values in zip(*columns, strict=True):
            texts.append(_render(template, dict(zip(names, map(_flat, values), strict=True))))
    return texts


def _render(template: str, spelled: dict[str, str]) -> str:
    pieces = []
    for match in _PART.finditer(template):
        optional, plain = match.groups()
        part = plain if optional is None else optional
        if optional is None or all(spelled[name] for name in _FIELD.findall(part)):
            pieces.append(_FIELD.sub(lambda field: spelled[field.group(1)], part))
    return "".join(pieces).lstrip(" .,;:|-").rstrip()


def _flat(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(filter(None, map(_flat, value))) if isinstance(value, list) else str(value)
