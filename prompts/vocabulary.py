"""Where the SID tokens lie in a tokenizer's vocabulary.

Legend: L levels, K_l codes of level l.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sid_builder.errors import InputError
from sid_builder.semantic_ids import SemanticIds


@dataclass(frozen=True)
class SidVocabulary:
    """`token_ids[l]` int64 [K_l]: vocabulary id of every code of level l, -1 where unused and missing."""

    token_ids: tuple[np.ndarray, ...]

    @staticmethod
    def of(tokenizer: Any, semantic_ids: SemanticIds) -> "SidVocabulary":
        """Look the SID tokens up in a Hugging Face tokenizer.

        Raises:
            InputError: when a token that an item uses is missing or is not a single token: tokenizer and
                index disagree.
        """
        known = tokenizer.get_vocab()
        tables = []
        for level, size in enumerate(semantic_ids.level_sizes):
            ids = np.array(
                [known.get(semantic_ids.token(level, code), -1) for code in range(size)], dtype=np.int64
            )
            column = semantic_ids.codes_NL[:, level]
            used = np.unique(column[column >= 0])
            missing = used[ids[used] < 0]
            if len(missing):
                token = semantic_ids.token(level, int(missing[0]))
                raise InputError(
                    f"tokenizer: {token!r}, which the SID index uses, is not in its vocabulary "
                    f"({len(missing)} of {len(used)} tokens of level {level} are missing); "
                    "use the tokenizer saved beside this sid_index"
                )
            tables.append(ids)
        vocabulary = SidVocabulary(tuple(tables))
        probe = "".join(semantic_ids.spell(0))
        encoded = tokenizer.encode(probe, add_special_tokens=False)
        if encoded != vocabulary.encode(semantic_ids.codes_NL[0]):
            raise InputError(
                f"tokenizer: splits the SID {probe!r} into {encoded}; add SID tokens as whole tokens"
            )
        return vocabulary

    @property
    def depth(self) -> int:
        return len(self.token_ids)

    def encode(self, codes: np.ndarray) -> list[int]:
        """Token ids of one SID; -1 codes (padding of short SIDs) are left out."""
        return [int(self.token_ids[level][code]) for level, code in enumerate(codes) if code >= 0]

    @cached_property
    def all_ids(self) -> np.ndarray:
        """Every SID token id there is, ascending, int64."""
        ids = np.concatenate(self.token_ids)
        return np.sort(ids[ids >= 0])

    @cached_property
    def code_of(self) -> dict[int, tuple[int, int]]:
        """Token id -> (level, code)."""
        return {
            int(token): (level, code)
            for level, ids in enumerate(self.token_ids)
            for code, token in enumerate(ids)
            if token >= 0
        }

    def decode(self, token_ids: list[int]) -> tuple[int, ...] | None:
        """Codes of leading SID tokens in level order, or None when the ids are not exactly one SID prefix."""
        codes = []
        for position, token in enumerate(token_ids):
            level, code = self.code_of.get(int(token), (-1, -1))
            if level != position:
                return None
            codes.append(code)
        return tuple(codes)
