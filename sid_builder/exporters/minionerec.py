"""MiniOneRec's data directory: three CSVs of sliding windows, `info/`, `index/`.

    train|valid|test/NAME.csv   a row per case: history (its newest `max_history` items), then target
    info/NAME.txt               SID, title and item id of every item
    index/NAME.index.json, index/NAME.item.json, and index/NAME.item2id where item keys are not 0..N-1

List cells are Python's `repr` of lists of text or whole numbers, which its code evaluates. Its `sft.sh` and
`rl.sh` look for `train/NAME*11.csv`: name the files there, or choose a name that ends in 11.
Layout: https://github.com/AkaliKong/MiniOneRec (`convert_dataset.py`, `data.py`).
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from sid_builder.exporters import ExportData, Exported
from sid_builder.exporters.item_files import (
    check_keys,
    numbered,
    one_line,
    peer_sids,
    shared_remarks,
    write_item_files,
    write_key_file,
)
from sid_builder.interactions import SPLITS

MAX_HISTORY = 10  # what its own data has
COLUMNS = (
    "user_id",
    "history_item_title",
    "item_title",
    "history_item_id",
    "item_id",
    "history_item_sid",
    "item_sid",
)


def write(data: ExportData, directory: Path) -> Exported:
    """Write the directory; cases stay in the order of sequences and, inside one, of positions.

    Raises:
        InputError: for keys of items or users with tabs or line breaks.
    """
    catalog, sids = data.index.catalog, peer_sids(data.index.semantic_ids)
    check_keys(catalog.item_ids, "item_id")
    check_keys(data.interactions.users.to_pylist(), "user")
    for folder in (*SPLITS, "info", "index"):
        (directory / folder).mkdir()
    numbers = numbered(catalog.item_ids)
    write_item_files(data, numbers, directory / "index")
    mapped = list(map(str, numbers)) != catalog.item_ids
    if mapped:
        write_key_file(directory / "index" / f"{data.name}.item2id", catalog.item_ids, numbers)
    titles = list(map(one_line, catalog.titles))
    spelled = [sids.spell(index) for index in range(catalog.num_items)]
    with open(directory / "info" / f"{data.name}.txt", "w", encoding="utf-8", newline="\n") as handle:
        handle.writelines(
            f"{sid}\t{title}\t{number}\n" for sid, title, number in zip(spelled, titles, numbers, strict=True)
        )
    figures, remarks = _write_cases(data, directory, titles, numbers, spelled)
    if mapped:
        remarks.append(
            f"item keys are numbered 0..{catalog.num_items - 1}; index/{data.name}.item2id has them"
        )
    return Exported({"items": catalog.num_items} | figures, remarks + shared_remarks(data))


def _write_cases(
    data: ExportData, directory: Path, titles: Sequence[str], numbers: Sequence[int], spelled: Sequence[str]
) -> tuple[dict[str, int], list[str]]:
    """Write the CSVs; how many rows each has, and what of the interactions they cannot say."""
    longest = MAX_HISTORY if data.max_history is None else data.max_history
    cases_of = {split: data.interactions.histories(split) for split in SPLITS}
    title_reprs, sid_reprs = list(map(repr, titles)), list(map(repr, spelled))
    rows = dict.fromkeys(SPLITS, 0)
    unknown = without_history = cut = 0
    with tqdm(total=sum(map(len, cases_of.values())), desc="write cases", unit="case") as progress:
        for split, cases in cases_of.items():
            users = data.interactions.users.take(pa.array(cases.sequence_C)).to_pylist()
            with open(directory / split / f"{data.name}.csv", "w", encoding="utf-8", newline="") as handle:
                writer = csv.writer(handle, lineterminator="\n")
                writer.writerow(COLUMNS)
                for case, target in enumerate(cases.targets_C.tolist()):
                    progress.update()
                    history = cases.history(case, longest).tolist()
                    if target < 0:
                        unknown += 1
                    elif not history:
                        without_history += 1
                    else:
                        rows[split] += 1
                        cut += int(cases.position_C[case]) > longest
                        writer.writerow(
                            (
                                users[case],
                                f"[{', '.join([title_reprs[item] for item in history])}]",
                                titles[target],
                                [numbers[item] for item in history],
                                numbers[target],
                                f"[{', '.join([sid_reprs[item] for item in history])}]",
                                spelled[target],
                            )
                        )
    counted = {
        "{} cases are left out: their target is not in the catalogue": unknown,
        "{} cases are left out: nothing of their history is in the catalogue": without_history,
        f"{{}} histories are cut to their newest {longest} items": cut,
        "{} sequences ask for nothing (one interaction, say) and are left out": _without_cases(data),
        "{} items that open a sequence are in histories only, so train counts leave them out": int(
            ((data.interactions.train_lo_S == 0) & (data.interactions.train_hi_S > 0)).sum()
        ),
    }
    return (
        {f"{split}_rows": count for split, count in rows.items()},
        [sentence.format(count) for sentence, count in counted.items() if count],
    )


def _without_cases(data: ExportData) -> int:
    """How many sequences no split asks anything of."""
    asked_S = np.zeros(data.interactions.num_sequences, dtype=bool)
    for split in SPLITS:
        asked_S[data.interactions.histories(split).sequence_C] = True
    return int((~asked_S).sum())
