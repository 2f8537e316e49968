"""`feedback`: what users are known to like less than what they took, from a log or from ratings.

A log is JSONL, one preference a line, with the catalogue's item ids:

    {"user": "u7", "chosen": "B001", "rejected": "B002"}
    {"history": ["B009", "B004"], "chosen": "B001", "rejected": ["B002", "B003"]}

The prompt of a line with a `user` is what stands before the chosen item in the user's train interactions, or
all of them if it is not among them. A line is left out that prefers what valid or test asks the user for, and
so are such items among the rejected: that would teach the answers. Histories that a line spells out itself
cannot be checked for that. With a `column` of the interactions (a rating) instead of a file, a train case
whose target was liked is set against what the user took later in train and disliked.

Legend: I interactions, B beams.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rl.preference_cases import PromptCase, cases_of
from sid_builder.cli import unknown_key
from sid_builder.errors import InputError
from sid_builder.interactions import Histories, Interactions
from sid_builder.processes import Processes
from sid_builder.sid_index import SidIndex
from sid_builder.sources.lines import BadLines, line_blocks, objects_in

_FIELD = "negative_args.feedback.file"


@dataclass(frozen=True)
class FeedbackOptions:
    """Where feedback is."""

    file: str | None = field(
        default=None, metadata={"help": "JSONL of {user or history, chosen, rejected}, with item ids"}
    )
    column: str | None = field(
        default=None, metadata={"help": "instead of a file: a feature of the interactions, such as rating"}
    )
    liked: float = field(default=4.0, metadata={"help": "of column: at least this is a liked item"})
    disliked: float = field(default=2.0, metadata={"help": "of column: at most this is a disliked item"})

    def check(self, prefix: str) -> None:
        """InputError unless there is one source, and it can be read."""
        if (self.file is None) == (self.column is None):
            raise InputError(f"{prefix}: give file (a log as JSONL) or column (such as rating), one of them")
        if self.file is not None and not Path(self.file).is_file():
            raise InputError(f"{prefix}.file: {self.file} is no file; check the path")
        if self.disliked >= self.liked:
            raise InputError(f"{prefix}.disliked: {self.disliked} is not below liked: {self.liked}")


class FeedbackNegatives:
    """Decides which cases there are as well: those of the log, or those whose target was liked."""

    needs_beam: ClassVar[bool] = False

    def __init__(self, options: FeedbackOptions, index: SidIndex, interactions: Interactions) -> None:
        self.options, self.index, self.interactions = options, index, interactions

    def cases(self, train: Histories) -> list[PromptCase]:
        """Every preference there is feedback for.

        Args:
            train: the train cases that RL may ask; a file brings its own.

        Raises:
            InputError: naming the line and the item or user that is not known, or the column.
        """
        if self.options.file is None:
            return self._rated(train)
        log = _Log(self.index, self.interactions)
        cases = list(log.cases(Path(self.options.file)))
        if log.left_out and Processes.current().is_main:
            told = ", ".join(f"{count:,} {why}" for why, count in sorted(log.left_out.items()))
            print(f"negatives.feedback: left out of {self.options.file}: {told}")
        return cases

    def draw(
        self, case: PromptCase, beam_B: np.ndarray, taken: set[int], count: int, rng: np.random.Generator
    ) -> list[int]:
        leaves = dict.fromkeys(self.index.trie.leaf_of_item_N[list(case.logged)].tolist())
        return [leaf for leaf in leaves if leaf not in taken][:count]

    def _rated(self, train: Histories) -> list[PromptCase]:
        interactions, name = train.interactions, self.options.column
        if name not in interactions.features_I:
            raise InputError(
                f"negative_args.feedback.column: {name!r} is not a feature of the interactions, which have "
                f"{sorted(interactions.features_I)}; choose one, or give a file"
            )
        values_I, items_I = interactions.features_I[name], interactions.items_I
        start_C = interactions.indptr_S1[train.sequence_C]
        at_C = start_C + train.position_C
        end_C = start_C + interactions.train_hi_S[train.sequence_C]
        live_N = self.index.live_N
        cases = []
        for case in cases_of(train):
            later = slice(int(at_C[case.number]) + 1, int(end_C[case.number]))
            disliked = items_I[later][values_I[later] <= self.options.disliked]
            disliked = disliked[live_N[disliked]]
            if values_I[at_C[case.number]] >= self.options.liked and len(disliked):
                cases.append(PromptCase(case.number, case.history, case.target, tuple(disliked.tolist())))
        return cases


class _Log:
    """Reads lines; `left_out` counts why some of them, or some of their items, are not used."""

    def __init__(self, index: SidIndex, interactions: Interactions) -> None:
        self.catalog, self.live_N = index.catalog, index.live_N
        self.people = _People(interactions)
        self.left_out: Counter[str] = Counter()

    def cases(self, path: Path) -> Iterator[PromptCase]:
        number = 0
        for first_line, block in line_blocks(path, _FIELD):
            for label, given in objects_in(path.name, first_line, block, BadLines()):
                case = self._case(number, label, given)
                if case is not None:
                    yield case
                    number += 1

    def _case(self, number: int, label: str, given: dict[str, Any]) -> PromptCase | None:
        unknown_key(given, ["user", "history", "chosen", "rejected"], f"{label}: ")
        if ("user" in given) == ("history" in given):
            raise InputError(f"{label}: give a user or a history, one of them")
        for key in ("chosen", "rejected"):
            if key not in given:
                raise InputError(f"{label}: {key} is missing; add an item id")
        chosen = self._item(given["chosen"], f"{label}: chosen")
        rejected = given["rejected"] if isinstance(given["rejected"], list) else [given["rejected"]]
        items = [self._item(item, f"{label}: rejected") for item in rejected]
        if chosen in items:
            raise InputError(f"{label}: {given['chosen']!r} is chosen and rejected; take it out of one")
        if "user" in given:
            rows = self.people.rows(given["user"], label)
            history = self.people.history(rows, chosen)
            asked = self.people.held_out(rows)
            if history is None:
                self.left_out["lines that ask for what valid or test does, or have no train history"] += 1
                return None
        else:
            if not isinstance(given["history"], list) or not given["history"]:
                raise InputError(f"{label}: history is {given['history']!r}; give a list of item ids")
            history = np.array([self._item(item, f"{label}: history") for item in given["history"]])
            asked = set()
        kept = tuple(item for item in items if item not in asked and self.live_N[item])
        if len(kept) < len(items):
            self.left_out["rejected items that valid or test asks for, or not on the shelf"] += len(
                items
            ) - len(kept)
        if not kept or not self.live_N[chosen]:
            self.left_out["lines without an item on the shelf to choose or to reject"] += 1
            return None
        return PromptCase(number, history, chosen, kept)

    def _item(self, item: Any, label: str) -> int:
        index = self.catalog.find(item) if isinstance(item, (str, int)) else None
        if index is None:
            raise InputError(
                f"{label} is {item!r}, which is not in the catalogue of {self.catalog.num_items} items; take "
                "the line out, or check the id"
            )
        return index


class _People:
    """Users' train interactions, and what valid and test ask them for."""

    def __init__(self, interactions: Interactions) -> None:
        self.interactions = interactions
        self._rows: dict[str, list[int]] = {}
        for row, user in enumerate(interactions.users.to_pylist()):
            self._rows.setdefault(user, []).append(row)

    def rows(self, user: Any, label: str) -> list[int]:
        """Sequences of a user; InputError for one that has none."""
        found = self._rows.get(str(user))
        if found is None:
            raise InputError(
                f"{label}: user is {user!r}, who is not in the interactions; give the line a history instead"
            )
        return found

    def history(self, rows: list[int], chosen: int) -> np.ndarray | None:
        """Train items before the chosen one, int64; all if it is not among them. None where there is no such
        history, or where valid or test asks for the chosen item.
        """
        parts = [self._train_items(row) for row in rows]
        for items in parts:
            places = np.flatnonzero(items == chosen)
            if len(places) and places[0] > 0:
                return items[: places[0]]
        longest = max(parts, key=len)
        if chosen in self.held_out(rows) or chosen in longest[:1] or not len(longest):
            return None
        return longest

    def held_out(self, rows: list[int]) -> set[int]:
        """Items that valid or test asks the user for."""
        inter = self.interactions
        found: set[int] = set()
        for row in rows:
            start = inter.indptr_S1[row]
            for low_S, high_S in (inter.bounds_of("valid"), inter.bounds_of("test")):
                found |= set(
                    inter.items_I[start + low_S[row] : start + max(low_S[row], high_S[row])].tolist()
                )
        return found

    def _train_items(self, row: int) -> np.ndarray:
        """What stands before the end of a sequence's train positions; nothing if it has none."""
        inter = self.interactions
        low, high = int(inter.train_lo_S[row]), int(inter.train_hi_S[row])
        start = int(inter.indptr_S1[row])
        return inter.items_I[start : start + (high if high > low else 0)].astype(np.int64)
