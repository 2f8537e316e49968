"""What a server refuses and what it survives: keys, sizes, malformed bodies, clients that leave, signals."""

import asyncio
import json
import re
import signal
import socket
import time

import pytest

from tests.serve.http.server_process import KEY, serving

CHAT = {"model": "sidereal", "messages": [{"role": "user", "content": "tent"}]}
POSTS = ("/v1/recommendations", "/v1/score", "/v1/chat/completions", "/v1/completions")


def assert_refused(answer, status, param, words):
    """OpenAI's envelope with these contents."""
    got, body = answer
    assert got == status and set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert re.search(words, body["error"]["message"]), body
    assert body["error"]["param"] == param and "\n" not in body["error"]["message"]


def test_keys(served):
    import openai

    for key in (None, "x", "key-of-the-test", KEY + "x"):
        for path in POSTS:
            assert_refused(
                served.post(path, {"text": "tent"}, key), 401, None, "api_key: is missing or wrong"
            )
    with pytest.raises(openai.AuthenticationError, match="api_key: is missing or wrong"):
        served.client.with_options(api_key="wrong").models.list()
    assert served.post("/v1/recommendations", {"text": "tent"}, "another-key")[0] == 200


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"{", "body", "body: is no valid JSON"),
        (b"", "body", "body: is missing"),
        (b'{"text": "\xff"}', "body", "body: cannot be read"),
        (b"[" * 15_000, "body", "body: cannot be read"),
        (rb'{"text": "\ud800"}', "text", "text: holds half a character"),
        (rb'{"history": ["\ud800"]}', "history[0]", "holds half a character"),
        (rb'{"\ud800": 1}', "body", "body: Input should be a valid string"),
        (rb'{"text": "a", "filters": {"field": "brand", "eq": "\ud800"}}', "filters.eq", "is not a text"),
        (rb'{"text": "a", "filters": {"field": "brand", "\ud800": 1}}', r"filters.\ud800", "unknown key"),
        ([], "body", "body: .*dictionary"),
        ({}, "text", "text: nothing is asked"),
        ({"text": "  ", "history": []}, "text", "text: nothing is asked"),
        ({"text": "tent", "kk": 3}, "kk", "kk: is no field of this route"),
        ({"text": "tent", "k": 0}, "k", "k: .*greater than or equal to 1; got 0"),
        ({"text": "tent", "k": "5"}, "k", "k: .*valid integer; got '5'"),
        ({"text": "tent", "k": 101}, "k", "k: 101 is over this server's max_items of 100"),
        ({"text": "tent", "k": 9, "beam_width": 8}, "beam_width", "beam_width: 8 cannot find 9 items"),
        ({"text": "tent", "beam_width": 10**9}, "beam_width", "is over this server's max_beam_width of 256"),
        ({"text": "x" * 4001}, "text", "text: 4001 is over this server's max_text_chars of 4000"),
        ({"history": ["P001"] * 41}, "history", "history: 41 is over this server's max_history of 40"),
        ({"history": ["P001", "no. such"]}, "history[1]", r"history\[1\]: 'no. such' is neither an item_id"),
        ({"history": [None]}, "history[0]", r"history\[0\]: .*; got None"),
        ({"text": "tent", "allow_items": ["?"]}, "allow_items[0]", "is neither an item_id nor a title"),
        (
            {"text": "tent", "filters": {"field": "colour", "eq": "red"}},
            "filters.field",
            "'colour' is no field",
        ),
        ({"text": "tent", "filters": {"field": "price", "eq": "red"}}, "filters.eq", "'red' is not a number"),
        ({"text": "tent", "filters": {"or": []}}, "filters.or", "is no list of conditions"),
        (b'{"text": "tent", "filters": {"field": "price", "min": NaN}}', "filters.min", "is not a number"),
    ],
)
def test_bad_recommendation_requests(served, body, param, words):
    assert_refused(served.post("/v1/recommendations", body), 400, param, words)


@pytest.mark.parametrize(
    ("change", "status", "param", "words"),
    [
        ({"model": "gpt"}, 404, "model", "model: 'gpt' is not served here; ask for 'sidereal'"),
        ({"temperature": 0.7}, 400, "temperature", "temperature: 0.7 does not go with a beam search"),
        ({"stop": ["x"]}, 400, "stop", "stop: "),
        ({"top_logprobs": 3}, 400, "top_logprobs", "top_logprobs: 3"),
        ({"max_tokens": 2}, 400, "max_tokens", "max_tokens: 2 cannot hold an item; give at least 3"),
        ({"n": 101}, 400, "n", "n: 101 is over"),
        ({"messages": []}, 400, "messages", "messages: "),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "messages", "messages: nothing is asked"),
        (
            {"messages": [{"role": "user", "content": "x" * 1500}] * 3},
            400,
            "messages",
            "messages: 4500 is over this server's max_text_chars",
        ),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages[0].role", r"messages\[0\].role: "),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "messages[0]", "where 'user' is due"),
        ({"messages": [{"role": "system", "content": "Be kind."}]}, 400, "messages[0]", "leave it out"),
        (
            {"messages": [{"role": role, "content": "no SID"} for role in ("user", "assistant", "user")]},
            400,
            "messages[1]",
            "'no SID' is no SID here",
        ),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "goes with stream"),
        ({"functions": []}, 400, "functions", "functions: is no field of this route"),
    ],
)
def test_bad_chat_requests(served, change, status, param, words):
    assert_refused(served.post("/v1/chat/completions", {**CHAT, **change}), status, param, words)


def test_other_bad_requests(served):
    import httpx

    def completion(prompt, **more):
        return served.post("/v1/completions", {"model": "sidereal", "prompt": prompt, **more})

    assert_refused(completion([]), 400, "prompt", "token ids must be within")
    assert_refused(completion([10**6]), 400, "prompt", "token ids must be within")
    assert_refused(completion([5] * 257), 400, "prompt", "257 tokens are over the model's")
    assert_refused(completion([5], history=["P001"]), 400, "history", "history: goes with a prompt in words")
    candidates = ["P001"] * 257
    answer = served.post("/v1/score", {"text": "tent", "candidates": candidates})
    assert_refused(answer, 400, "candidates", "candidates: 257 is over")
    assert_refused(served.post("/v1/score", {"text": "tent"}), 400, "candidates", "candidates: is missing")
    assert_refused(served.post("/v2/x", {}), 404, None, "POST /v2/x: there is no such route")
    headers = {"Authorization": f"Bearer {KEY}"}
    got = httpx.get(served.url + "/v1/score", headers=headers)
    assert_refused((got.status_code, got.json()), 405, None, "the route has other methods")
    text = {**headers, "Content-Type": "text/plain"}
    got = httpx.post(served.url + "/v1/score", headers=text, content=b"tent")
    assert_refused((got.status_code, got.json()), 400, "body", "body")


def raw(served, lines, body=b"", wait=30):
    """Everything the server sends to bytes of our own making."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=wait) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received.decode()


def head(path, *more):
    return [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", "Connection: close", *more]


def test_oversized_and_slow_bodies(served):
    path = "/v1/recommendations"
    answer = raw(served, head(path, "Content-Length: 20001"))
    assert answer.startswith("HTTP/1.1 413") and "body: is over 20000 bytes" in answer
    chunk = b"4e20\r\n" + b" " * 20_000 + b"\r\n"
    answer = raw(served, head(path, "Transfer-Encoding: chunked"), chunk * 3 + b"0\r\n\r\n")
    assert answer.startswith("HTTP/1.1 413")
    started = time.monotonic()
    answer = raw(served, head(path, "Content-Length: 20"), b'{"text"')  # and nothing more
    assert answer.startswith("HTTP/1.1 408") and time.monotonic() - started < 20
    assert raw(served, head(path, "Content-Length: -3")).startswith("HTTP/1.1 400")
    assert raw(served, ["nonsense"]).startswith("HTTP/1.1 400")
    assert served.post(path, {"text": "tent"})[0] == 200


def test_errors_keep_their_labels_few(served):
    for number in range(5):
        served.post(f"/made/up/{number}", {})
    import httpx

    text = httpx.get(served.url + "/metrics").text
    assert "/made/up" not in text and 'route="other"' in text


@pytest.fixture(scope="module")
def narrow(shop_dir, tmp_path_factory):
    """A server of its own with little room, that waits a second before it runs requests one by one."""
    path, recommender = shop_dir
    log = tmp_path_factory.mktemp("narrow") / "log"
    engine = {"batch_tokens": 1, "max_waiting": 12, "batch_wait_ms": 1000.0}
    flags = ("--torch_args", json.dumps(engine), "--limits", json.dumps({"max_concurrent": 30}))
    with serving(path, recommender, log, *flags) as running:
        yield running


ASKED = json.dumps({"text": "tent", "k": 1, "beam_width": 256}).encode()


def open_request(served):
    """A connection on which a request was sent and no answer read."""
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=30)
    lines = head("/v1/recommendations", f"Content-Length: {len(ASKED)}", "Content-Type: application/json")
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + ASKED)
    return connection


def test_clients_that_leave_free_their_places(narrow):
    batches = narrow.metric("sidereal_batch_size_count")
    connections = [open_request(narrow) for _ in range(12)]
    for connection in connections:
        connection.close()
    ends = time.monotonic() + 30
    while narrow.metric("sidereal_requests_total") < 12 or narrow.metric("sidereal_open_requests"):
        assert time.monotonic() < ends
    assert narrow.metric("sidereal_waiting_requests") == 0
    assert narrow.metric("sidereal_batch_size_count") - batches < 12  # those that waited were never run
    assert narrow.post("/v1/recommendations", {"text": "tent"})[0] == 200


def test_one_request_too_many_is_told_to_come_back(narrow):
    import httpx

    async def flood():
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        kept = {"headers": headers, "timeout": 60, "limits": httpx.Limits(max_connections=60)}
        async with httpx.AsyncClient(base_url=narrow.url, **kept) as client:
            return await asyncio.gather(
                *(client.post("/v1/recommendations", content=ASKED) for _ in range(60))
            )

    answers = asyncio.run(flood())
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429} and statuses.count(200) >= 12
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["Retry-After"] == "1"
    assert_refused((429, refused.json()), 429, None, "try again in a moment")
    lists = [answer.json()["data"] for answer in answers if answer.status_code == 200]
    assert all(one == lists[0] for one in lists)
    assert narrow.post("/v1/recommendations", {"text": "tent"})[0] == 200


def test_running_requests_end_after_sigterm(narrow):
    """Last of this file: the server is gone afterwards."""
    connections = [open_request(narrow) for _ in range(10)]
    while narrow.metric("sidereal_waiting_requests") < 10:
        time.sleep(0.01)
    narrow.process.send_signal(signal.SIGTERM)
    for connection in connections:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # noqa: B023
        assert answer.startswith(b"HTTP/1.1 200") and b'"rank":1' in answer
    assert narrow.process.wait(30) == 0
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", narrow.port), timeout=5)
