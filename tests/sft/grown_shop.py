"""The toy shop before and after it grew: a tenth of its items and the last interactions come later."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sid_builder import assign, build
from sid_builder.embedding_store import Contents, encode_stored
from sid_builder.sources.toy import ToyArgs, ToyShop

NEW_SHARE, NUM_LATER = 10, 4  # every tenth item is new; a user's last four interactions are
CONFIG = """
source: jsonl
text_template: "{title}"
embedder: tests.sft.grown_shop:WordCounts
quantizer_args: {levels: 3, codes_per_level: 12}
repair: last_level_assign
seed: 5
"""


@dataclass(frozen=True)
class WordCountsConfig:
    """There are no options."""


class WordCounts:
    """An embedder of an item's words alone, as models are: a random vector per word, summed."""

    def __init__(self, config: WordCountsConfig, seed: int = 0) -> None:
        pass

    def encode(self, items):
        return encode_stored(self, Contents.of_texts(items.texts), "none", None)[0]

    def identity(self) -> dict[str, Any]:
        return {"embedder": "word_counts"}

    def encode_batches(self, values: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        def vector(word: str) -> np.ndarray:
            return np.random.default_rng(list(word.encode())).normal(size=32)

        rows = [np.sum([vector(word) for word in text.split()], axis=0) for text in values]
        yield np.arange(len(values)), np.array(rows, dtype=np.float32)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class GrownShop:
    """`sids`, the artefact of the old items; `grown_sids`, its next version; `later`, new interactions."""

    sids: Path
    grown_sids: Path
    later: Path
    new_ids: list[str]


def make_grown_shop(root: Path, num_users: int, items_per_category: int) -> GrownShop:
    """Old interactions are with old items alone; new users (every twentieth) have later ones only."""
    easy = {"rule": 0.98, "second_rule": 0.0, "taste": 4.0}
    shop = ToyShop(
        ToyArgs(
            num_users=num_users, items_per_category=items_per_category, min_length=8, max_length=14, **easy
        )
    )
    rows = [
        {"item_id": row["item_id"], "title": row["title"], "brand": row["brand"]}
        for row in map(shop.catalog().row, range(shop.num_items))
    ]
    is_new = np.arange(shop.num_items) % NEW_SHARE == 3
    old, later = [], []
    for number, sequence in enumerate(shop.sequences()):
        known = [] if number % 20 == 0 else [item for item in sequence[:-NUM_LATER] if not is_new[item]]
        for kept, items in ((old, known), (later, sequence[-NUM_LATER:])):
            if len(items):
                kept.append({"user": f"u{number}", "items": [rows[item]["item_id"] for item in items]})
    data = root / "data"
    data.mkdir()
    write_lines(data / "items.jsonl", [row for row, new in zip(rows, is_new, strict=True) if not new])
    write_lines(data / "sequences.jsonl", old)
    new_rows = [row for row, new in zip(rows, is_new, strict=True) if new]
    (root / "sids.yaml").write_text(CONFIG, encoding="utf-8")
    words = ["--config", root / "sids.yaml", "--data_path", data, "--output_dir", root / "sids"]
    build.main([str(word) for word in words])
    added = write_lines(root / "new_items.jsonl", new_rows)
    words = ["--sid_dir", root / "sids", "--add", added, "--output_dir", root / "sids_v2"]
    assign.main([str(word) for word in words])
    return GrownShop(
        root / "sids",
        root / "sids_v2",
        write_lines(root / "later.jsonl", later),
        [row["item_id"] for row in new_rows],
    )
