"""The queue: what shares a batch, what is refused, and what leaves it."""

import asyncio
import threading

import pytest

from serve.engine.micro_batches import MicroBatcher
from serve.engine.protocol import EngineBusy


class Recorder:
    """A `run` that doubles its payloads, remembers batches, and waits while `gate` is closed."""

    def __init__(self):
        self.batches, self.gate = [], threading.Event()
        self.gate.set()

    def __call__(self, kind, payloads):
        self.batches.append((kind, list(payloads)))
        assert self.gate.wait(20)
        if "bad" in payloads:
            raise ValueError("a bad payload")
        return [payload * 2 for payload in payloads]


def run(scenario, batch_tokens=100, wait_s=0.01, max_waiting=50):
    """A scenario(batcher, recorder) with a batcher that is stopped after it; what it returns."""

    async def whole():
        recorder, records = Recorder(), []
        batcher = MicroBatcher(recorder, batch_tokens, 2, wait_s, max_waiting, records.append)
        batcher.start()
        try:
            return await scenario(batcher, recorder, records)
        finally:
            recorder.gate.set()
            await batcher.stop()

    return asyncio.run(whole())


async def behind_a_running_batch(batcher, recorder, *submitted):
    """Tasks that all wait while a first batch runs."""
    recorder.gate.clear()
    first = asyncio.create_task(batcher.submit("a", 1, 1, "first"))
    while not recorder.batches:
        await asyncio.sleep(0.001)
    tasks = [asyncio.create_task(batcher.submit(*one)) for one in submitted]
    await asyncio.sleep(0)
    return first, tasks


def test_arrivals_share_batches_within_their_padded_tokens():
    async def scenario(batcher, recorder, records):
        jobs = [
            ("a", 10, 5, 1),
            ("a", 30, 5, 2),
            ("b", 1, 1, 3),
            ("a", 10, 10, 4),
            ("a", 5, 5, 5),
            ("b", 9, 9, 6),
        ]
        first, tasks = await behind_a_running_batch(batcher, recorder, *jobs)
        recorder.gate.set()
        assert await asyncio.gather(*tasks) == [2, 4, 6, 8, 10, 12]
        # 1 and 2 cost 2 x (30 + 5 x 2) = 80; with 4 it would be 3 x (30 + 20) and with 5 still 3 x 40.
        assert recorder.batches[1:] == [("a", [1, 2]), ("b", [3, 6]), ("a", [4, 5])]
        assert [len(record.waited_s) for record in records] == [1, 2, 2, 2]

    run(scenario)


def test_a_job_larger_than_any_batch_runs_alone():
    async def scenario(batcher, recorder, records):
        first, tasks = await behind_a_running_batch(batcher, recorder, ("a", 999, 1, 1), ("a", 1, 1, 2))
        recorder.gate.set()
        assert await asyncio.gather(*tasks) == [2, 4]
        assert recorder.batches[1:] == [("a", [1]), ("a", [2])]

    run(scenario)


def test_an_idle_batcher_waits_for_company():
    async def scenario(batcher, recorder, records):
        tasks = [asyncio.create_task(batcher.submit("a", 1, 1, 1))]
        await asyncio.sleep(0.02)
        tasks.append(asyncio.create_task(batcher.submit("a", 1, 1, 2)))
        assert await asyncio.gather(*tasks) == [2, 4]
        assert recorder.batches == [("a", [1, 2])]

    run(scenario, wait_s=0.2)


def test_cancelled_jobs_are_never_run():
    async def scenario(batcher, recorder, records):
        first, tasks = await behind_a_running_batch(batcher, recorder, *[("a", 1, 1, n) for n in range(4)])
        assert (batcher.load.waiting, batcher.load.running) == (4, 1)
        tasks[1].cancel()
        first.cancel()  # runs already: its result is dropped
        await asyncio.sleep(0.01)
        assert batcher.load.waiting == 3
        recorder.gate.set()
        assert await asyncio.gather(tasks[0], tasks[2], tasks[3]) == [0, 4, 6]
        assert recorder.batches[1:] == [("a", [0, 2, 3])]

    run(scenario)


def test_a_full_queue_refuses():
    async def scenario(batcher, recorder, records):
        first, tasks = await behind_a_running_batch(batcher, recorder, *[("a", 1, 1, n) for n in range(3)])
        with pytest.raises(EngineBusy, match="3 requests are waiting"):
            await batcher.submit("a", 1, 1, 9)
        recorder.gate.set()
        await asyncio.gather(first, *tasks)
        assert await batcher.submit("a", 1, 1, 9) == 18

    run(scenario, max_waiting=3)


def test_a_batch_that_fails_ends_its_own_requests_alone():
    async def scenario(batcher, recorder, records):
        with pytest.raises(ValueError, match="a bad payload"):
            await batcher.submit("a", 1, 1, "bad")
        assert await batcher.submit("a", 1, 1, 4) == 8 and batcher.alive

    run(scenario)


def test_stopping_runs_what_waits_and_refuses_what_comes():
    async def scenario(batcher, recorder, records):
        first, tasks = await behind_a_running_batch(batcher, recorder, ("a", 1, 1, 1), ("b", 1, 1, 2))
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0)
        with pytest.raises(EngineBusy, match="shutting down"):
            await batcher.submit("a", 1, 1, 3)
        assert not batcher.alive
        recorder.gate.set()
        await stopping
        assert await asyncio.gather(*tasks) == [2, 4]

    run(scenario)
