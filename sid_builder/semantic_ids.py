"""Semantic IDs: a short code tuple per item, and how the codes are spelled as tokens.

Legend: N items, L levels, K_l codes of level l.
"""

import re
import string
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sid_builder.errors import InputError

MAX_LEVELS = len(string.ascii_lowercase)
DEFAULT_PATTERN = "<{letter}_{code}>"


@dataclass(frozen=True)
class SemanticIds:
    """`codes_NL` int32, 0-based, one row per item_index; rows of variable-length SIDs are padded with -1 at
    the end.

    `level_sizes[l]` is the codebook size of level l. Token spelling: `pattern` with `{letter}` (a, b, c ...
    by level) and `{code}`, the spelling of LC-Rec and MiniOneRec by default.
    """

    codes_NL: np.ndarray
    level_sizes: tuple[int, ...]
    pattern: str = DEFAULT_PATTERN

    def __post_init__(self) -> None:
        codes = self.codes_NL
        if codes.ndim != 2 or codes.dtype != np.int32 or codes.shape[1] != len(self.level_sizes):
            raise InputError(
                f"codes: shape {codes.shape} {codes.dtype}, expected int32 [N, {len(self.level_sizes)}]"
            )
        if not 1 <= self.depth <= MAX_LEVELS:
            raise InputError(f"codes: {self.depth} levels; between 1 and {MAX_LEVELS} can be spelled")
        if self.pattern.count("{letter}") != 1 or self.pattern.count("{code}") != 1:
            raise InputError(f"token_pattern: {self.pattern!r} needs one {{letter}} and one {{code}}")
        low, high = codes.min(axis=0, initial=0), codes.max(axis=0, initial=-1)
        if (low < -1).any() or (high >= np.array(self.level_sizes)).any():
            raise InputError(
                f"codes: values outside level_sizes {self.level_sizes}: minima {low}, maxima {high}"
            )
        padded = codes < 0
        if padded[:, 0].any() or (padded[:, :-1] & ~padded[:, 1:]).any():
            raise InputError("codes: -1 may only pad the end of a row, and never the first level")

    @property
    def num_items(self) -> int:
        return len(self.codes_NL)

    @property
    def depth(self) -> int:
        return len(self.level_sizes)

    def token(self, level: int, code: int) -> str:
        return self.pattern.format(letter=string.ascii_lowercase[level], code=code)

    def all_tokens(self) -> list[str]:
        """Every token of every codebook, used or not, level by level in code order: the order they enter a
        vocabulary.
        """
        return [
            self.token(level, code) for level, size in enumerate(self.level_sizes) for code in range(size)
        ]

    def spell(self, item_index: int) -> str:
        """SID of an item as text, such as "<a_12><b_200><c_7>"."""
        return "".join(
            self.token(level, code) for level, code in enumerate(self.codes_NL[item_index]) if code >= 0
        )

    @cached_property
    def _token_regex(self) -> re.Pattern:
        letter, code = re.escape("{letter}"), re.escape("{code}")
        body = re.escape(self.pattern).replace(letter, "([a-z])").replace(code, r"(\d+)")
        return re.compile(body)

    def parse(self, text: str) -> tuple[int, ...] | None:
        """Codes of a text that is exactly one SID (spaces around it allowed), or None."""
        codes: list[int] = []
        end, text = 0, text.strip()
        for match in self._token_regex.finditer(text):
            letter, code = (
                match.groups()
                if self.pattern.index("{letter}") < self.pattern.index("{code}")
                else match.groups()[::-1]
            )
            level = len(codes)
            fits = (
                level < self.depth
                and letter == string.ascii_lowercase[level]
                and int(code) < self.level_sizes[level]
            )
            if match.start() != end or not fits:
                return None
            codes.append(int(code))
            end = match.end()
        return tuple(codes) if codes and end == len(text) else None

    @cached_property
    def _groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Items sorted by SID and the start of each distinct SID in that order."""
        order = np.lexsort(self.codes_NL.T[::-1])
        sorted_codes = self.codes_NL[order]
        new = np.ones(self.num_items, dtype=bool)
        new[1:] = (sorted_codes[1:] != sorted_codes[:-1]).any(axis=1)
        return order, np.flatnonzero(new)

    @property
    def num_distinct(self) -> int:
        return len(self._groups[1])

    @property
    def collision_rate(self) -> float:
        """1 - distinct SIDs / N (PROTOCOL's definition)."""
        return 1.0 - self.num_distinct / self.num_items

    def collision_groups(self) -> list[np.ndarray]:
        """Item indices (ascending) of every SID that more than one item has, largest group first."""
        order, starts = self._groups
        groups = [np.sort(group) for group in np.split(order, starts[1:]) if len(group) > 1]
        return sorted(groups, key=lambda group: (-len(group), group[0]))

    @cached_property
    def _items_by_codes(self) -> dict[tuple[int, ...], list[int]]:
        table: dict[tuple[int, ...], list[int]] = {}
        for item_index, row in enumerate(self.codes_NL.tolist()):
            table.setdefault(tuple(code for code in row if code >= 0), []).append(item_index)
        return table

    def items_of(self, codes: tuple[int, ...]) -> list[int]:
        """Item indices whose SID is `codes`; empty when there is none."""
        return self._items_by_codes.get(tuple(int(code) for code in codes), [])
