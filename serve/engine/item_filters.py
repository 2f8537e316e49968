"""Filters over the catalogue's columns as JSON, evaluated to a mask over items once and kept by content.

    {"and": [{"field": "category", "in": ["Tents"]}, {"field": "price", "max": 200}]}
    {"not": {"or": [{"field": "brand", "eq": "Acme"}, {"field": "category", "eq": "Shoes"}]}}

Texts are equal whatever their case. An item with a missing price or text fulfils no condition on it.

Legend: N items.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve.decoding.ranking import ItemFilter
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.sid_index import SidIndex

MAX_CONDITIONS = 64
MAX_DEPTH = 8
KEPT_FILTERS = 64
_HALF = re.compile("[\ud800-\udfff]")
_COLUMN_OF = {"category": "categories"}
_CONNECTIVES = ("and", "or", "not")
_OPERATORS = ("eq", "in", "min", "max")


class ItemFilters:
    """The filters of a server.

    Attributes:
        fields: what a condition may be about: category, brand, price, domain, and the further columns a
            source gave.
    """

    def __init__(self, index: SidIndex) -> None:
        self.index = index
        self.catalog: Catalog = index.catalog
        hidden = {"item_id", "title", "description", "categories"}
        self.fields = ["category", *(name for name in self.catalog.table.column_names if name not in hidden)]
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()

    def item_filter(
        self,
        conditions: Mapping[str, Any] | None,
        exclude: np.ndarray | None = None,
        allow: np.ndarray | None = None,
    ) -> tuple[ItemFilter | None, int]:
        """The filter of one request, and how many items on the shelf it leaves.

        Args:
            conditions: as JSON gives them, or None.
            exclude: item indices that may not be answered.
            allow: the only ones that may, or None for all.

        Raises:
            InputError: for an unknown field, connective or operator, a value of the wrong type, too many
                conditions.
        """
        gone = np.empty(0, dtype=np.int64) if exclude is None else np.unique(exclude)
        live_N = self.index.live_N
        if conditions is None and allow is None:
            return (ItemFilter(gone) if len(gone) else None), int(live_N.sum() - live_N[gone].sum())
        mask_N = np.ones(len(live_N), dtype=bool) if conditions is None else self.mask(conditions).copy()
        if allow is not None:
            named_N = np.zeros(len(live_N), dtype=bool)
            named_N[allow] = True
            mask_N &= named_N
        mask_N[gone] = False
        return ItemFilter(allow=np.flatnonzero(mask_N)), int((mask_N & live_N).sum())

    def mask(self, conditions: Mapping[str, Any]) -> np.ndarray:
        """Which items fulfil the conditions, bool [N]; kept for the filters asked last."""
        content = json.dumps(conditions, sort_keys=True)
        if content in self._kept:
            self._kept.move_to_end(content)
        else:
            self._kept[content] = self._mask(conditions, "filters", [MAX_CONDITIONS], MAX_DEPTH)
            if len(self._kept) > KEPT_FILTERS:
                self._kept.popitem(last=False)
        return self._kept[content]

    def _mask(self, node: Any, where: str, budget: list[int], depth: int) -> np.ndarray:
        """Which items fulfil a condition or several under a connective, bool [N]."""
        budget[0] -= 1
        if budget[0] < 0 or depth < 1:
            raise InputError(
                f"filters: more than {MAX_CONDITIONS} conditions or {MAX_DEPTH} levels; ask for less at once"
            )
        if not isinstance(node, Mapping) or not node:
            raise InputError(f"{where}: {node!r} is no condition; give and, or, not, or a field")
        connective = next((name for name in _CONNECTIVES if name in node), None)
        if connective is None:
            return self._condition(node, where)
        if len(node) > 1:
            raise InputError(f"{where}: {sorted(node)} stand side by side; give {connective!r} alone")
        inner = f"{where}.{connective}"
        if connective == "not":
            return ~self._mask(node["not"], inner, budget, depth - 1)
        parts = node[connective]
        if not isinstance(parts, list) or not parts:
            raise InputError(f"{inner}: {parts!r} is no list of conditions; give at least one")
        masks = [self._mask(part, f"{inner}[{place}]", budget, depth - 1) for place, part in enumerate(parts)]
        return np.logical_and.reduce(masks) if connective == "and" else np.logical_or.reduce(masks)

    def _condition(self, node: Mapping[str, Any], where: str) -> np.ndarray:
        unknown = sorted(node.keys() - {"field", *_OPERATORS})
        if unknown:
            raise InputError(f"{where}.{unknown[0]}: unknown key; use field with {', '.join(_OPERATORS)}")
        field = str(node.get("field"))
        if field not in self.fields:
            raise InputError(f"{where}.field: {field!r} is no field of this catalogue; use {self.fields}")
        operators = node.keys() - {"field"}
        if not operators or (len(operators) > 1 and operators != {"min", "max"}):
            raise InputError(f"{where}: {sorted(operators)} on {field!r}; give eq, in, or min and max")
        column = self.catalog.table.column(_COLUMN_OF.get(field, field))
        if pa.types.is_floating(column.type):
            return self._numbers(column, node, where)
        if operators & {"min", "max"}:
            raise InputError(f"{where}: {field!r} is a text and has no min and max; use eq or in")
        return self._texts(column, _values(node, str, where))

    @staticmethod
    def _numbers(column: pa.ChunkedArray, node: Mapping[str, Any], where: str) -> np.ndarray:
        numbers = column.to_numpy()  # null becomes NaN, which no comparison holds for
        if "eq" in node or "in" in node:
            return np.isin(numbers, _values(node, float, where))
        mask = ~np.isnan(numbers)
        for name, holds in (("min", np.greater_equal), ("max", np.less_equal)):
            if name in node:
                mask &= holds(numbers, _checked(node[name], float, f"{where}.{name}"))
        return mask

    @staticmethod
    def _texts(column: pa.ChunkedArray, values: list[str]) -> np.ndarray:
        texts = column.combine_chunks()
        wanted = pc.utf8_lower(pa.array(values, pa.string()))
        if not pa.types.is_list(texts.type):
            return pc.is_in(pc.utf8_lower(texts), value_set=wanted).to_numpy(zero_copy_only=False)
        found = pc.is_in(pc.utf8_lower(texts.flatten()), value_set=wanted).to_numpy(zero_copy_only=False)
        mask = np.zeros(len(texts), dtype=bool)
        mask[pc.list_parent_indices(texts).to_numpy()[found]] = True
        return mask


def _values(node: Mapping[str, Any], kind: type, where: str) -> list[Any]:
    """What `eq` or `in` names."""
    if "eq" in node:
        return [_checked(node["eq"], kind, f"{where}.eq")]
    given = node["in"]
    if not isinstance(given, list) or not given:
        raise InputError(f"{where}.in: {given!r} is no list of values; give at least one")
    return [_checked(value, kind, f"{where}.in[{place}]") for place, value in enumerate(given)]


def _checked(value: Any, kind: type, where: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    if kind is float and number:
        return float(value)
    # JSON may hold halves of characters, which no text of a catalogue does.
    if kind is str and isinstance(value, str) and value and not _HALF.search(value):
        return value
    wanted = "a number" if kind is float else "a text"
    raise InputError(f"{where}: {value!r} is not {wanted}")
