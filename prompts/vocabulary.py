"""Where the SID tokens lie in a tokenizer's vocabulary.

Legend: L levels, K_l codes of level l.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from sid_builder.errors import InputError
from sid_builder.semantic_ids import SemanticIds


def used_tokens(semantic_ids: SemanticIds) -> list[str]:
    """Tokens that occur in an item's SID, level by level in code order."""
    return [
        semantic_ids.token(level, int(code))
        for level, column_N in enumerate(semantic_ids.codes_NL.T)
        for code in np.unique(column_N[column_N >= 0])
    ]


@dataclass(frozen=True)
class SidVocabulary:
    """`token_ids[l]` int64 [K_l]: vocabulary id of every code of level l, -1 where unused and missing.

    Ids need not follow the codes: checkpoints of other projects have their tokens in the order of the text.
    """

    token_ids: tuple[np.ndarray, ...]

    @staticmethod
    def of(tokenizer: Any, semantic_ids: SemanticIds) -> "SidVocabulary":
        """Look the SID tokens up in a Hugging Face tokenizer.

        Raises:
            InputError: when a token that an item uses is missing or is not a single token: tokenizer and
                index disagree.
        """
        known = tokenizer.get_vocab()
        used = used_tokens(semantic_ids)
        missing = [token for token in used if token not in known]
        if missing:
            raise InputError(
                f"tokenizer: {missing[0]!r}, which the SID index uses, is not in its vocabulary "
                f"({len(missing)} of the {len(used)} tokens that items use are missing); "
                "use the tokenizer saved beside this sid_index"
            )
        tables = [
            np.array([known.get(semantic_ids.token(level, code), -1) for code in range(size)], dtype=np.int64)
            for level, size in enumerate(semantic_ids.level_sizes)
        ]
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


class SidTokenIds:
    """`ids[item]`: the token ids of an item's SID, a list that is not to be changed.

    Looked up when asked for, and kept for the 65,536 items asked for last: lists of all items would take
    gigabytes where codes are mapped from disk.
    """

    def __init__(self, vocabulary: SidVocabulary, codes_NL: np.ndarray) -> None:
        self._codes_NL = np.asarray(codes_NL)  # the plain view of a memory map: its rows come much faster
        self._token_ids = [ids.tolist() for ids in vocabulary.token_ids]
        self._kept = lru_cache(maxsize=1 << 16)(self._look_up)

    def __getitem__(self, item: int) -> list[int]:
        return self._kept(item)

    def _look_up(self, item: int) -> list[int]:
        codes = self._codes_NL[item].tolist()
        return [ids[code] for ids, code in zip(self._token_ids, codes, strict=True) if code >= 0]
