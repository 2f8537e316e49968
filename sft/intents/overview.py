"""What was composed, for people and for the manifest: counts, a sample, and how many items a query leaves."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from prompts.intents import Intent
from prompts.wanted import Shelf
from sid_builder.catalog import Catalog

_SHOWN = 20  # intents of each shape that are kept to be read
_MEASURED = 1000  # queries whose answers are counted


class _Reservoir:
    """A uniform sample of a stream (Vitter's algorithm R)."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.seen, self.kept = size, 0, []
        self._rng = rng

    def offer(self, value: Any) -> None:
        self.seen += 1
        if len(self.kept) < self.size:
            self.kept.append(value)
        elif (place := int(self._rng.integers(self.seen))) < self.size:
            self.kept[place] = value


class Overview:
    """Looks at intents as they pass."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.counts: Counter[str] = Counter()
        self._shapes: dict[str, _Reservoir] = {}
        self._stated = _Reservoir(_MEASURED, self._rng)

    @property
    def total(self) -> int:
        return self.counts.total()

    def watched(self, intents: Iterable[Intent]) -> Iterator[Intent]:
        """The same intents, counted and sampled."""
        for intent in intents:
            self.counts[f"{intent.kind} {intent.split}"] += 1
            turns = len(intent.turns)
            shape = f"{intent.kind}, {turns} turn{'s' * (turns > 1)}"
            self._shapes.setdefault(shape, _Reservoir(_SHOWN, self._rng)).offer(intent)
            if intent.kind == "query" and intent.wanted:
                self._stated.offer(intent)
            yield intent

    def summary(self, shelf: Shelf) -> dict[str, Any]:
        """Counts by kind and split; of a sample of the queries with constraints, the share that one item
        alone satisfies, and the median number of items that satisfy them (0 where there are none).
        """
        fitting = [int(shelf.fits(intent.wanted).sum()) for intent in self._stated.kept]
        return {
            "intents": dict(sorted(self.counts.items())),
            "share_with_one_answer": float(np.mean(np.array(fitting) == 1)) if fitting else 0.0,
            "median_fitting": float(np.median(fitting)) if fitting else 0.0,
            "measured_queries": len(fitting),
        }

    def lines(self, catalog: Catalog, most: int) -> Iterator[str]:
        """A few intents of every shape in one line each."""
        for shape, sample in self._shapes.items():
            for intent in sample.kept[:most]:
                yield f"{shape}: {_shown(intent, catalog)}"

    def page(self, catalog: Catalog) -> str:
        """The whole sample as Markdown."""
        parts = ["# A sample of the intents", ""]
        for shape, sample in self._shapes.items():
            parts += [f"## {shape} ({sample.seen:,})", ""]
            parts += [f"- {_shown(intent, catalog)}" for intent in sample.kept] + [""]
        return "\n".join(parts)


def _shown(intent: Intent, catalog: Catalog) -> str:
    def named(item: int) -> str:
        price = catalog.table["price"][item].as_py()
        return catalog.titles[item] + ("" if price is None else f" ({price:.2f})")

    shown = (f" [shown: {named(item)}] " for item in intent.shown)
    said = "".join(f'"{turn}"' + next(shown, "") for turn in intent.turns)
    before = f"after {', '.join(map(named, intent.history[-3:]))}: " if intent.history else ""
    return before + said + (f" -> {named(intent.item)}" if intent.item >= 0 else "")
