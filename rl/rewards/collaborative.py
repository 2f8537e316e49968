"""`collaborative`: what SASRec thinks of the completion as the next item (MiniOneRec's `sasrec` reward).

    python -m sid_builder.train_sasrec --sid_dir out/beauty/sids --output_dir out/beauty/sasrec
    rewards: {rule: 1.0, collaborative: 0.2}
    reward_args: {collaborative: {sasrec: out/beauty/sasrec}}

MiniOneRec's reward is the logit itself, and what is no item is scored as a random one. Logits mean something
only beside each other, so here they are scaled within the group: its best SID earns 1 and its worst 0. Being
affine, that changes no advantage under `scale_rewards: group`, and puts the reward on one scale with others.

Legend: S groups, s those scored at once, N items, P pairs of a completion and one of its items.
"""

from dataclasses import dataclass, field

import numpy as np

from rl.rewards.completions import Completions
from sid_builder.artifact import open_artifact
from sid_builder.embedders.model_files import DEVICE_HELP
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex

_SCORES_AT_ONCE = 1 << 24  # float32: 64 MiB


@dataclass(frozen=True)
class CollaborativeOptions:
    """Which SASRec. It has to know train alone, as those of sid_builder.train_sasrec do."""

    sasrec: str = field(metadata={"help": "Directory of sid_builder.train_sasrec, on the model's items."})
    device: str | None = field(default=None, metadata={"help": DEVICE_HELP})

    def check(self, prefix: str) -> None:
        """InputError for what is no such directory."""
        open_artifact(self.sasrec, "sasrec")


class CollaborativeReward:
    """SASRec's scores of the completions behind the group's history, from 0 to 1 within the group."""

    def __init__(self, options: CollaborativeOptions, index: SidIndex, train: Interactions) -> None:
        from sid_builder.collaborative.sasrec import SASRec  # torch: after options were checked

        self.model = SASRec.load(options.sasrec, index.catalog, options.device)

    def __call__(self, completions: Completions) -> np.ndarray:
        """Float64 [C] in 0..1; 1 for all where scores are equal, 0 for what is no item's SID.

        The score of an SID is the mean of its items'. What is no item's SID leaves the scale alone.
        """
        row_P, item_P = completions.items
        slot_C = completions.slot_C
        _, first_S = np.unique(slot_C, return_index=True)
        score_P = np.empty(len(item_P))
        step = max(1, _SCORES_AT_ONCE // self.model.num_items)
        for low in range(0, len(first_S), step):
            rows_s = first_S[low : low + step]
            scores_sN = self.model.scores([np.asarray(completions.history_C[row]) for row in rows_s])
            here = np.flatnonzero((slot_C[row_P] >= low) & (slot_C[row_P] < low + len(rows_s)))
            score_P[here] = scores_sN[slot_C[row_P[here]] - low, item_P[here]]
        listed_C = completions.leaf_C >= 0
        score_C = completions.mean_of_items(score_P, otherwise=0.0)
        low_S, high_S = np.full(len(first_S), np.inf), np.full(len(first_S), -np.inf)
        np.minimum.at(low_S, slot_C[listed_C], score_C[listed_C])
        np.maximum.at(high_S, slot_C[listed_C], score_C[listed_C])
        spread_C = (high_S - low_S)[slot_C]
        apart_C = listed_C & (spread_C > 0)
        scaled_C = np.divide(score_C - low_S[slot_C], spread_C, out=np.ones(len(slot_C)), where=apart_C)
        return np.where(listed_C, scaled_C, 0.0)
