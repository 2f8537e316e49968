"""Files that the layouts of MiniOneRec and LC-Rec share: `index.json`, `item2id`, `user2id`.

Both layouts number items from 0 and know an item by that number, its "peer id" here; `item2id` says which key
of the user's it stands for.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sid_builder.errors import InputError
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sources import read_text
from sid_builder.sources.lines import text_lines

_TOKEN = re.compile(r"<([a-z])_(\d+)>")


@dataclass(frozen=True, kw_only=True)
class PeerOptions:
    """Which data set of the directory to read; the arguments of both sources."""

    path: str = field(metadata={"help": "Directory of the data, as the peer lays it out."})
    category: str | None = field(
        default=None,
        metadata={
            "help": "What its file names begin with, such as Instruments; needed if there are several."
        },
    )
    codes_per_level: int | list[int] | None = field(
        default=None,
        metadata={
            "help": "Codebook size of the SIDs taken over, one or one per level; default: the largest code, "
            "up to a power of two."
        },
    )


def only_stem(directory: Path, stems: Iterable[str], given: str | None, holder: str) -> str:
    """The data set's name: `given`, or the only one of those found in the directory.

    Args:
        holder: what the directory to give is known by, for the error message.

    Raises:
        InputError: when no data set or more than one could be meant.
    """
    found = sorted(set(stems))
    if given is not None and found and given not in found:
        raise InputError(f"source_args.category: {given!r} is not in {directory}; use one of {found}")
    if found and (given is not None or len(found) == 1):
        return given or found[0]
    fix = "set source_args.category to one of them" if found else f"give the directory that holds {holder}"
    raise InputError(f"source_args.path: {directory} has files of {found or 'no category'}; {fix}")


def stems_of(directory: Path, suffix: str) -> list[str]:
    """What files that end in `suffix` begin with."""
    return [path.name.removesuffix(suffix) for path in directory.glob(f"*{suffix}")]


def read_json_object(path: Path) -> dict[str, Any]:
    """One JSON object keyed by item or user, in the file's order.

    Raises:
        InputError: for malformed JSON (file and line), another type, or a key that is there twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise InputError(f"{path.name}: key {twice!r} is there twice; keep one of them")
        return made

    try:
        value = json.loads(read_text(path, "source_args.path"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path.name}:{error.lineno}: is not valid JSON ({error.msg}); repair the file"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path.name}: holds a {type(value).__name__}, expected an object keyed by id")
    return value


def read_key_file(path: Path) -> dict[str, str]:
    """`item2id` or `user2id`, lines `key <tab> peer id`: {peer id: key} in the file's order.

    Raises:
        InputError: naming the line that is malformed or repeats a key or an id.
    """
    key_of: dict[str, str] = {}
    keys: set[str] = set()
    for number, line in enumerate(text_lines(path), start=1):
        line = line.rstrip("\r\n")
        if not line:
            continue
        label = f"{path.name}:{number}: {line[:60]!r}"
        key, _, peer_id = line.partition("\t")
        if not key or not peer_id or "\t" in peer_id:
            raise InputError(f"{label} is not `key <tab> id`; repair the line")
        if peer_id in key_of or key in keys:
            raise InputError(f"{label} repeats a key or an id; keep one line")
        key_of[peer_id] = key
        keys.add(key)
    return key_of


def keys_of(peer_ids: Sequence[str], path: Path | None, kind: str, named_in: str) -> list[str]:
    """The user's keys of items or users (`kind`), the peer ids themselves where there is no key file.

    Raises:
        InputError: when the key file and the file `named_in` do not have the same ids.
    """
    if path is None:
        return list(peer_ids)
    key_of = read_key_file(path)
    check_same_ids(peer_ids, key_of, kind, named_in, path.name)
    return [key_of[peer_id] for peer_id in peer_ids]


def check_same_ids(
    left: Sequence[str], right: dict[str, Any], kind: str, left_name: str, right_name: str
) -> None:
    """InputError naming an id that one of two files lacks."""
    missing = next((key for key in left if key not in right), None)
    if missing is None and len(right) > len(left):
        known = set(left)
        missing = next(key for key in right if key not in known)
    if missing is not None:
        raise InputError(
            f"{right_name}: {kind} {missing!r} is in only one of {left_name} and {right_name}; "
            "make them agree"
        )


def read_index_json(
    path: Path, peer_ids: Sequence[str], described_in: str, codes_per_level: int | list[int] | None
) -> SemanticIds:
    """The SIDs of `index.json`, one row per peer id, -1 after the end of a short one.

    Args:
        described_in: the file that lists the items, for the error message.
        codes_per_level: codebook sizes; None: each level's largest code, up to a power of two.

    Raises:
        InputError: for an item that is missing on either side, a malformed token, an SID that begins like
            another and goes on, or codebooks that are too small.
    """
    table = read_json_object(path)
    check_same_ids(peer_ids, table, "item", described_in, path.name)
    rows: list[list[int]] = []
    for peer_id in peer_ids:
        tokens = table[peer_id]
        if not isinstance(tokens, list) or not tokens:
            raise InputError(f"{path.name}: item {peer_id!r} has SID {tokens!r}; expected a list of tokens")
        rows.append([_code_of(token, level, peer_id, path) for level, token in enumerate(tokens)])
    depth = max(map(len, rows))
    codes_NL = np.array([row + [-1] * (depth - len(row)) for row in rows], dtype=np.int32)
    _check_prefix_free(rows, peer_ids, path)
    return SemanticIds(codes_NL, _level_sizes(codes_NL, codes_per_level, path))


def _code_of(token: Any, level: int, peer_id: str, path: Path) -> int:
    match = _TOKEN.fullmatch(str(token))
    if match is None or ord(match[1]) - ord("a") != level:
        raise InputError(
            f"{path.name}: item {peer_id!r} has token {token!r} as number {level + 1}; "
            "expected <a_1>, <b_2>, ..."
        )
    return int(match[2])


def _check_prefix_free(rows: list[list[int]], peer_ids: Sequence[str], path: Path) -> None:
    lengths = sorted(set(map(len, rows)))
    if len(lengths) == 1:
        return
    item_of = {tuple(row): peer_id for row, peer_id in zip(rows, peer_ids, strict=True)}
    for row, peer_id in zip(rows, peer_ids, strict=True):
        for length in lengths:
            if length < len(row) and tuple(row[:length]) in item_of:
                raise InputError(
                    f"{path.name}: the SID of item {item_of[tuple(row[:length])]!r} is the beginning of item "
                    f"{peer_id!r}'s, so decoding could not tell them apart; give both the same length"
                )


def fitted_level_sizes(codes_NL: np.ndarray) -> tuple[int, ...]:
    """The codebook sizes that codes alone suggest: each level's largest code, up to a power of two."""
    return tuple(1 << int(code).bit_length() for code in codes_NL.max(axis=0))


def _level_sizes(codes_NL: np.ndarray, given: int | list[int] | None, path: Path) -> tuple[int, ...]:
    largest = codes_NL.max(axis=0).tolist()
    if given is None:
        return fitted_level_sizes(codes_NL)
    sizes = given if isinstance(given, list) else [given] * len(largest)
    if len(sizes) != len(largest):
        raise InputError(
            f"source_args.codes_per_level: {given} has {len(sizes)} sizes, but {path.name} has SIDs of "
            f"{len(largest)} levels; give one size or one per level"
        )
    if any(code >= size for code, size in zip(largest, sizes, strict=True)):
        raise InputError(
            f"source_args.codes_per_level: {given} is too small for {path.name}; give at least "
            f"{[code + 1 for code in largest] if isinstance(given, list) else max(largest) + 1}"
        )
    return tuple(sizes)
