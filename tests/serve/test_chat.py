"""What serve.chat sends: the words of training, with what was said and shown before."""

import dataclasses

import pytest

from prompts.pack import Template
from prompts.template import PromptTemplate
from serve import chat
from serve.chat import Recommendation, converse, request_messages
from sid_builder.errors import InputError
from tests.sft.shop import make_shop_index, make_template


@pytest.fixture(scope="module", params=["chat", "instruction", "plain"])
def template(request) -> PromptTemplate:
    return make_template(request.param, make_shop_index())


def ids(template, messages):
    framed = template._frame(messages, generation_prompt=True)
    return template.tokenizer.encode(framed, add_special_tokens=False)


def test_one_request_is_a_prompt_of_training(template):
    assert ids(template, request_messages(template, None, [3, 8])) == template.prompt("seqrec", [3, 8])
    for task in ("query2sid", "itemsearch"):
        asked = template.prompt(task, query="a {red} tent")
        assert ids(template, request_messages(template, "a {red} tent", [])) == asked
    asked = template.prompt("itemsearch", [3, 8], 1, query="a red tent")
    assert ids(template, request_messages(template, "a red tent", [3, 8])) == asked


@pytest.mark.parametrize("history", [[], [3, 8]])
def test_a_conversation_is_a_prompt_of_training(template, history):
    turns = [("a red tent", 4), ("cheaper", 7)]
    wording = template.request_wording("itemsearch", "query", history)
    rendered = template.render("itemsearch", 9, history, wording, turns, query="not that brand")
    assert ids(template, request_messages(template, "not that brand", history, turns)) == rendered.prompt_ids


def test_packs_with_tasks_of_other_names(template):
    """A pack brought along may call its search otherwise, or have none with a history, or none at all."""
    search = [Template("History {history_sids}: {query}?", "{sid}"), Template("Ask: {query}", "{sid}")]
    seqrec = template.pack.tasks["seqrec"]
    pack = dataclasses.replace(template.pack, tasks={"seqrec": seqrec, "my_search": search})
    mine = PromptTemplate(pack, template.tokenizer, template.index)
    assert request_messages(mine, "a tent", [])[-1]["content"] == "Ask: a tent"
    assert request_messages(mine, "a tent", [3])[-1]["content"].endswith(": a tent?")
    bare = PromptTemplate(
        dataclasses.replace(pack, tasks={"seqrec": seqrec}), template.tokenizer, template.index
    )
    assert request_messages(bare, "a tent", [])[-1]["content"] == "a tent"
    with pytest.raises(InputError, match="history: no wording of this model"):
        request_messages(bare, "a tent", [3])


def converse_over(lines, fail_on=""):
    """Every request with its turns, when the shop shows item 10, 11, ... in answer."""
    asked, left = [], iter(lines)

    def ask(message, turns):
        if message == fail_on:
            raise InputError("endpoint: refused the request (too long)")
        asked.append((message, list(turns)))
        return [Recommendation(1, 9 + len(asked), "id", "title", "sid", 0.0)]

    converse(lambda: next(left), ask)
    return asked


def test_lines_go_with_what_was_said_and_shown_until_new():
    asked = converse_over(["a red tent ", "cheaper", "new", "a lamp", "brighter", " "])
    assert asked == [
        ("a red tent", []),
        ("cheaper", [("a red tent", 10)]),
        ("a lamp", []),
        ("brighter", [("a lamp", 12)]),
    ]


def test_a_line_that_cannot_be_answered_is_said_and_left_out(capsys):
    asked = converse_over(["a red tent", "x" * 9, "cheaper", ""], fail_on="x" * 9)
    assert asked[-1] == ("cheaper", [("a red tent", 10)])
    assert capsys.readouterr().out == "error: endpoint: refused the request (too long)\n"


def test_a_conversation_that_outgrows_the_budget_is_named(template):
    turns = [("a tent " * 200, 3), ("cheaper", 4), ("cheaper " * 200, 5)]
    with pytest.raises(InputError, match="max_prompt_tokens: .* is too small"):
        request_messages(template, "and blue", [], turns)


def test_a_request_over_budget_is_refused_where_training_cuts_it(template):
    """Half a request is none; whoever asked can shorten it."""
    words = "a red tent " * 300
    assert template.render("itemsearch", 9, [3], 1, query=words).cut_from
    for history in ([], [3]):
        with pytest.raises(InputError, match="text: 'a red tent .* max_prompt_tokens is .*; shorten it"):
            request_messages(template, words, history)


def test_nothing_asked_off_a_terminal(monkeypatch, tmp_path):
    monkeypatch.setattr(chat, "open_template", lambda model: make_template("plain", make_shop_index()))
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(InputError, match="message: nothing was asked"):
        chat.main(["--model", str(tmp_path)])
