"""A model directory with a tiny model in it, and sequences it can learn."""

from pathlib import Path

import numpy as np

from sft.model_directory import write_model_directory
from sid_builder.interactions import Interactions
from tests.builders import make_index, make_recommender


def make_model_dir(root: Path, num_users: int = 40, pack: str = "plain", seed: int = 0) -> Path:
    """60 items under 3 x 6 codes (two of them share an SID), users of 6 items without repeats."""
    rng = np.random.default_rng(seed)
    codes = np.array([(a, b, c) for a in range(6) for b in range(6) for c in range(6)])
    codes = codes[rng.choice(len(codes), 60, replace=False)]
    codes[59] = codes[58]
    recommender = make_recommender(make_index(codes, (6, 6, 6)), pack=pack, seed=seed)
    sequences = [rng.choice(60, 6, replace=False).astype(np.int32) for _ in range(num_users)]
    interactions = Interactions.leave_one_out([f"u{n}" for n in range(num_users)], sequences)
    (root / "interactions").mkdir(parents=True)
    interactions.save(root / "interactions")
    path = root / "model"
    write_model_directory(
        path,
        recommender.model,
        recommender.tokenizer,
        recommender.template.pack,
        recommender.index,
        root / "interactions",
    )
    return path
