"""The tree beam as an engine: arrivals share forward passes, each gets exactly its own list.

Legend: B requests, K beams, C candidates, L levels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from serve.decoding.candidate_scores import score_candidates
from serve.decoding.ranking import ItemFilter, Ranking
from serve.decoding.recommender import Recommender
from serve.decoding.tree_beam import BeamChooser
from serve.decoding.tree_model import TreeModel
from serve.decoding.trie_step import Candidates
from serve.engine.micro_batches import BatchRecord, MicroBatcher
from serve.engine.protocol import EngineLoad, EngineObserver
from serve.engine.torch_options import TorchOptions

RECOMMEND, SCORE = "recommend", "score"


class WidthBeam(BeamChooser):
    """A beam whose requests have widths of their own: each keeps what a beam of its width alone would."""

    def __init__(self, widths: Sequence[int], device: torch.device) -> None:
        super().__init__(len(widths), max(widths), device)
        self.width_B = torch.tensor(widths, device=device)

    def choose(self, candidates: Candidates, width: int, step_E: torch.Tensor) -> torch.Tensor:
        chosen_BK = super().choose(candidates, width, step_E)
        slot_K = torch.arange(chosen_BK.shape[1], device=chosen_BK.device)
        beyond_BK = slot_K >= self.width_B[:, None]
        self.scores_BK = self.scores_BK.masked_fill(beyond_BK, -torch.inf)
        return chosen_BK.masked_fill(beyond_BK, -1)


def decode_widths(
    recommender: Recommender,
    prompts: Sequence[Sequence[int]],
    widths: Sequence[int],
    filters: Sequence[ItemFilter | None],
) -> list[Ranking]:
    """`tree_beam.decode` with a beam width per prompt, in one batch."""
    trie = recommender.trie
    beam = WidthBeam(widths, trie.device)
    (leaves_BK,) = TreeModel(recommender.model, trie).descend(prompts, filters, [beam])
    return [
        Ranking.from_leaves(trie.trie, leaves, scores, item_filter)
        for (leaves, scores), item_filter in zip(beam.found(leaves_BK), filters, strict=True)
    ]


class TorchEngine:
    """An `Engine` in this process: one copy of the weights, one thread that runs batches."""

    name = "torch"

    def __init__(self, recommender: Recommender, options: TorchOptions) -> None:
        self.recommender = recommender
        self.options = options
        self.batcher: MicroBatcher | None = None

    async def start(self, observer: EngineObserver) -> None:
        """Start the worker; its first batch also loads kernels, so that no client waits for that."""

        def report(record: BatchRecord) -> None:
            beams = sum(job.beams for job in record.jobs)
            observer.batch_done(record.jobs[0].kind, record.waited_s, record.seconds, beams)

        self.batcher = MicroBatcher(
            self._run,
            self.options.batch_tokens,
            self.recommender.trie.depth - 1,
            self.options.batch_wait_ms / 1000,
            self.options.max_waiting,
            report,
        )
        decode_widths(self.recommender, [self.recommender.template.encode_prompt("a")], [1], [None])
        self.batcher.start()

    async def stop(self) -> None:
        if self.batcher is not None:
            await self.batcher.stop()

    @property
    def load(self) -> EngineLoad:
        return self.batcher.load if self.batcher is not None else EngineLoad(0, 0)

    @property
    def healthy(self) -> bool:
        return self.batcher is not None and self.batcher.alive

    async def recommend(
        self, prompt: Sequence[int], beam_width: int, item_filter: ItemFilter | None
    ) -> Ranking:
        assert self.batcher is not None, "start the engine first"
        payload = (prompt, beam_width, item_filter)
        return await self.batcher.submit(RECOMMEND, len(prompt), beam_width, payload)

    async def score(self, prompt: Sequence[int], codes_CL: np.ndarray) -> np.ndarray:
        assert self.batcher is not None, "start the engine first"
        return await self.batcher.submit(SCORE, len(prompt), len(codes_CL), (prompt, codes_CL))

    def _run(self, kind: str, payloads: list[Any]) -> list[Any]:
        """One batch, in the worker's thread."""
        if kind == SCORE:
            prompts, candidates = zip(*payloads, strict=True)
            return score_candidates(self.recommender.model, prompts, candidates, self.recommender.trie)
        prompts, widths, filters = zip(*payloads, strict=True)
        return decode_widths(self.recommender, prompts, widths, filters)
