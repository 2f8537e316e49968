"""Any engine of the protocol stands behind the routes; what it does wrong reaches no client."""

import asyncio
import logging

import httpx
import numpy as np
import pytest

from serve.decoding.ranking import Ranking
from serve.engine.protocol import EngineBusy, EngineLoad
from serve.http.app import make_app
from serve.http.limits import HttpLimits
from tests.sft.shop import make_shop_index, make_template


class StandIn:
    """An engine that answers with the given items, or raises what it is given."""

    name, load, healthy = "stand_in", EngineLoad(3, 2), True

    def __init__(self, answer):
        self.answer, self.asked, self.stopped = answer, [], False

    async def start(self, observer):
        self.observer = observer

    async def stop(self):
        self.stopped = True

    async def recommend(self, prompt, beam_width, item_filter):
        self.asked.append((list(prompt), beam_width, item_filter))
        if isinstance(self.answer, Exception):
            raise self.answer
        items_K = np.array(self.answer)
        scores_K = -np.arange(len(items_K), dtype=np.float32)
        self.observer.batch_done("recommend", [0.001], 0.01, beam_width)
        return Ranking(items_K, scores_K, np.zeros((0, 3)), np.zeros(0), np.zeros(0, dtype=bool))

    async def score(self, prompt, codes_CL):
        return np.full(codes_CL.shape, -0.5, dtype=np.float32)


@pytest.fixture(scope="module")
def template():
    return make_template("plain", make_shop_index())


def ask(engine, template, *bodies, path="/v1/recommendations", limits=None):
    """Answers to bodies, one after the other, and the metrics after them."""
    app = make_app("mine", template, engine, limits or HttpLimits(), [])

    async def whole():
        transport = httpx.ASGITransport(app=app)
        async with (
            app.app.router.lifespan_context(app.app),
            httpx.AsyncClient(transport=transport, base_url="http://server") as client,
        ):
            answers = [await client.post(path, json=body) for body in bodies]
            return answers, (await client.get("/metrics")).text

    return asyncio.run(whole())


def test_an_engine_gets_prompts_of_training_and_filters(template):
    engine = StandIn([4, 7, 9])
    body = {"history": ["P003"], "text": "a tent", "k": 2, "beam_width": 6, "exclude_items": ["P011"]}
    (answer,), metrics = ask(engine, template, body)
    assert [item["item_id"] for item in answer.json()["data"]] == ["P004", "P007"]
    ((prompt, beam_width, item_filter),) = engine.asked
    assert prompt == template.prompt("itemsearch", [3], 1, query="a tent") and beam_width == 6
    assert item_filter.exclude.tolist() == [3, 11] and item_filter.allow is None
    assert engine.stopped
    for line in (
        "sidereal_beams_total 6.0",
        "sidereal_waiting_requests 3.0",
        "sidereal_running_requests 2.0",
    ):
        assert line in metrics


def test_items_a_request_may_not_get_are_withheld_and_counted(template):
    engine = StandIn([5, 4, 3, 7])  # P005 is off the shelf, P003 is excluded
    (answer,), metrics = ask(engine, template, {"text": "a tent", "exclude_items": ["P003"]})
    assert [(item["item_id"], item["rank"]) for item in answer.json()["data"]] == [("P004", 1), ("P007", 2)]
    assert "sidereal_invalid_items_total 2.0" in metrics


def test_what_breaks_inside_stands_in_the_log_alone(template, caplog):
    with caplog.at_level(logging.ERROR):
        (answer,), metrics = ask(StandIn(RuntimeError("secret of the house")), template, {"text": "a tent"})
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text and "secret of the house" in caplog.text
    assert 'sidereal_requests_total{route="/v1/recommendations",status="500"} 1.0' in metrics


def test_a_busy_engine_is_429(template):
    (answer,), _ = ask(StandIn(EngineBusy("full; try again in a moment")), template, {"text": "a tent"})
    assert answer.status_code == 429 and answer.headers["Retry-After"] == "1"
    assert answer.json()["error"] == {
        "message": "full; try again in a moment",
        "type": "rate_limit_error",
        "param": None,
        "code": "engine_busy",
    }


def test_an_engine_that_is_down_is_503(template):
    engine = StandIn([])
    engine.healthy = False
    app = make_app("mine", template, engine, HttpLimits(), [])

    async def whole():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://server"
        ) as client:
            return await client.get("/health")

    assert asyncio.run(whole()).status_code == 503


def test_choices_are_sids_with_all_their_items(template):
    """Two items of one SID are one choice."""
    index = make_shop_index()
    codes = index.semantic_ids.codes_NL
    codes[8] = codes[4]
    twice = make_template("plain", index)
    body = {"model": "mine", "prompt": "a tent", "n": 2}
    (answer,), _ = ask(StandIn([4, 8, 7, 9]), twice, body, path="/v1/completions")
    first, second = answer.json()["choices"]
    assert first["recommendation"]["item_id"] == "P004" and first["recommendation"]["same_sid"] == ["P008"]
    assert second["recommendation"]["item_id"] == "P007" and second["recommendation"]["rank"] == 2
    assert answer.json()["usage"]["completion_tokens"] == 6


def test_scores_are_sums_over_sid_tokens(template):
    body = {"text": "a tent", "candidates": ["P001", "P002", "P001"]}
    (answer,), _ = ask(StandIn([]), template, body, path="/v1/score")
    assert [item["score"] for item in answer.json()["data"]] == [-1.5] * 3
