"""What ranks do not show of a policy: how far it has moved, how alike its lists are, what it spells freely.

A few cases are looked at closely, before training and after:

- *distinct level-1 codes* among the first 10 items of a list: a policy that collapses recommends from ever
  fewer branches.
- *invalid rate*: the share of a free beam's 10 best that are no SID of the catalogue. Under the trie it is 0
  whatever the policy has unlearnt.
- *KL* of the policy p to its start q, per prompt, in nats, between their distributions over the catalogue's
  SIDs (renormalised over the children of each prefix, as decoding under the trie). By the chain rule it is
  the sum over prefixes x of p(x) KL(p(. | x) || q(. | x)). Of all prefixes, those of the start's beam are
  looked into, at each the whole distribution over its children; what lies below others is taken as one
  event. Merging events never raises a KL (log sum inequality), so this is a lower bound, and exact where the
  beam is as wide as the catalogue. (TRL's KL term is another figure: an estimate from sampled answers, over
  the whole vocabulary unless `update.log_probs` says trie, per token.)

Legend: c cases of one process, C of all, B requests, K slots (prefixes kept of a request), R rows (slots of
all requests), E candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from serve.decoding.ranking import ItemFilter
from serve.decoding.recommender import Recommender
from serve.decoding.tree_beam import BeamChooser, decode
from serve.decoding.tree_model import TreeModel
from serve.decoding.trie_step import Candidates, DeviceTrie
from serve.evaluation.metrics import COVERAGE_CUTOFF
from serve.evaluation.model_ranking import DEFAULT_BATCH_TOKENS, batches
from sid_builder.interactions import Histories


@dataclass(frozen=True)
class Probed:
    """One value per case, float64 [C]; `kl_C` is 0 at the start."""

    level_1_C: np.ndarray
    invalid_C: np.ndarray
    kl_C: np.ndarray


class PolicyProbes:
    """Looks at `cases`, shared out among all processes; the first model it is shown is the start."""

    def __init__(self, policy: Recommender, cases: Histories, num_beams: int) -> None:
        self.policy, self.num_beams, self.num_cases = policy, num_beams, len(cases)
        state = PartialState()
        self._own_c = np.arange(state.process_index, len(cases), state.num_processes)
        self._cases = cases.take(self._own_c)
        self._start: list[BeamPath] = []  # of every batch

    def look(self, model: Any) -> Probed:
        """All processes call this alike; `model` is plain or wrapped by PEFT."""
        policy = Recommender(model, self.policy.tokenizer, self.policy.index, self.policy.template)
        values_Ac, paths = np.zeros((3, len(self._own_c))), []
        was_training = model.training
        model.eval()
        try:
            for cases, prompts in batches(policy, self._cases, DEFAULT_BATCH_TOKENS, self.num_beams):
                values_Ac[0, cases] = self._level_1(policy, cases, prompts)
                free = decode(policy.model, prompts, policy.trie, COVERAGE_CUTOFF, constraint="none")
                values_Ac[1, cases] = [(~ranking.legal_B).mean() for ranking in free]
                start = self._start[len(paths)] if self._start else None
                paths.append(walk(policy, prompts, self.num_beams, start))
                if start is not None:
                    values_Ac[2, cases] = paths[-1].kl(start)
        finally:
            model.train(was_training)
        self._start = self._start or paths
        values_AC = np.zeros((3, self.num_cases))
        for part_c, part_Ac in gather_object([(self._own_c, values_Ac)]):
            values_AC[:, part_c] = part_Ac
        return Probed(*values_AC)

    def _level_1(
        self, policy: Recommender, cases: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> list[int]:
        """Distinct level-1 codes at the beginning of each list."""
        filters = None
        if not self._cases.interactions.has_repeats:
            filters = [ItemFilter(exclude=self._cases.history(case).astype(np.int64)) for case in cases]
        level_1_N = policy.index.semantic_ids.codes_NL[:, 0]
        rankings = decode(policy.model, prompts, policy.trie, self.num_beams, filters)
        return [len(np.unique(level_1_N[ranking.items_K[:COVERAGE_CUTOFF]])) for ranking in rankings]


def walk(
    policy: Recommender, prompts: Sequence[Sequence[int]], num_beams: int, start: "BeamPath | None" = None
) -> "BeamPath":
    """A policy's log-probs along its own beam, or along that of `start`, of the same prompts."""
    path = BeamPath(len(prompts), num_beams, policy.trie, start)
    TreeModel(policy.model, policy.trie, "trie").descend(prompts, [None] * len(prompts), [path])
    return path


class BeamPath:
    """A beam's prefixes level by level, with a model's log-probs of all their children, on the CPU."""

    def __init__(
        self, num_requests: int, num_beams: int, trie: DeviceTrie, start: "BeamPath | None" = None
    ) -> None:
        self.num_requests, self.start = num_requests, start
        self._beam = BeamChooser(num_requests, num_beams, trie.device)
        self.rows: list[torch.Tensor] = []  # by level: row_E of the candidates,
        self.log_p: list[torch.Tensor] = []  # their log-probs given their row's prefix, float64 [E],
        self.chosen: list[torch.Tensor] = []  # and which of them become the next rows, [B, K]; -1: none

    def choose(self, candidates: Candidates, width: int, step_E: torch.Tensor) -> torch.Tensor:
        """As `serve.decoding.tree_model.Chooser`."""
        if self.start is None:
            chosen_BK = self._beam.choose(candidates, width, step_E)
        else:
            chosen_BK = self.start.chosen[len(self.chosen)].to(step_E.device)
        self.rows.append(candidates.row_E.cpu())
        self.log_p.append(step_E.double().cpu())
        self.chosen.append(chosen_BK.cpu())
        return chosen_BK

    def kl(self, other: "BeamPath") -> np.ndarray:
        """KL of this model to that of `other`, along the same prefixes, in nats per request, float64 [B]."""
        kl_B = torch.zeros(self.num_requests, dtype=torch.float64)
        prefix_R = torch.zeros(self.num_requests, dtype=torch.float64)  # log-probs
        for row_E, log_p_E, log_q_E, chosen_BK in zip(
            self.rows, self.log_p, other.log_p, self.chosen, strict=True
        ):
            reached_E = prefix_R[row_E] + log_p_E
            request_E = row_E // (len(prefix_R) // self.num_requests)
            kl_B.index_add_(0, request_E, reached_E.exp() * (log_p_E - log_q_E))
            prefix_R = reached_E[chosen_BK.clamp(min=0)].masked_fill(chosen_BK < 0, -torch.inf).flatten()
        return kl_B.clamp(min=0).numpy()
