"""`sft.generate_intents` against a real loopback server that speaks /v1/chat/completions."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from prompts.intents import Intents
from sft import generate_intents
from sft.endpoint_intents.answer_log import AnswerLog
from sft.endpoint_intents.answers import usable_texts
from sid_builder.artifact import open_artifact
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex
from tests.sft.builders import write_sids

ROOT = Path(__file__).parents[2]


class ChatServer(ThreadingHTTPServer):
    """Answers by a function of the question's text; remembers every request body."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.answer, self.bodies, self.lock = answer, [], threading.Lock()
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that was killed is no error of the server."""

    @property
    def asked(self):
        return [body["messages"][-1]["content"] for body in self.bodies]


class ChatHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append({**body, "path": self.path, "key": self.headers["Authorization"]})
            number = len(self.server.bodies)
        status, reply = self.server.answer(body["messages"][-1]["content"], number)
        if status == 200 and not isinstance(reply, bytes):
            content, finish = reply if isinstance(reply, tuple) else (reply, "stop")
            choice = {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": content},
            }
            reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        payload = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(reply, bytes) else "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.send_header("Retry-After-Ms", "5")
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(answer):
        servers.append(ChatServer(answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def texts(*values):
    return json.dumps({"texts": values})


def three_requests(question, number):
    return 200, texts(f"first {number} wish", f"second {number} wish", f"third {number} wish")


ROWS = [
    {
        "item_id": f"P{n}",
        "title": f"Aurora light tent number {n}",
        "brand": "Aurora",
        "price": 10.0 + n,
        "description": "dry at night",
    }
    for n in range(12)
]


def make_sids(path, last_items=(10, 11)):
    """Two users; `last_items` are their test targets, the items before those their valid targets."""
    codes = np.stack([np.arange(12) // 4, np.arange(12) % 4], axis=1).astype(np.int32)
    index = SidIndex(Catalog.from_rows(ROWS), SemanticIds(codes, (4, 4)), np.arange(12, dtype=np.int64))
    sequences = [
        np.array([0, 1, 2, 3 + last_items[1] % 2, last_items[0]]),
        np.array([5, 6, 9, last_items[1]]),
    ]
    return write_sids(path, index, Interactions.leave_one_out(["ann", "bob"], sequences))


@pytest.fixture(scope="module")
def sids(tmp_path_factory):
    return make_sids(tmp_path_factory.mktemp("generate") / "sids")


def generate(sids, server_or_url, output_dir, *flags):
    url = getattr(server_or_url, "base_url", server_or_url)
    argv = ["--sid_dir", str(sids), "--base_url", url, "--model", "writer", "--output_dir", str(output_dir)]
    generate_intents.main([*argv, *map(str, flags)])


def load(output_dir, sids):
    return list(Intents.load(output_dir, SidIndex.load(sids / "sid_index").catalog))


def test_all_kinds_become_an_artefact_of_intents(sids, serve, tmp_path, monkeypatch):
    monkeypatch.setenv("WRITER_KEY", "s3cret")

    def answer(question, number):
        if "Sum up their taste" in question:
            return 200, "Sure:\n```json\n" + texts("I like light things") + "\n```"
        if "looking for at that moment" in question:
            return 200, '<think>{"texts": 3}</think> ' + texts("somewhere dry to sleep")
        return three_requests(question, number)

    server = serve(answer)
    flags = ["--kinds", "query", "intention", "preference", "--per_user", 0, "--api_key_env", "WRITER_KEY"]
    body = '{"body": {"temperature": 0.5}}'
    generate(sids, server, tmp_path / "out", *flags, "--held_out", 0.2, "--request", body)
    intents = load(tmp_path / "out", sids)
    kinds = Counter(intent.kind for intent in intents)
    # Three requests per item; train cases are (0 -> 1), (0, 1 -> 2) of ann and (5 -> 6) of bob.
    assert kinds == {"query": 36, "intention": 3, "preference": 2}
    intentions = {(i.user, i.history, i.item) for i in intents if i.kind == "intention"}
    assert intentions == {("ann", (0,), 1), ("ann", (0, 1), 2), ("bob", (5,), 6)}
    assert {(i.user, i.history) for i in intents if i.kind == "preference"} == {
        ("ann", (0, 1, 2)),
        ("bob", (5, 6)),
    }
    splits = Counter(i.split for i in intents if i.kind == "query")
    assert set(splits) == {"train", "valid", "test"} and splits["train"] > 15
    assert all(i.split == "train" for i in intents if i.kind != "query")
    assert len(server.bodies) == 12 + 3 + 2
    assert {(b["model"], b["temperature"], b["key"]) for b in server.bodies} == {
        ("writer", 0.5, "Bearer s3cret")
    }
    artifact = open_artifact(tmp_path / "out", "intents")
    assert artifact.summary["questions"] == 17 and artifact.summary["dropped"] == {}
    assert "s3cret" not in (tmp_path / "out" / "manifest.json").read_text()


def test_questions_hold_the_item_and_nothing_is_asked_twice(sids, serve, tmp_path):
    server = serve(three_requests)
    generate(sids, server, tmp_path / "out", "--items", 4)
    assert len(server.bodies) == 4
    (first,) = [text for text in server.asked if "number 3;" in text] or server.asked[:1]
    assert "brand: Aurora" in first and "price: 1" in first and "dry at night" in first
    assert "Write 3 requests" in first and "At most 40 words" in first and '{"texts":' in first
    generate(sids, server, tmp_path / "out", "--items", 4, "--overwrite", "true")
    assert len(server.bodies) == 4, "answers were kept"
    generate(sids, server, tmp_path / "out", "--items", 7, "--overwrite", "true")
    assert len(server.bodies) == 7, "a larger sample holds the smaller one"
    generate(sids, server, tmp_path / "out", "--items", 7, "--per_item", 2, "--overwrite", "true")
    assert len(server.bodies) == 14, "another question is another question"


def test_unusable_answers_are_dropped_and_counted(sids, serve, tmp_path):
    answers = {
        "0": "I would rather not.",
        "1": '{"texts": "one string"}',
        "2": '{"texts": [1, 2]}',
        "3": ('{"texts": ["cut', "length"),
        "4": texts("A light tent", "", "a  light TENT"),
        "5": texts("word " * 41, "an aurora LIGHT tent, number 5 please", "fine"),
        "6": texts("one", "two", "three", "four"),
        "7": "",
        "8": "[" * 5_000 + "{" * 5_000,
    }

    def answer(question, number):
        return 200, answers.get(question.split("number ")[1].split(";")[0], texts("good"))

    server = serve(answer)
    generate(sids, server, tmp_path / "out", "--held_out", 0)
    dropped = open_artifact(tmp_path / "out", "intents").summary["dropped"]
    assert dropped == {
        "not_json": 3,
        "wrong_type": 2,
        "cut_off": 1,
        "empty": 1,
        "duplicate": 1,
        "too_long": 1,
        "leaks_title": 1,
        "surplus": 1,
    }
    said = Counter(intent.text for intent in load(tmp_path / "out", sids))
    assert said == {"A light tent": 1, "fine": 1, "one": 1, "two": 1, "three": 1, "good": 3}


def test_titles_may_be_allowed_and_short_ones_cannot_leak():
    dropped = Counter()
    answer = {"content": texts("a tent by Aurora", "the big red tent!"), "finish_reason": "stop"}
    kept = usable_texts(answer, 3, 40, ["Tent", "Aurora", "Big  Red Tent"], dropped)
    assert kept == ["a tent by Aurora"] and dropped == {"leaks_title": 1}
    assert len(usable_texts(answer, 3, 40, [], Counter())) == 2


def test_busy_endpoint_is_asked_again(sids, serve, tmp_path):
    failures = {1: 429, 2: 503, 3: 500}

    def answer(question, number):
        if number in failures:
            return failures[number], {"error": {"message": "busy"}}
        return three_requests(question, number)

    server = serve(answer)
    generate(sids, server, tmp_path / "out", "--items", 2, "--concurrency", 1)
    assert len(server.bodies) == 5 and len(load(tmp_path / "out", sids)) == 6


def test_what_stays_unanswered_is_said_and_asked_again(sids, serve, tmp_path, capsys):
    broken = {"on": True}

    def answer(question, number):
        if broken["on"] and "number 3;" in question:
            return 500, {"error": {"message": "lost"}}
        if "number 4;" in question:
            return 400, {"error": {"message": "content filter"}}
        return three_requests(question, number)

    server = serve(answer)
    flags = ["--request", '{"max_retries": 1}', "--concurrency", 1]
    generate(sids, server, tmp_path / "out", *flags)
    summary = open_artifact(tmp_path / "out", "intents").summary
    assert summary["unanswered"] == 1 and summary["dropped"] == {"rejected": 1}
    assert "1 questions stayed unanswered" in capsys.readouterr().out
    before, broken["on"] = len(server.bodies), False
    generate(sids, server, tmp_path / "out", *flags, "--overwrite", "true")
    assert len(server.bodies) == before + 1
    assert open_artifact(tmp_path / "out", "intents").summary["unanswered"] == 0


def test_endpoint_that_goes_down_stops_the_run_and_keeps_the_answers(sids, serve, tmp_path):
    def answer(question, number):
        return three_requests(question, number) if number <= 2 else (503, {"error": {"message": "down"}})

    server = serve(answer)
    with pytest.raises(
        InputError, match="failed 10 times in a row.*2 answers are kept.*run the same command"
    ):
        generate(sids, server, tmp_path / "out", "--request", '{"max_retries": 0}', "--concurrency", 1)
    assert not (tmp_path / "out").exists()
    server.answer = three_requests
    generate(sids, server, tmp_path / "out", "--concurrency", 3)
    assert len(server.bodies) == 12 + 10 and len(load(tmp_path / "out", sids)) == 36


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"api_key_env: .* refuses the key in \$OPENAI_API_KEY"),
        (403, "api_key_env"),
        (404, "model: .* does not know 'writer'"),
        (400, "request: .* rejects it"),
    ],
)
def test_refusals_are_one_line(sids, serve, tmp_path, status, message):
    server = serve(lambda question, number: (status, {"error": {"message": "no\nway"}}))
    with pytest.raises(InputError, match=message) as caught:
        generate(sids, server, tmp_path / "out")
    assert "\n" not in str(caught.value) and "no way" in str(caught.value)
    assert len(server.bodies) <= 8 and not (tmp_path / "out").exists()


def test_something_else_than_an_endpoint(sids, serve, tmp_path):
    server = serve(lambda question, number: (200, b"<html>hello</html>"))
    with pytest.raises(InputError, match="base_url: .* something else than a chat completion"):
        generate(sids, server, tmp_path / "out")
    server.server_close()
    flags = ["--request", '{"max_retries": 0}']
    with pytest.raises(InputError, match="base_url: http://127.0.0.1:9/v1 cannot be reached"):
        generate(sids, "http://127.0.0.1:9/v1", tmp_path / "out", *flags)


def test_no_usable_answer_is_an_error(sids, serve, tmp_path):
    server = serve(lambda question, number: (200, "hm"))
    with pytest.raises(InputError, match="no answer of 'writer' can be used.*not_json': 12"):
        generate(sids, server, tmp_path / "out")


def test_held_out_items_change_no_question(serve, tmp_path):
    """Users' questions are the same whatever their valid and test items are."""
    asked = []
    for number, last_items in enumerate([(10, 11), (7, 8)]):
        server = serve(three_requests)
        sids = make_sids(tmp_path / f"sids{number}", last_items)
        flags = ["--kinds", "intention", "preference", "--per_user", 0]
        generate(sids, server, tmp_path / f"out{number}", *flags)
        asked.append(sorted(server.asked))
    assert asked[0] == asked[1] and len(asked[0]) == 5


def test_killed_run_goes_on_where_it_was(sids, serve, tmp_path):
    release = threading.Event()

    def answer(question, number):
        if number == 6:
            release.wait(60)  # the sixth question hangs until the process is dead
        return three_requests(question, number)

    server = serve(answer)
    argv = ["--sid_dir", str(sids), "--base_url", server.base_url, "--model", "writer", "--concurrency", "1"]
    argv += ["--output_dir", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sft.generate_intents", *argv]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(server.bodies) < 6 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    release.set()
    assert len(server.bodies) == 6 and not (tmp_path / "out").exists()
    log = tmp_path / ".out.work" / "answers.jsonl"
    assert len(log.read_text().splitlines()) == 5
    with open(log, "ab") as file:
        file.write(b'{"key": "torn')
    generate_intents.main(argv)
    assert len(server.bodies) == 6 + 7, "five were answered, one was lost with the process"
    assert len(load(tmp_path / "out", sids)) == 36


def test_interrupted_run_keeps_what_it_has(sids, serve, tmp_path):
    def answer(question, number):
        if number == 6:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        return three_requests(question, number)

    server = serve(answer)
    with pytest.raises(KeyboardInterrupt):
        generate(sids, server, tmp_path / "out", "--concurrency", 1)
    generate(sids, server, tmp_path / "out", "--concurrency", 1)
    assert len(server.bodies) == 13 and len(load(tmp_path / "out", sids)) == 36


def test_log_belongs_to_one_run_and_names_a_damaged_line(tmp_path):
    path = tmp_path / "work" / "answers.jsonl"
    with AnswerLog(path) as log:
        log.append({"key": "a", "content": "é"})
        with pytest.raises(InputError, match="another run is writing"):
            AnswerLog(path)
    with AnswerLog(path) as log:
        assert log.rows == {"a": {"key": "a", "content": "é"}}
    path.write_text("[1]\n" + path.read_text())
    with pytest.raises(InputError, match="answers.jsonl:1: is no answer"):
        AnswerLog(path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--per_item", "0"], "per_item: 0"),
        (["--held_out", "0.5"], "held_out: 0.5"),
        (["--concurrency", "0"], "concurrency: 0"),
        (["--base_url", "localhost:8000"], "base_url: 'localhost:8000'"),
        (["--sid_dir", "missing"], "missing: no such directory"),
        (["--kinds", "query", "poem"], "kinds: .*poem"),
        (["--request", '{"timeout_s": 0}'], "request.timeout_s: 0"),
        (["--request", '{"body": {"model": "x"}}'], "request.body: 'model'"),
        (["--request", '{"retries": 1}'], "request.retries: unknown key; did you mean 'max_retries'"),
    ],
)
def test_bad_arguments_are_one_line(sids, tmp_path, flags, message):
    with pytest.raises(InputError, match=message) as caught:
        generate(sids, "http://127.0.0.1:9/v1", tmp_path / "out", *flags)
    assert "\n" not in str(caught.value) and not (tmp_path / ".out.work").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": "Write {number} requests. {shape}"}, r"prompts.query: \{item\} is missing"),
        ({"preference": "{items} {item} {shape}"}, r"prompts.preference: \{item\} is no field"),
        ({"max_words": 0}, "prompts.max_words: 0"),
        ({"item": "no field"}, "text_template: 'no field' has no field"),
        ({"querry": "x"}, "prompts.querry: unknown key; did you mean 'query'"),
    ],
)
def test_prompts_of_ones_own_are_checked(sids, tmp_path, change, message):
    import yaml

    from sft.endpoint_intents.prompts import SHIPPED

    path = tmp_path / "prompts.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(SHIPPED.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        generate(sids, "http://127.0.0.1:9/v1", tmp_path / "out", "--prompts", path)


def test_prompts_of_ones_own_are_asked(sids, serve, tmp_path):
    import yaml

    from sft.endpoint_intents.prompts import SHIPPED

    path = tmp_path / "prompts.yaml"
    own = {"query": "{item} -> {number}{title_rule} {shape}", "title_rule": None, "item": "<{title}>"}
    path.write_text(yaml.safe_dump({**yaml.safe_load(SHIPPED.read_text()), **own}))
    server = serve(lambda question, number: (200, texts(f"an {ROWS[0]['title']} please")))
    generate(sids, server, tmp_path / "out", "--prompts", path, "--items", 1, "--per_item", 2)
    (asked,) = server.asked
    title = asked.partition(">")[0][1:]
    assert asked == f'<{title}> -> 2 {{"texts": ["...", "..."]}}' and title in {row["title"] for row in ROWS}
    assert len(load(tmp_path / "out", sids)) == 1, "titles may be named where no rule forbids it"
