"""The constraints that a request states, as data, and which items satisfy them: the truth of an evaluation.

    {"words": ["red", "lipstick"], "not_words": ["matte"], "brand": "Aurora", "not_brand": ["Cairn"],
     "category": "Lips", "min_price": 5, "max_price": 10}

All of them hold at once. A word, or a phrase of several, is looked for in an item's title, description, brand
and categories as `prompts.word_index` compares words; brands and categories are equal whatever their case.

Legend: N items, C names of categories, item by item.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prompts.word_index import WordIndex, words_of
from sid_builder.catalog import Catalog
from sid_builder.cli import unknown_key
from sid_builder.errors import InputError
from sid_builder.item_text import item_texts

LISTS = ("words", "not_words", "not_brand")
TEXTS = ("brand", "category")
PRICES = ("min_price", "max_price")
# A line's end keeps a phrase from reaching out of one field into the next.
_FIELDS = "{title}\n{description}\n{brand}\n{categories}"


def check_wanted(wanted: Any, label: str) -> None:
    """InputError, beginning with `label`, for an unknown key, a wrong type or a text without a word."""
    if not isinstance(wanted, Mapping):
        raise InputError(f"{label} is {wanted!r}; expected an object of constraints")
    unknown_key(wanted, (*LISTS, *TEXTS, *PRICES), f"{label}.")
    for key, value in wanted.items():
        if key in PRICES:
            if type(value) not in (int, float):
                raise InputError(f"{label}.{key} is {value!r}; expected a number")
            continue
        texts = value if key in LISTS else [value]
        if not isinstance(texts, list) or not all(isinstance(text, str) and words_of(text) for text in texts):
            raise InputError(f"{label}.{key} is {value!r}; expected {'texts' if key in LISTS else 'a text'}")


class Shelf:
    """A catalogue that can be asked what fits."""

    def __init__(self, catalog: Catalog, live_N: np.ndarray | None = None) -> None:
        self.live_N = np.ones(catalog.num_items, dtype=bool) if live_N is None else live_N
        self.prices_N = catalog.table["price"].to_numpy()
        self.words = WordIndex(item_texts(catalog, _FIELDS))
        self._brand_id, self._brand_N = _coded(catalog.table["brand"].combine_chunks())
        categories = catalog.table["categories"].combine_chunks()
        self._category_starts_N1 = np.concatenate(
            [[0], np.cumsum(pc.list_value_length(categories).to_numpy())]
        )
        self._category_id, self._category_C = _coded(pc.list_flatten(categories))

    def fits(self, wanted: Mapping[str, Any]) -> np.ndarray:
        """Which items on the shelf satisfy all constraints, bool [N].

        An item without a price satisfies no bound on it.

        Raises:
            InputError: for constraints that `check_wanted` refuses.
        """
        check_wanted(wanted, "wanted")
        fits_N = self.live_N.copy()
        if "min_price" in wanted:
            fits_N &= self.prices_N >= wanted["min_price"]  # NaN, an unknown price, compares false
        if "max_price" in wanted:
            fits_N &= self.prices_N <= wanted["max_price"]
        if "brand" in wanted:
            fits_N &= self._brand_N == self._brand(wanted["brand"])
        for brand in wanted.get("not_brand", ()):
            fits_N &= self._brand_N != self._brand(brand)
        if "category" in wanted:
            places = np.flatnonzero(self._category_C == self._category(wanted["category"]))
            fits_N &= self._mask(np.searchsorted(self._category_starts_N1, places, side="right") - 1)
        for word in wanted.get("words", ()):
            fits_N &= self._mask(self.words.rows(word))
        for word in wanted.get("not_words", ()):
            fits_N[self.words.rows(word)] = False
        return fits_N

    def holds(self, item: int, wanted: Mapping[str, Any]) -> bool:
        """`fits(wanted)[item]` for constraints known to be sound, without a look at any other item."""
        price = self.prices_N[item]
        first, end = self._category_starts_N1[item : item + 2]
        categories = self._category_C[first:end]
        return bool(
            self.live_N[item]
            and ("min_price" not in wanted or price >= wanted["min_price"])
            and ("max_price" not in wanted or price <= wanted["max_price"])
            and ("brand" not in wanted or self._brand_N[item] == self._brand(wanted["brand"]))
            and all(self._brand_N[item] != self._brand(brand) for brand in wanted.get("not_brand", ()))
            and ("category" not in wanted or self._category(wanted["category"]) in categories)
            and all(self.words.holds(item, word) for word in wanted.get("words", ()))
            and not any(self.words.holds(item, word) for word in wanted.get("not_words", ()))
        )

    def _brand(self, name: str) -> int:
        return self._brand_id.get(name.lower(), -1)

    def _category(self, name: str) -> int:
        return self._category_id.get(name.lower(), -1)

    def _mask(self, rows: np.ndarray) -> np.ndarray:
        mask_N = np.zeros(len(self.live_N), dtype=bool)
        mask_N[rows] = True
        return mask_N


def fitting(catalog: Catalog, live_N: np.ndarray | None = None) -> Callable[[Mapping[str, Any]], np.ndarray]:
    """`wanted` -> bool [N]: which items on the shelf satisfy it (see `Shelf.fits`)."""
    return Shelf(catalog, live_N).fits


def _coded(names: pa.Array) -> tuple[dict[str, int], np.ndarray]:
    """(lower-case name -> number, number of each name)."""
    coded = names.dictionary_encode()
    number_of: dict[str, int] = {}
    numbers = [number_of.setdefault(name.lower(), len(number_of)) for name in coded.dictionary.to_pylist()]
    return number_of, np.array(numbers, dtype=np.int32)[coded.indices.to_numpy()]
