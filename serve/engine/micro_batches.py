"""A queue that runs what has arrived together: one thread works, the event loop collects.

While a batch runs, arrivals pile up and become the next one; only an idle engine waits, `wait_s` at most, for
company. The oldest request is always in the next batch, so none is starved by others that fit better.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from serve.engine.protocol import EngineBusy, EngineLoad


@dataclass(eq=False)
class Job:
    """One request: `tokens` of its prompt, `beams` behind it. Different kinds never share a batch."""

    kind: str
    tokens: int
    beams: int
    payload: Any
    done: asyncio.Future
    arrived: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class BatchRecord:
    """What was run, for metrics: `waited_s` per job from arrival to start, `seconds` of the batch."""

    jobs: list[Job]
    waited_s: list[float]
    seconds: float


class MicroBatcher:
    """Runs jobs in batches.

    Args:
        run: (kind, payloads) -> one result per payload; called in a thread of the batcher's own, one batch
            at a time.
        batch_tokens: most tokens of a batch; a larger job runs alone. A batch is padded to its longest prompt
            and its most beams, and costs that for every job.
        beam_tokens: tokens of one beam.
        wait_s: how long an idle batcher waits for others after an arrival.
        max_waiting: jobs that may wait; one more is refused.
        on_batch: called on the event loop after each batch.
    """

    def __init__(
        self,
        run: Callable[[str, list[Any]], Sequence[Any]],
        batch_tokens: int,
        beam_tokens: int,
        wait_s: float,
        max_waiting: int,
        on_batch: Callable[[BatchRecord], None],
    ) -> None:
        self.run = run
        self.batch_tokens, self.beam_tokens = batch_tokens, beam_tokens
        self.wait_s, self.max_waiting = wait_s, max_waiting
        self.on_batch = on_batch
        self.waiting: list[Job] = []
        self.running = 0
        self.stopping = False
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._worker: asyncio.Task | None = None

    def start(self) -> None:
        self._worker = asyncio.create_task(self._work())

    @property
    def alive(self) -> bool:
        return self._worker is not None and not self._worker.done() and not self.stopping

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(len(self.waiting), self.running)

    async def submit(self, kind: str, tokens: int, beams: int, payload: Any) -> Any:
        """The job's result. A caller that is cancelled takes its job out of the queue.

        Raises:
            EngineBusy: when the queue is full or the batcher is being stopped.
        """
        if self.stopping:
            raise EngineBusy("the server is shutting down; try again in a moment")
        if len(self.waiting) >= self.max_waiting:
            raise EngineBusy(
                f"{len(self.waiting)} requests are waiting, the most this server lets wait; "
                "try again in a moment"
            )
        job = Job(kind, tokens, beams, payload, asyncio.get_running_loop().create_future())
        self.waiting.append(job)
        self._arrival.set()
        try:
            return await job.done
        finally:
            if job in self.waiting:  # cancelled before its batch began
                self.waiting.remove(job)

    def _take(self) -> list[Job]:
        """The oldest job, and those after it of its kind that fit beside it, in order of arrival."""
        batch: list[Job] = []
        left: list[Job] = []
        tokens = beams = 0
        for job in self.waiting:
            if job.done.done():  # cancelled just now
                continue
            padded = max(tokens, job.tokens), max(beams, job.beams)
            cost = (len(batch) + 1) * (padded[0] + padded[1] * self.beam_tokens)
            if not batch or (job.kind == batch[0].kind and cost <= self.batch_tokens):
                batch.append(job)
                tokens, beams = padded
            else:
                left.append(job)
        self.waiting = left
        return batch

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self.waiting:
                if self.stopping:
                    return
                self._arrival.clear()
                await self._arrival.wait()
                if self.waiting and not self.stopping:
                    await asyncio.sleep(self.wait_s)
            batch = self._take()
            if not batch:
                continue
            started = time.monotonic()
            waited = [started - job.arrived for job in batch]
            self.running = len(batch)
            payloads = [job.payload for job in batch]
            try:
                results = await loop.run_in_executor(self._thread, self.run, batch[0].kind, payloads)
            except Exception as error:  # a border: these requests fail, the engine goes on with the next
                for job in batch:
                    if not job.done.done():
                        job.done.set_exception(error)
            else:
                for job, result in zip(batch, results, strict=True):
                    if not job.done.done():
                        job.done.set_result(result)
                self.on_batch(BatchRecord(batch, waited, time.monotonic() - started))
            finally:
                self.running = 0

    async def stop(self) -> None:
        """Refuse what comes, run what waits, end the thread."""
        self.stopping = True
        self._arrival.set()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()
