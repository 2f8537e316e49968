"""What the routes ask of an engine: the torch engine is one, and vLLM can stand behind the same routes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serve.decoding.ranking import ItemFilter, Ranking


class EngineBusy(RuntimeError):
    """The engine's queue is full, or it is shutting down: the client should try again a little later."""


@dataclass(frozen=True)
class EngineLoad:
    """Requests an engine has: `waiting` for their turn, `running` now."""

    waiting: int
    running: int


class EngineObserver(Protocol):
    """Told what an engine does, for metrics; called on the event loop."""

    def batch_done(self, kind: str, waited_s: Sequence[float], seconds: float, beams: int) -> None:
        """A batch of requests of one kind ("recommend", "score") has run.

        Args:
            waited_s: per request, from its arrival to the start of the batch.
            beams: beams searched, or candidates scored.
        """
        ...


class Engine(Protocol):
    """Ranks and scores items behind prompts of token ids. All methods are called on one event loop.

    Cancelling a call frees its place: a request that has not begun is never run.
    """

    name: str

    async def start(self, observer: EngineObserver) -> None:
        """Get ready to answer; returns when a first request would not wait for anything."""
        ...

    async def stop(self) -> None:
        """Refuse new requests, finish those at hand, and free what was taken."""
        ...

    @property
    def load(self) -> EngineLoad: ...

    @property
    def healthy(self) -> bool:
        """Whether requests are answered."""
        ...

    async def recommend(
        self, prompt: Sequence[int], beam_width: int, item_filter: ItemFilter | None
    ) -> Ranking:
        """The list `serve.decoding.tree_beam.decode` gives for this prompt alone.

        Raises:
            EngineBusy: when there is no room.
        """
        ...

    async def score(self, prompt: Sequence[int], codes_CL: np.ndarray) -> np.ndarray:
        """Log-probs of given SIDs, token by token, as `serve.decoding.candidate_scores` gives them.

        Args:
            codes_CL: int32, -1 after the end of a short SID.

        Returns:
            float32 [C, L].

        Raises:
            EngineBusy: when there is no room.
        """
        ...
