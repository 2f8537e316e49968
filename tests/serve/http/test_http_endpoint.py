"""The torch engine's server, asked by a real OpenAI client: exact lists and scores, words of training,
filters, titles, streams.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serve.chat import main as chat
from serve.decoding.ranking import ItemFilter
from serve.decoding.tree_beam import decode
from serve.engine.recommendation import recommendations
from serve.engine.request_prompt import request_ids
from serve.openapi import main as write_schema


def expected(served, prompt, beams, item_filter=None):
    """The tree beam's list for one prompt alone."""
    recommender = served.recommender
    (ranking,) = decode(recommender.model, [prompt], recommender.trie, beams, [item_filter])
    return list(recommendations(recommender.index, ranking))


def assert_same(found, wanted):
    """Same items in the same order, scores equal to fp32 rounding."""
    assert [item["item_id"] for item in found] == [item.item_id for item in wanted]
    assert [item["sid"] for item in found] == [item.sid for item in wanted]
    assert np.allclose([item["score"] for item in found], [item.score for item in wanted], atol=1e-4, rtol=0)


def ids_of(served, items):
    return [served.recommender.index.catalog.item_ids[item] for item in items]


def test_recommendations_are_the_tree_beams(served):
    template = served.recommender.template
    history = [3, 8, 21]
    status, answer = served.post("/v1/recommendations", {"history": ids_of(served, history), "k": 7})
    assert status == 200
    seen = ItemFilter(exclude=np.array(history))
    assert_same(answer["data"], expected(served, template.prompt("seqrec", history), 20, seen)[:7])
    assert [item["rank"] for item in answer["data"]] == list(range(1, 8))
    assert answer["usage"]["prompt_tokens"] == len(template.prompt("seqrec", history))
    assert answer["candidates"] == 120 - 2 - 3  # two items are off the shelf, three in the history

    asked = {"text": "a red tent", "k": 5, "beam_width": 9}
    _, answer = served.post("/v1/recommendations", asked)
    assert_same(answer["data"], expected(served, template.prompt("itemsearch", query="a red tent"), 9)[:5])

    asked = {"history": ids_of(served, [3, 8]), "text": "a red tent", "exclude_history": False}
    _, answer = served.post("/v1/recommendations", asked)
    prompt = template.prompt("itemsearch", [3, 8], 1, query="a red tent")
    assert_same(answer["data"], expected(served, prompt, 20)[:10])


def test_chat_choices_are_the_beams_in_rank_order(served):
    answer = served.client.chat.completions.create(
        model="sidereal",
        messages=[{"role": "user", "content": "a {blue} lamp"}],
        n=8,
        logprobs=True,
        temperature=0,
        extra_body={"beam_width": 12},
    )
    template = served.recommender.template
    wanted = expected(served, template.prompt("itemsearch", query="a {blue} lamp"), 12)
    assert [choice.message.content for choice in answer.choices] == [item.sid for item in wanted[:8]]
    assert_same([choice.recommendation for choice in answer.choices], wanted[:8])
    for place, choice in enumerate(answer.choices):
        assert choice.index == place and choice.recommendation["rank"] == place + 1
        assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
        total = sum(token.logprob for token in choice.logprobs.content)
        assert total == pytest.approx(choice.recommendation["score"], abs=1e-4)
    assert answer.usage.completion_tokens == 24


def test_a_conversation_is_a_prompt_of_training(served):
    recommender = served.recommender
    shown = recommender.index.semantic_ids.spell(7)
    messages = [
        {"role": "user", "content": "a tent"},
        {"role": "assistant", "content": shown},
        {"role": "user", "content": [{"type": "text", "text": "cheaper"}]},
    ]
    answer = served.client.chat.completions.create(
        model="sidereal", messages=messages, n=3, extra_body={"history": ["P003"]}
    )
    prompt = request_ids(recommender.template, "cheaper", [3], [("a tent", 7)])
    seen = ItemFilter(exclude=np.array([3]))
    assert_same([choice.recommendation for choice in answer.choices], expected(served, prompt, 20, seen)[:3])


def test_completions_take_words_and_token_ids(served):
    template = served.recommender.template
    prompt = template.prompt("itemsearch", query="white shoe")
    wanted = expected(served, prompt, 20)[:4]
    for given in ("white shoe", prompt):
        answer = served.client.completions.create(model="sidereal", prompt=given, n=4)
        assert [choice.text for choice in answer.choices] == [item.sid for item in wanted]
        assert_same([choice.recommendation for choice in answer.choices], wanted)


def test_streams_hold_the_same_as_answers(served):
    asked = {"model": "sidereal", "messages": [{"role": "user", "content": "a green tent"}], "n": 3}
    whole = served.client.chat.completions.create(**asked)
    contents, finished, usage = {}, [], None
    for chunk in served.client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            contents[choice.index] = contents.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                finished.append((choice.index, choice.finish_reason))
            if choice.delta.content:
                assert choice.recommendation["sid"] == choice.delta.content
    assert contents == {choice.index: choice.message.content for choice in whole.choices}
    assert finished == [(0, "stop"), (1, "stop"), (2, "stop")]
    assert usage == whole.usage

    chunks = list(served.client.completions.create(model="sidereal", prompt="tent", n=2, stream=True))
    plain = served.client.completions.create(model="sidereal", prompt="tent", n=2)
    texts = [choice.text for chunk in chunks for choice in chunk.choices]
    assert texts == [choice.text for choice in plain.choices]


def test_scores_are_exact_and_those_of_the_beam(served):
    recommender = served.recommender
    prompt = recommender.template.prompt("seqrec", [3, 8])
    wanted = {item.item_id: item.score for item in expected(served, prompt, 200)}
    candidates = list(wanted)[:40] + ["P005"]  # P005 is off the shelf: no beam finds it, but it has an SID
    status, answer = served.post("/v1/score", {"history": ["P003", "P008"], "candidates": candidates})
    assert status == 200 and [item["item_id"] for item in answer["data"]] == candidates
    for item in answer["data"][:-1]:
        assert item["score"] == pytest.approx(wanted[item["item_id"]], abs=1e-4)
    assert answer["data"][-1]["score"] < 0


def test_filters_hold_exactly(served):
    catalog = served.recommender.index.catalog
    filters = {
        "and": [
            {"field": "category", "in": ["TENT", "lamp"]},
            {"field": "price", "min": 20, "max": 60.5},
            {"not": {"field": "brand", "eq": "Brand2"}},
        ]
    }
    rows = [catalog.row(item) for item in range(120)]
    fits = np.array(
        [
            bool({"tent", "lamp"} & set(row["categories"]))
            and 20 <= row["price"] <= 60.5
            and row["brand"] != "Brand2"
            for row in rows
        ]
    )
    history = [3, 4, 21]
    allow = np.setdiff1d(np.flatnonzero(fits & served.recommender.index.live_N), history)
    asked = {"history": ids_of(served, history), "filters": filters, "k": 100, "beam_width": 150}
    status, answer = served.post("/v1/recommendations", asked)
    prompt = served.recommender.template.prompt("seqrec", history)
    assert status == 200 and answer["candidates"] == len(answer["data"]) == len(allow) > 5
    assert_same(answer["data"], expected(served, prompt, 150, ItemFilter(allow=allow)))

    body = {"filters": {"field": "brand", "eq": "Nobody's"}, "model": "sidereal", "prompt": "tent", "n": 2}
    status, answer = served.post("/v1/completions", body)
    assert (status, answer["choices"], answer["candidates"]) == (200, [], 0)

    asked = {"text": "tent", "allow_items": ["P001", "P002", "P005"], "exclude_items": ["P002"]}
    _, answer = served.post("/v1/recommendations", asked)
    assert [item["item_id"] for item in answer["data"]] == ["P001"]


def test_titles_stand_for_items(served):
    catalog = served.recommender.index.catalog
    _, by_title = served.post("/v1/recommendations", {"history": [catalog.titles[8].upper(), "P003"]})
    _, by_id = served.post("/v1/recommendations", {"history": ["P008", "P003"]})
    assert by_title["data"] == by_id["data"]

    text = f"I have the {catalog.titles[9]} and the {catalog.titles[13].upper()}! A warmer one?"
    _, answer = served.post("/v1/recommendations", {"text": text})
    assert [(entry["item_id"], entry["title"]) for entry in answer["resolved"]] == [
        ("P009", catalog.titles[9]),
        ("P013", catalog.titles[13]),
    ]
    prompt = request_ids(served.recommender.template, text, [9, 13])
    assert_same(answer["data"], expected(served, prompt, 20)[:10])
    _, answer = served.post("/v1/recommendations", {"text": text, "resolve_titles": False})
    assert answer["resolved"] == []
    prompt = request_ids(served.recommender.template, text, [])
    assert_same(answer["data"], expected(served, prompt, 20)[:10])


def test_concurrent_requests_each_get_their_own_answer(served):
    """Histories, words, widths and filters of all kinds at once: no answer is another request's."""
    recommender = served.recommender
    rng = np.random.default_rng(5)
    cases = []
    for number in range(96):
        history = rng.choice(120, rng.integers(0, 15), replace=False).tolist()
        text = f"thing {number} like {number * 7}" if number % 3 or not history else ""
        width, brand = int(rng.integers(5, 40)), f"Brand{number % 5}"
        cases.append((history, text, width, brand if number % 2 else None))

    def ask(case):
        history, text, width, brand = case
        body = {"history": ids_of(served, history), "text": text, "k": 5, "beam_width": width}
        if brand:
            body["filters"] = {"field": "brand", "eq": brand}
        return served.post("/v1/recommendations", body)

    batches = served.metric("sidereal_batch_size_count")
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, cases))
    assert served.metric("sidereal_batch_size_count") - batches < 96  # some shared a batch
    brands = recommender.index.catalog.table.column("brand").to_pylist()
    for (history, text, width, brand), (status, answer) in zip(cases, answers, strict=True):
        assert status == 200
        allow = [item for item in range(120) if brands[item] == brand and item not in history]
        seen = ItemFilter(exclude=np.array(history, dtype=np.int64))
        own = ItemFilter(allow=np.array(allow)) if brand else seen
        prompt = request_ids(recommender.template, text, history)
        assert_same(answer["data"], expected(served, prompt, width, own)[:5])
    assert served.metric("sidereal_invalid_items_total") == 0


def test_models_health_and_schema(served, tmp_path):
    (card,) = served.client.models.list().data
    assert (card.id, card.owned_by, card.engine, card.num_items) == ("sidereal", "sidereal", "torch", 118)
    assert card.fields == ["category", "brand", "price", "domain"]
    assert served.client.models.retrieve("sidereal").id == "sidereal"
    import httpx

    assert httpx.get(served.url + "/health").json() == {"status": "ok"}
    schema = httpx.get(served.url + "/openapi.json").json()
    assert {"/v1/recommendations", "/v1/score", "/v1/chat/completions"} <= set(schema["paths"])
    write_schema(["--output", str(tmp_path / "schema.json")])
    assert json.loads((tmp_path / "schema.json").read_text()) == schema
    assert "HTTPValidationError" not in schema["components"]["schemas"]  # FastAPI's own shape of an error


def test_serve_chat_speaks_to_it(served, capsys):
    flags = [
        "--model",
        str(served.model_dir),
        "--base_url",
        f"{served.url}/v1",
        "--api_key",
        served.client.api_key,
    ]
    chat([*flags, "a red tent", "--n", "4"])
    lines = capsys.readouterr().out.splitlines()
    prompt = served.recommender.template.prompt("itemsearch", query="a red tent")
    wanted = expected(served, prompt, 20)[:4]
    assert [line.split()[0] for line in lines] == ["rank", "1", "2", "3", "4"]
    for line, item in zip(lines[1:], wanted, strict=True):
        assert item.item_id in line.split() and line.endswith(f"{item.score:.3f}")
    chat([*flags, "--history", "P003", "P008", "--n", "1"])
    seen = ItemFilter(exclude=np.array([3, 8]))
    (first,) = expected(served, served.recommender.template.prompt("seqrec", [3, 8]), 20, seen)[:1]
    assert first.item_id in capsys.readouterr().out
