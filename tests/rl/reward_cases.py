"""A small shop, rollouts over it, and every reward built on it: for the rewards' tests."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from rl.rewards.building import build_reward
from rl.rewards.completions import Completions, Reward
from sid_builder.catalog import Catalog
from sid_builder.interactions import Interactions
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex

G = 4
NO_SID, NO_PATH = -2, -1  # a path of codes that no item has, and tokens that are no path


def make_index() -> SidIndex:
    """18 items under 4 x 4 x 4 codes; 16 shares the SID of item 1 and is more frequent, 17 is removed."""
    codes = np.array([(a, b, 0) for a in range(4) for b in range(4)] + [(0, 1, 0), (3, 3, 3)], dtype=np.int32)
    rows = [{"item_id": f"i{item}", "price": 10.0 + item, "margin": str(item % 5)} for item in range(18)]
    catalog = Catalog.from_stream(((row["item_id"], row) for row in rows), further=["margin"])
    return SidIndex(catalog, SemanticIds(codes, (4, 4, 4)), np.arange(18), removed_N=np.arange(18) == 17)


def make_interactions() -> Interactions:
    """Three users; train is what stands before the last two items of each: 0..5 and 7."""
    rows = [[0, 1, 2, 3, 15, 14], [4, 1, 5, 13, 12], [1, 7, 11, 10]]
    plays = np.array([30.0, 20, np.nan, 60, 99, 99, 50, 40, 10, 99, 99, 25, 80, 99, 99], dtype=np.float32)
    return Interactions.from_csr(
        pa.array(["a", "b", "c"]),
        np.cumsum([0, *map(len, rows)]),
        np.concatenate(rows).astype(np.int32),
        features_I={"plays": plays, "price": plays},
    )


def make_completions(index: SidIndex, items: list[list[int]], targets: list[int], **given) -> Completions:
    """One group per row of `items` (or `NO_SID`, `NO_PATH`), in beam order unless `rank` says otherwise."""
    flat = np.array(items).ravel()
    size = len(items[0])
    codes = index.semantic_ids.codes_NL[np.maximum(flat, 0)].copy()
    if NO_SID in flat:
        codes[flat == NO_SID] = (2, 2, 3)
    codes[flat == NO_PATH] = -1
    groups = range(len(items))
    history = given.get("history", [[group % 3 + 2, 4] for group in groups])
    return Completions(
        codes_CL=codes,
        target_item_C=np.repeat(targets, size),
        rank_C=np.array(given.get("rank", np.tile(np.arange(size), len(items)))),
        group_C=np.repeat(list(groups), size),
        score_C=np.array(given.get("score", np.tile(-1.5 * np.arange(size) - 1, len(items)))),
        index=index,
        history_C=[history[group] for group in groups for _ in range(size)],
        exclude_history=given.get("exclude_history", False),
    )


def rows_of(completions: Completions, rows: np.ndarray) -> Completions:
    """The rows asked for, in their order."""
    columns = ("codes_CL", "target_item_C", "rank_C", "group_C", "score_C")
    taken = {name: getattr(completions, name)[rows] for name in columns}
    history = [completions.history_C[row] for row in rows]
    return Completions(
        **taken, index=completions.index, history_C=history, exclude_history=completions.exclude_history
    )


def make_reward(name: str, index: SidIndex, directory: Path) -> Reward:
    """A reward of the registry on train of `make_interactions`, with what it reads written to `directory`."""
    options: dict[str, dict] = {"business": {"column": "margin"}}
    if name == "semantic":
        vectors = np.random.default_rng(0).normal(size=(18, 6)).astype(np.float32)
        np.save(directory / "vectors.npy", vectors)
        options[name] = {"embeddings": str(directory / "vectors.npy")}
    if name == "collaborative":
        options[name] = {"sasrec": str(save_sasrec(index, directory / "sasrec")), "device": "cpu"}
    return build_reward(name, options.get(name, {}), index, make_interactions().only_train())


def save_sasrec(index: SidIndex, path: Path) -> Path:
    """An untrained SASRec over the catalogue."""
    import torch

    from sid_builder.collaborative import SASRecConfig
    from sid_builder.collaborative.sasrec import SASRec

    torch.manual_seed(0)
    SASRec(SASRecConfig(dim=8, layers=1, heads=1), index.catalog.num_items).save(path, index.catalog)
    return path
