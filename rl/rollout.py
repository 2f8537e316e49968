"""Rollouts for GRPO: completions of the policy as it is now, in the shape of TRL's `rollout_func`.

All completions are SIDs of the catalogue; where evaluation leaves a user's history out of the list, so do
they. A prompt is read once, whatever its group is made of. What a group is to the gradient, which takes its
completions as samples of the policy (the ratio is between the policies of the update and of the rollout,
never of what drew a completion):

- `sample`: independent draws from the policy under the trie, at the temperature of the loss. Exactly
  on-policy where the loss' log-probs are those under the trie as well (`update.log_probs: trie`) and no
  history is left out. Log-probs over the whole vocabulary add what the legal tokens of a step weigh together,
  which a policy that spells SIDs anyway keeps near 1; a history left out adds what its items do.
- `beam`: the G best. Not samples: the gradient is biased towards what ranks high already (it re-orders the
  top of the list and never sees the tail). That is MiniOneRec's choice too; in exchange nothing is wasted on
  duplicates.
- `mixed`: a beam, and draws from the policy given that it answers outside of the beam, without replacement,
  so that all are distinct. A single draw is a sample of that; many are more even than the policy.
- `oversample` and `add_ground_truth` look at the truth: a hit is more frequent than the policy makes it.

What is drawn for a prompt depends on the seed, the optimizer step and its place in the batch of all
processes: a resumed run draws what an uninterrupted one does, and two processes what one does.

Legend: B prompts, G completions of each.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prompts.template import PromptTemplate
from rl.rollout_groups import Group, are_idle, beside
from rl.rollout_options import RolloutOptions
from serve.decoding.ranking import ItemFilter
from serve.decoding.tree_beam import BeamChooser
from serve.decoding.tree_model import Chooser, TreeModel
from serve.decoding.tree_sample import DistinctDraws, Draws, GivenSids
from serve.decoding.trie_step import DeviceTrie
from sid_builder.errors import InputError

PROMPTS_AT_ONCE = 64

Case = dict[str, Any]  # a row of the dataset


class Rollout:
    """`rollout_func(prompts, trainer)` of `GroupedGRPOTrainer`.

    Rows come repeated G times, group after group. What belongs to a row beside its prompt is read from the
    trainer's current rows, bound by position; rows of replaced groups are replaced there.

    Args:
        exclude_history: leave the items of a row's whole history out of its list, as evaluation does on data
            without repeats: otherwise the policy is trained on lists that nobody is ever shown.
        prompts_at_once: prompts decoded in one batch.
    """

    def __init__(
        self,
        template: PromptTemplate,
        options: RolloutOptions,
        exclude_history: bool,
        prompts_at_once: int = PROMPTS_AT_ONCE,
    ) -> None:
        self.template, self.options = template, options
        self.exclude_history, self.prompts_at_once = exclude_history, prompts_at_once
        self._trie: DeviceTrie | None = None
        self._step, self._rollout = -1, 0

    def __call__(self, prompts: list[list[dict[str, str]]], trainer: Any) -> dict[str, Any]:
        size, rows = trainer.num_generations, trainer.rollout_rows
        assert [row["prompt"] for row in rows] == prompts, "rollout rows and prompts are the same batch"
        cases = rows[::size]
        assert all(row["prompt"] == cases[at // size]["prompt"] for at, row in enumerate(rows)), (
            "groups are contiguous"
        )
        # Rollouts are counted within an optimizer step, as a run may be resumed behind any.
        self._rollout = self._rollout + 1 if trainer.state.global_step == self._step else 0
        self._step = trainer.state.global_step
        stream = [trainer.args.seed, self._step, self._rollout]

        policy = trainer.whole_policy()
        was_training = policy.training
        # eval(): no dropout here, and gradient checkpointing (train mode only) would drop the cache.
        policy.eval()
        try:
            groups = self._groups(policy, cases, size, trainer.accelerator.process_index, [*stream, 0])
            if self.options.idle_groups == "resample":
                self._replace_idle(trainer, policy, cases, groups, stream)
                rows[:] = [dict(case) for case in cases for _ in range(size)]
        finally:
            policy.train(was_training)
        return {
            "prompt_ids": [ids for ids in self._prompt_ids(cases) for _ in range(size)],
            "logprobs": None,  # TRL scores the completions itself where it needs the old log-probs
            **self._columns(cases, groups),
        }

    def _replace_idle(
        self, trainer: Any, policy: Any, cases: list[Case], groups: list[Group], stream: list[int]
    ) -> None:
        """Put groups of other prompts in the place of idle ones, in `cases` and `groups`, round by round.

        A process draws the prompts for its own groups, at random and none twice.
        """
        process, size = trainer.accelerator.process_index, len(groups[0].leaves_G)
        idle = np.flatnonzero(self._idle(trainer, cases, groups))
        trainer.log_share("idle_groups", len(idle) / len(groups))
        asked = {_key(case) for case in cases}
        order = np.random.default_rng([*stream, process]).permutation(len(trainer.train_dataset))
        others = (case for at in order if _key(case := trainer.train_dataset[int(at)]) not in asked)
        for attempt in range(1, self.options.resample_rounds + 1):
            drawn = [case for _, case in zip(idle, others, strict=False)]
            if not drawn:
                break
            tried = self._groups(policy, drawn, size, process, [*stream, attempt])
            found = np.flatnonzero(~self._idle(trainer, drawn, tried))
            for place, at in zip(idle, found, strict=False):
                cases[place], groups[place] = drawn[at], tried[at]
            idle = idle[len(found) :]

    def _idle(self, trainer: Any, cases: list[Case], groups: list[Group]) -> np.ndarray:
        """Bool [B]: whether a group's completions all earn the same."""
        columns, size = self._columns(cases, groups), len(groups[0].leaves_G)
        for name in cases[0]:
            columns[name] = [case[name] for case in cases for _ in range(size)]
        rewards = np.array([reward(**columns) for reward in trainer.reward_funcs], dtype=np.float32)
        weights = trainer.reward_weights.cpu().numpy()
        return are_idle(rewards.T, weights, size, trainer.multi_objective_aggregation)

    def _columns(self, cases: Sequence[Case], groups: list[Group]) -> dict[str, list]:
        """What rewards see of the completions, row by row."""
        sids, truths = self.template.index.trie.codes_ML, self._truths(cases)
        encode = self.template.vocabulary.encode
        return {
            "completion_ids": [encode(codes) for group in groups for codes in sids[group.leaves_G]],
            "beam_rank": [int(rank) for group in groups for rank in group.ranks()],
            "beam_score": [float(score) for group in groups for score in group.scores_G],
            "group": [number for number, group in enumerate(groups) for _ in group.leaves_G],
            "hit": [
                bool(leaf == truth)
                for truth, group in zip(truths, groups, strict=True)
                for leaf in group.leaves_G
            ],
        }

    def _truths(self, cases: Sequence[Case]) -> np.ndarray:
        """Leaves of the items asked for, int64 [B]."""
        leaf_N = self.template.index.trie.leaf_of_item_N
        return leaf_N[[case["target_item"] for case in cases]].astype(np.int64)

    def _prompt_ids(self, cases: Sequence[Case]) -> list[list[int]]:
        return [self.template.encode_prompt(case["prompt"][-1]["content"]) for case in cases]

    def _groups(
        self, policy: Any, cases: Sequence[Case], size: int, process: int, stream: list[int]
    ) -> list[Group]:
        """One ordered group per case."""
        if self._trie is None or self._trie.device != policy.device:
            self._trie = DeviceTrie(self.template.index.trie, self.template.vocabulary, policy.device)
        prompts = self._prompt_ids(cases)
        first = process * len(cases)
        rngs = [np.random.default_rng([*stream, first + place]) for place in range(len(cases))]
        groups: list[Group] = []
        for start in range(0, len(cases), self.prompts_at_once):
            part = slice(start, start + self.prompts_at_once)
            groups += self._walk(policy, self._trie, prompts[part], cases[part], rngs[part], size)
        return groups

    def _walk(
        self,
        policy: Any,
        trie: DeviceTrie,
        prompts: list[list[int]],
        cases: Sequence[Case],
        rngs: list[np.random.Generator],
        size: int,
    ) -> list[Group]:
        """Groups of one batch of prompts, each read once for beam, draws and truth together."""
        options, count = self.options, len(prompts)
        num_beams, num_drawn = options.parts(size)
        filters: list[ItemFilter | None] = [None] * count
        if self.exclude_history:
            filters = [ItemFilter(exclude=np.asarray(case["history"], dtype=np.int64)) for case in cases]
        truths = self._truths(cases)

        beam = BeamChooser(count, num_beams, trie.device)
        draws: Draws | DistinctDraws = Draws(num_drawn, rngs, options.temperature, trie.device)
        if options.mode == "mixed":
            # As many as there are candidates: whichever of them are in the beam, enough remain.
            draws = DistinctDraws(num_beams + num_drawn, rngs, options.temperature, trie.device)
        given = GivenSids(truths, trie)
        asked = ((beam, num_beams), (draws, num_drawn), (given, options.add_ground_truth))
        used: list[Chooser] = [chooser for chooser, wanted in asked if wanted]
        leaves = dict(zip(used, TreeModel(policy, trie).descend(prompts, filters, used), strict=True))

        nothing = [Group(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))] * count
        beams = [Group(*pair) for pair in beam.found(leaves[beam])] if num_beams else nothing
        drawn = [Group(*pair) for pair in draws.found(leaves[draws])] if num_drawn else nothing
        if options.mode == "mixed":
            beams = [beside(*pair, num_drawn) for pair in zip(beams, drawn, strict=True)]
        candidates = drawn if options.mode == "sample" else beams
        groups, scores = [], given.scores_B.tolist()
        for group, truth, score in zip(candidates, truths.tolist(), scores, strict=True):
            if len(group.leaves_G) < num_beams + num_drawn:
                raise InputError(
                    f"num_generations: {size}, but a prompt has only {len(group.leaves_G)} of the "
                    f"{num_beams + num_drawn} legal SIDs it takes; choose fewer"
                )
            group = group.select(size, truth)
            if options.add_ground_truth:
                group = group.with_truth(truth, score)
            groups.append(group.ordered())
        return groups


def _key(case: Case) -> tuple[str, int]:
    return case["prompt"][-1]["content"], case["target_item"]
