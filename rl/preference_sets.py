"""Preference sets: the answer to prefer and those to reject behind one prompt, in token ids.

What is preferred is the truth, and rejected are answers of `rl.NEGATIVES`. Or rewards judge: of the policy's
own beam the best-rewarded SID is preferred and the worst are rejected (OneRec's IPA), where they differ.

Legend: B beams of a prompt, C completions (the beams of several prompts).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from rl import NEGATIVES
from rl.preference_cases import NegativeSource, PromptCase, cases_of, sample
from rl.preference_options import PreferenceOptions, source_options
from rl.rewards.building import build_reward
from rl.rewards.completions import Completions, checked
from rl.train_cases import draw_train_cases
from serve.decoding.ranking import ItemFilter, Ranking
from serve.decoding.recommender import Recommender
from serve.decoding.tree_beam import decode
from serve.evaluation.model_ranking import DEFAULT_BATCH_TOKENS, prompt_batches
from sid_builder.registry import resolve

# The leaf to prefer, and leaves to reject, each with the name of its source.
_Choice = tuple[int, list[tuple[int, str]]]
_CASES_AT_ONCE = 4096  # rendered and sorted by length together; sets come out in the order of cases


@dataclass(frozen=True)
class Answer:
    """One answer: the item people see for it, its place in the policy's beam, and who brought it.

    `rank` counts from 0; -1: not in the beam, or no beam was searched.
    """

    token_ids: list[int]
    item: int
    rank: int
    source: str


@dataclass(frozen=True)
class PreferenceSet:
    """All answers are SID tokens and what ends an answer, as `PromptTemplate.render` writes them."""

    prompt_ids: list[int]
    history: list[int]
    chosen: Answer
    rejected: list[Answer]


class PreferenceMaker:
    """Makes sets for prompts of train, from a policy as it is.

    Args:
        policy: its model may be None where `options.needs_beam` is false.
        seed: of the cases, and of every case's draws.
    """

    def __init__(self, policy: Recommender, options: PreferenceOptions, seed: int) -> None:
        self.policy, self.options, self.seed = policy, options, seed
        # Evaluation leaves a user's history out of the list when the data has no repeats; so do these beams.
        self.exclude_history = not policy.interactions.has_repeats
        self._sources: dict[str, NegativeSource] = {
            name: resolve(NEGATIVES, name, "negatives")(
                source_options(name, options.negative_args.get(name, {})), policy.index, policy.interactions
            )
            for name in options.negatives
        }
        train = policy.interactions.only_train() if options.rewards else None
        self._rewards = {
            name: build_reward(name, options.reward_args.get(name, {}), policy.index, train)
            for name in options.rewards
        }

    def cases(self, max_prompts: int, positions: str) -> list[PromptCase]:
        """At most `max_prompts` cases drawn by seed: train's, or those that a source says there are."""
        for source in self._sources.values():
            if hasattr(source, "cases"):
                train = draw_train_cases(self.policy, 0, positions, self.seed)
                return sample(source.cases(train), max_prompts, self.seed)
        return cases_of(draw_train_cases(self.policy, max_prompts, positions, self.seed))

    def sets(self, cases: Sequence[PromptCase], progress: bool = True) -> Iterator[PreferenceSet]:
        """A set per case, in their order; none where there is nothing to reject, no hit among the beams
        (`only_hits`), or nothing that rewards tell apart.

        Raises:
            InputError: for more negatives than a source has.
        """
        trie, width = self.policy.index.trie, self.options.num_beams if self.options.needs_beam else 0
        with tqdm(total=len(cases), desc="preferences", unit="prompt", disable=not progress) as bar:
            for start in range(0, len(cases), _CASES_AT_ONCE):
                block = cases[start : start + _CASES_AT_ONCE]
                prompts = [self.policy.template.seqrec_prompt(case.history) for case in block]
                found: dict[int, PreferenceSet | None] = {}
                for rows in prompt_batches(prompts, trie, DEFAULT_BATCH_TOKENS, width):
                    part = [block[row] for row in rows]
                    made = self._of_batch(part, [prompts[row] for row in rows], width)
                    found.update(zip(rows, made, strict=True))
                    bar.update(len(rows))
                yield from (made for row in range(len(block)) if (made := found[row]) is not None)

    def _of_batch(
        self, cases: list[PromptCase], prompts: list[list[int]], width: int
    ) -> list[PreferenceSet | None]:
        leaves: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(cases)
        choices: list[_Choice | None]
        if width:
            filters = [ItemFilter(exclude=case.history) for case in cases] if self.exclude_history else None
            rankings = decode(self.policy.model, prompts, self.policy.trie, width, filters)
            leaves = [self.policy.index.trie.leaves_of(ranking.codes_BL) for ranking in rankings]
        if self.options.rewards:
            values = self._rewarded(cases, rankings)
            choices = [self._judged(*pair) for pair in zip(leaves, values, strict=True)]
        else:
            choices = [self._true(*pair) for pair in zip(cases, leaves, strict=True)]
        return [
            self._set(case, prompt_ids, beam_B, choice) if choice is not None else None
            for case, prompt_ids, beam_B, choice in zip(cases, prompts, leaves, choices, strict=True)
        ]

    def _true(self, case: PromptCase, beam_B: np.ndarray) -> _Choice | None:
        """The truth against what the sources draw; None where there is nothing to reject."""
        leaf_of_item_N = self.policy.index.trie.leaf_of_item_N
        truth = int(leaf_of_item_N[case.target])
        if self.options.only_hits and truth not in beam_B:
            return None
        taken = {truth}
        if self.exclude_history:
            taken.update(leaf for leaf in leaf_of_item_N[case.history].tolist() if leaf >= 0)
        rng = np.random.default_rng([self.seed, case.number])
        rejected: list[tuple[int, str]] = []
        for name, count in self.options.negatives.items():
            drawn = self._sources[name].draw(case, beam_B, taken, count, rng)
            assert not taken.intersection(drawn), f"{name} drew what was taken"
            taken.update(drawn)
            rejected += [(leaf, name) for leaf in drawn]
        return (truth, rejected) if rejected else None

    def _judged(self, beam_B: np.ndarray, values_B: np.ndarray) -> _Choice | None:
        """The best-rewarded beam, the first of equals, against the worst, of equals the last ones."""
        best = int(np.argmax(values_B))
        order = np.argsort(values_B[::-1], kind="stable")
        worst = (len(values_B) - 1 - order)[: self.options.num_negatives]
        worst = worst[values_B[worst] < values_B[best]]
        return (int(beam_B[best]), [(int(beam_B[at]), "beam") for at in worst]) if len(worst) else None

    def _rewarded(self, cases: list[PromptCase], rankings: list[Ranking]) -> list[np.ndarray]:
        """Weighted sum of the rewards of every beam, float64 [B] each."""
        sizes = [len(ranking.codes_BL) for ranking in rankings]
        group_C = np.repeat(np.arange(len(cases)), sizes)
        histories = [case.history.tolist() for case in cases]
        completions = Completions(
            codes_CL=np.concatenate([ranking.codes_BL for ranking in rankings]),
            target_item_C=np.array([case.target for case in cases], dtype=np.int64)[group_C],
            rank_C=np.concatenate([np.arange(size) for size in sizes]),
            group_C=group_C,
            score_C=np.concatenate([ranking.beam_scores_B for ranking in rankings]).astype(np.float64),
            index=self.policy.index,
            history_C=[histories[group] for group in group_C],
            exclude_history=self.exclude_history,
        )
        total_C = np.zeros(len(group_C))
        for name, reward in self._rewards.items():
            values = checked(name, reward(completions), len(group_C))
            total_C += self.options.rewards[name] * np.array(values)
        return np.split(total_C, np.cumsum(sizes)[:-1])

    def _set(
        self, case: PromptCase, prompt_ids: list[int], beam_B: np.ndarray, choice: _Choice
    ) -> PreferenceSet:
        rank = {int(leaf): place for place, leaf in enumerate(beam_B)}
        template, trie = self.policy.template, self.policy.index.trie

        def answer(leaf: int, source: str, item: int) -> Answer:
            ids = [*template.vocabulary.encode(trie.codes_ML[leaf]), *template.end_ids]
            return Answer(ids, item, rank.get(leaf, -1), source)

        def shown(leaf: int) -> int:
            return int(trie.items_of_leaf(leaf)[0])

        preferred, rejected = choice
        if self.options.rewards:
            chosen = answer(preferred, "beam", shown(preferred))
        else:
            chosen = answer(preferred, "truth", case.target)
        losers = [answer(leaf, source, shown(leaf)) for leaf, source in rejected]
        return PreferenceSet(prompt_ids, case.history.tolist(), chosen, losers)
