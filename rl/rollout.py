"""Rollouts for GRPO: the constrained beam of the policy as it is now, in the shape of TRL's `rollout_func`.

A group is the G best legal SIDs of one prompt, all distinct, in beam order. They are *not* samples: GRPO's
gradient takes them as if they were, so it is biased towards what already ranks high (it re-orders the top of
the list and never sees the tail). That is MiniOneRec's choice too; in exchange no rollout is wasted on
duplicates or on items that do not exist.
"""

from typing import Any

import numpy as np

from prompts.template import PromptTemplate
from serve.decoding.ranking import ItemFilter, Ranking
from serve.decoding.tree_beam import decode
from serve.decoding.trie_step import DeviceTrie
from sid_builder.errors import InputError

PROMPTS_AT_ONCE = 64


class BeamRollout:
    """`rollout_func(prompts, trainer)` of `GroupedGRPOTrainer`.

    Rows come repeated G times, group after group; each prompt is decoded once. The history to exclude is read
    from the trainer's current rows, bound by position.

    Args:
        exclude_history: leave the items of a row's whole history out of its beam, as evaluation does on data
            without
            repeats: otherwise the policy is trained on lists that nobody is ever shown.
        prompts_at_once: prompts decoded in one batch.
    """

    def __init__(
        self, template: PromptTemplate, exclude_history: bool, prompts_at_once: int = PROMPTS_AT_ONCE
    ) -> None:
        self.template = template
        self.exclude_history = exclude_history
        self.prompts_at_once = prompts_at_once
        self._trie: DeviceTrie | None = None

    def __call__(self, prompts: list[list[dict[str, str]]], trainer: Any) -> dict[str, list]:
        group_size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
        rows = trainer.rollout_rows
        assert len(rows) == len(prompts), "rollout rows and prompts are the same generation batch"
        first = prompts[::group_size]
        assert all(prompt == first[row // group_size] for row, prompt in enumerate(prompts)), (
            "groups are contiguous"
        )
        prompt_ids = [self.template.encode_prompt(prompt[-1]["content"]) for prompt in first]
        filters = None
        if self.exclude_history:
            histories = [np.asarray(row["history"], dtype=np.int64) for row in rows[::group_size]]
            filters = [ItemFilter(exclude=history) for history in histories]
        rankings: list[Ranking] = []
        for start in range(0, len(first), self.prompts_at_once):
            part = slice(start, start + self.prompts_at_once)
            rankings += self._beams(trainer, prompt_ids[part], filters and filters[part], group_size)
        encode = self.template.vocabulary.encode
        return {
            "prompt_ids": [prompt_ids[row // group_size] for row in range(len(prompts))],
            "completion_ids": [encode(codes) for ranking in rankings for codes in ranking.codes_BL],
            "logprobs": None,  # TRL scores the completions itself where it needs the old log-probs
            "beam_rank": [row % group_size for row in range(len(prompts))],
            "beam_score": [float(score) for ranking in rankings for score in ranking.beam_scores_B],
            "group": [row // group_size for row in range(len(prompts))],
        }

    def _beams(
        self, trainer: Any, prompts: list[list[int]], filters: list[ItemFilter] | None, group_size: int
    ) -> list[Ranking]:
        policy = trainer.accelerator.unwrap_model(trainer.model)
        if self._trie is None or self._trie.device != policy.device:
            self._trie = DeviceTrie(self.template.index.trie, self.template.vocabulary, policy.device)
        was_training = policy.training
        # eval(): no dropout in the beam, and gradient checkpointing (train mode only) would drop the cache.
        policy.eval()
        try:
            rankings = decode(policy, prompts, self._trie, group_size, filters)
        finally:
            policy.train(was_training)
        for ranking in rankings:
            if len(ranking.codes_BL) < group_size:
                raise InputError(
                    f"num_generations: {group_size}, but a prompt has only "
                    f"{len(ranking.codes_BL)} legal SIDs; choose fewer"
                )
        return rankings


def check_group_size(num_generations: int, trie: Any, longest_history: int) -> None:
    """InputError when a group could not be filled with distinct legal SIDs (padding would repeat some)."""
    available = trie.num_leaves - longest_history
    if num_generations > available:
        raise InputError(
            f"num_generations: {num_generations}, but only {available} SIDs are left for some prompts "
            f"(catalogue: {trie.num_leaves}, longest history: {longest_history}); choose fewer"
        )
