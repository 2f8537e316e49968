"""The packs we ship: every task, every shape of the field's tasks, wordings to measure with, and no wording
both trained on and held out.
"""

import pytest

from prompts import PACKS
from prompts.pack import HISTORY_FIELDS, ITEM_FIELDS, USER_FIELDS, PromptPack, fields_of
from prompts.template import PromptTemplate
from sft import TASKS
from tests.builders import make_tokenizer
from tests.sft.shop import make_shop

# What a user may be asked with, and answered by, in each of LC-Rec's composites.
SHAPES = {
    "item2index": {("title", "sid"), ("description", "sid"), ("description title", "sid")},
    "index2item": {("sid", "title"), ("sid", "description"), ("sid", "description title")},
    "fusionseqrec": {("history_sids", "title"), ("history_sids", "description"), ("history_titles", "sid")},
    "itemsearch": {
        ("query", "sid"),
        ("history_sids query", "sid"),
        ("history_sids intention", "sid"),
        ("history_sids preference", "sid"),
    },
    "preferenceobtain": {("history_sids", "preference")},
    "preference2sid": {("history_sids preference", "sid")},
    "reasoned_seqrec": {("history_sids", "preference sid")},
}
HELD_OUT = {"seqrec", "title2sid", "item2index", "itemsearch", "query2sid", "sid2title"}


@pytest.fixture(scope="module", params=sorted(PACKS))
def pack(request) -> PromptPack:
    return PromptPack.load(request.param)


def test_every_task_has_wordings(pack):
    assert set(pack.tasks) == set(TASKS)
    assert {task for task in pack.tasks if pack.wordings(task, held_out=True)} >= HELD_OUT
    for templates in pack.tasks.values():
        assert len({(template.user, template.answer) for template in templates}) == len(templates)


def test_composites_have_every_shape(pack):
    for task, shapes in SHAPES.items():
        trained = [pack.tasks[task][wording] for wording in pack.wordings(task)]
        pairs = [(sorted(fields_of(one.user)), sorted(fields_of(one.answer))) for one in trained]
        found = {(" ".join(asked), " ".join(told)) for asked, told in pairs}
        assert found >= shapes, task


def test_what_one_task_holds_out_no_other_trains_on(pack):
    every = [template for templates in pack.tasks.values() for template in templates]
    held_out = {template.user for template in every if template.held_out}
    assert not held_out & {template.user for template in every if not template.held_out}


def test_a_request_is_asked_the_same_way_by_every_task_that_has_one(pack):
    """So it does not matter to the endpoint which of them a model was trained on."""
    asked = {task: [t.user for t in pack.tasks[task] if t.user == "{query}"] for task in pack.tasks}
    assert asked["query2sid"] == asked["itemsearch"] == ["{query}"]
    assert pack.tasks["query2sid"][0].user == pack.tasks["itemsearch"][0].user == "{query}"


def test_the_wording_of_models_already_trained_stays():
    told = "Here is what a customer chose, oldest first. Name the item they will choose next."
    assert PromptPack.load("chat").tasks["seqrec"][0].user == told + "\n{history_sids}"
    assert PromptPack.load("plain").tasks["seqrec"][0].user == "next: {history_sids}"


def test_the_packs_own_words_hold_no_field(pack):
    words = " ".join(pack.words())
    assert not any("{" + name + "}" in words for name in HISTORY_FIELDS | ITEM_FIELDS | USER_FIELDS)
    assert len(pack.words()) == sum(map(len, pack.tasks.values()))


def test_bytes_of_the_instruction_pack():
    shop = make_shop("instruction")
    template, spell = shop.template, shop.index.semantic_ids.spell
    rendered = template.render("title_history2sid", 7, [1, 2], wording=1)
    eos = template.tokenizer.eos_token
    assert template.tokenizer.decode(rendered.prompt_ids + rendered.completion_ids) == (
        "## Task\nSay which item goes with what was taken before.\n\n## Given\n"
        f'"blue tent no. 1", "green lamp no. 2"\n\n## Answer\n{spell(7)}\n{eos}'
    )
    turns = [("a tent", 3)]
    ids = template.encode_prompt("cheaper", turns)
    assert template.tokenizer.decode(ids) == (
        f"## Task\na tent\n\n## Answer\n{spell(3)}\n{eos}\n## Task\ncheaper\n\n## Answer\n"
    )
    first = template.prompt("itemsearch", query="a tent") + template.sid_ids[3] + template.end_ids
    assert ids[: len(first)] == first, "a conversation goes on behind exactly what was trained"


def test_plain_is_cheap(small_index):
    """A model of a million parameters pays for every token of the frame."""
    template = PromptTemplate(PromptPack.load("plain"), make_tokenizer(small_index), small_index)
    pieces = template.seqrec_pieces()
    assert pieces.between == [] and len(pieces.after) == 1 and len(pieces.before) <= 6
    assert template.pack.wordings("seqrec") == [0]
