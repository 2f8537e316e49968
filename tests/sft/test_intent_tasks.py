"""Tasks that read intents: requests alone, behind a history and in a conversation; tastes of users."""

import dataclasses

import numpy as np
import pytest

from prompts.intents import Intent, Intents
from prompts.pack import PromptPack, Template
from serve.chat import request_messages
from sft import TASKS
from sft.shards import training_rows
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.registry import resolve
from tests.sft.shop import REMOVED, make_shop, make_shop_index, make_template


@pytest.fixture(scope="module")
def shop():
    return make_shop("chat")


def with_intents(shop, *rows):
    return dataclasses.replace(shop, intents=Intents.of(rows, shop.index.catalog))


def collect(shop, task, seed=0):
    return list(resolve(TASKS, task, "task")(shop, np.random.default_rng(seed)))


def asked(shop, example):
    prompt = example.shift_labels.index(next(label for label in example.shift_labels if label >= 0)) + 1
    return example.input_ids[:prompt]


@pytest.mark.parametrize("history", [(), (3, 8)])
def test_a_conversation_is_the_endpoints(shop, history):
    """What was said and shown stands before the last words, framed as serve.chat sends it."""
    one = Intent("query", ("a red tent", "cheaper", "not that brand"), 17, (3, 4), history)
    (example,) = collect(with_intents(shop, one), "itemsearch")
    turns = [("a red tent", 3), ("cheaper", 4)]
    messages = request_messages(shop.template, "not that brand", history, turns)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2 + ["user"]
    framed = shop.template._frame(messages, generation_prompt=True)
    assert asked(shop, example) == shop.template.tokenizer.encode(framed, add_special_tokens=False)
    text = shop.template.tokenizer.decode(asked(shop, example))
    spelled = shop.index.semantic_ids.spell(3) + "<|im_end|>"
    assert "a red tent<|im_end|>" in text and spelled in text and "not that brand<|im_end|>" in text
    assert ("oldest first" in text) == bool(history)
    assert example.target_items == [17]


def test_a_request_takes_every_wording_that_holds_it(shop):
    query = with_intents(shop, Intent("query", ("a red tent",), 17, history=(3, 8)))
    intention = with_intents(shop, Intent("intention", ("to sleep dry",), 17))
    tokens = shop.template.tokenizer
    texts = {tokens.decode(asked(shop, e)) for seed in range(40) for e in collect(query, "itemsearch", seed)}
    trained = [shop.template.pack.tasks["itemsearch"][n] for n in shop.template.pack.wordings("itemsearch")]
    assert len(texts) == sum("{query}" in template.user for template in trained) == 4
    assert sum(shop.index.semantic_ids.spell(8) in text for text in texts) == 2
    texts = {
        tokens.decode(asked(shop, e)) for seed in range(9) for e in collect(intention, "itemsearch", seed)
    }
    assert texts == {tokens.decode(shop.template.encode_prompt("to sleep dry"))}, "no history: asked alone"


def test_requests_for_what_is_off_the_shelf_are_left_out(shop, tmp_path):
    gone = Intent("query", ("the old one",), REMOVED[0])
    kept = Intent("query", ("the new one", "dearer"), 17, shown=(REMOVED[1],))
    (example,) = collect(with_intents(shop, gone, kept), "itemsearch")
    assert example.target_items == [17]
    with pytest.raises(InputError, match="task_weights.itemsearch: the data holds no example"):
        training_rows(with_intents(shop, gone), {"itemsearch": 1.0}, 0, tmp_path, {})


@pytest.mark.parametrize("task", ["preference2sid", "reasoned_seqrec"])
def test_a_taste_goes_with_the_train_cases_of_its_user(shop, task):
    """Two sequences of one user, another user's, and a taste of nobody."""
    sequences = [np.array(row) for row in ([1, 2, 3, 4, 6], [7, 8, 9, 11], [12, 13, 14])]
    interactions = Interactions.leave_one_out(["ann", "bob", "ann"], sequences)
    tastes = [Intent("preference", (f"{user} likes red",), user=user) for user in ("bob", "ann", "joe")]
    given = dataclasses.replace(with_intents(shop, *tastes), interactions=interactions)
    rows = [(e.target_items[0], shop.template.tokenizer.decode(e.input_ids)) for e in collect(given, task)]
    # valid and test are the last two of each sequence; ann's second has no train case left
    assert sorted(target for target, _ in rows) == [2, 3, 8]
    for target, text in rows:
        assert ("bob likes red" if target == 8 else "ann likes red") in text


def test_a_reasoned_answer_is_the_taste_and_then_the_sid(shop):
    pack = shop.template.pack
    for example in collect(shop, "reasoned_seqrec"):
        answer = [label for label in example.shift_labels if label >= 0]
        taste, sid = shop.template.tokenizer.decode(answer[:-1]).split("\n")
        assert taste.endswith("things") and sid == shop.index.semantic_ids.spell(example.target_items[0])
    assert pack.tasks["reasoned_seqrec"][0].answer == "{preference}\n{sid}"


def test_a_taste_is_told_behind_its_own_history_or_all_of_train(shop):
    interactions = Interactions.leave_one_out(["ann"], [np.array([1, 2, 3, 4, 6])])
    rows = [
        Intent("preference", ("from a history",), history=(20, 21), user="ann"),
        Intent("preference", ("from train",), user="ann"),
        Intent("preference", ("of nobody",), user="joe"),
        Intent("preference", ("of a stranger",), history=(30,)),
    ]
    given = dataclasses.replace(with_intents(shop, *rows), interactions=interactions)
    examples = collect(given, "preferenceobtain")
    told = {}
    for example in examples:
        assert example.target_items == [-1]
        answer = [label for label in example.shift_labels if label >= 0]
        sids = shop.template.vocabulary.all_ids
        told[shop.template.tokenizer.decode(answer[:-1])] = [
            token for token in example.input_ids if token in sids
        ]
    ids = shop.template.sid_ids
    assert told == {
        "from a history": ids[20] + ids[21],
        "from train": ids[1] + ids[2] + ids[3],
        "of a stranger": ids[30],
    }


def test_a_pack_without_a_wording_for_a_kind_leaves_it_out():
    index = make_shop_index()
    plain = PromptPack.load("plain")
    only = dataclasses.replace(plain, tasks={"itemsearch": [Template("{query}", "{sid}")]})
    shop = make_shop(only, index)
    queries = shop.train_intents("query")
    live = [intent for intent in queries if intent.item not in REMOVED]
    assert len(collect(shop, "itemsearch")) == len(live)


def test_an_over_long_conversation_is_an_error_of_the_run(shop, tmp_path):
    pack = dataclasses.replace(shop.template.pack, max_prompt_tokens=60)
    short = dataclasses.replace(shop, template=make_template(pack, shop.index))
    told = Intent("query", ("words " * 80, "cheaper"), 17, (3,))
    with pytest.raises(InputError, match="max_prompt_tokens: 60 is too small"):
        training_rows(with_intents(short, told), {"itemsearch": 1.0}, 0, tmp_path, {})
