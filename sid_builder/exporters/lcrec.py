"""LC-Rec's data directory: whole sequences, split leave-one-out by whoever reads them.

    NAME.inter.json   {user: [item, ...]}, oldest first
    NAME.item.json, NAME.index.json, NAME.item2id, NAME.user2id

Layout: https://github.com/zhengbw0324/LC-Rec (`data_process/amazon18_data_process.py`, `data.py`).
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sid_builder.errors import InputError
from sid_builder.exporters import ExportData, Exported
from sid_builder.exporters.item_files import (
    check_keys,
    numbered,
    shared_remarks,
    write_item_files,
    write_json_object,
    write_key_file,
)
from sid_builder.interactions import SPLITS, Interactions
from sid_builder.splits import leave_one_out


def write(data: ExportData, directory: Path) -> Exported:
    """Write the directory.

    Raises:
        InputError: for another split than leave-one-out, a user with several sequences, items that are not
            in the catalogue, keys with tabs or line breaks, or a `max_history` (sequences are whole).
    """
    interactions = data.interactions
    users, item_ids = interactions.users.to_pylist(), data.index.catalog.item_ids
    _check(data, users)
    user_numbers, item_numbers = numbered(users), numbered(item_ids)
    write_item_files(data, item_numbers, directory)
    write_key_file(directory / f"{data.name}.item2id", item_ids, item_numbers)
    write_key_file(directory / f"{data.name}.user2id", users, user_numbers)
    progress = tqdm(
        _sequences(interactions, item_numbers), "write sequences", interactions.num_sequences, unit="sequence"
    )
    write_json_object(
        directory / f"{data.name}.inter.json", zip(map(str, user_numbers), progress, strict=True)
    )
    remarks = []
    for kind, keys, numbers in (("item", item_ids, item_numbers), ("user", users, user_numbers)):
        if list(map(str, numbers)) != keys:
            remarks.append(f"{kind} keys are numbered 0..{len(keys) - 1}; {data.name}.{kind}2id has them")
    short = int((np.diff(interactions.indptr_S1) < 3).sum())
    if short:
        remarks.append(
            f"{short} sequences are shorter than 3: train only for us, but LC-Rec's own code takes the last "
            "two items of every sequence for valid and test, and fails on a single one"
        )
    if interactions.has_repeats:
        remarks.append("some users have an item twice, which LC-Rec's own data never does; kept")
    figures = {
        "items": len(item_ids),
        "users": len(users),
        "interactions": interactions.num_interactions,
    }
    return Exported(figures, remarks + shared_remarks(data))


def _check(data: ExportData, users: list[str]) -> None:
    if data.max_history is not None:
        raise InputError(
            f"max_history: {data.max_history} has no effect on format 'lcrec', which has whole "
            "sequences; drop it"
        )
    check_keys(data.index.catalog.item_ids, "item_id")
    check_keys(users, "user")
    instead = "use --format minionerec"
    if not _is_leave_one_out(data.interactions):
        raise InputError(
            f"format: 'lcrec' can only say leave-one-out, and this data is split otherwise; {instead}"
        )
    if len(set(users)) < len(users):
        twice = Counter(users).most_common(1)[0][0]
        raise InputError(f"format: 'lcrec' has one sequence a user, and user {twice!r} has more; {instead}")
    if (data.interactions.items_I < 0).any():
        raise InputError(
            f"format: 'lcrec' cannot say that a target is not in the catalogue; {instead}, which leaves such "
            "cases out"
        )


def _is_leave_one_out(interactions: Interactions) -> bool:
    expected = leave_one_out(np.diff(interactions.indptr_S1))
    for split in SPLITS:
        low_S, high_S = interactions.bounds_of(split)
        expected_low_S, expected_high_S = expected[f"{split}_lo_S"], expected[f"{split}_hi_S"]
        asks_S = high_S > low_S
        differs_S = (low_S != expected_low_S) | (high_S != expected_high_S)
        if (asks_S != (expected_high_S > expected_low_S)).any() or differs_S[asks_S].any():
            return False
    return True


def _sequences(interactions: Interactions, numbers: list[int]) -> Iterator[list[int]]:
    for start, end in zip(interactions.indptr_S1[:-1], interactions.indptr_S1[1:], strict=True):
        yield [numbers[item] for item in interactions.items_I[start:end].tolist()]
