"""One template for SFT, RL, evaluation and the endpoint: token equality, budgets, end tokens, packs."""

import dataclasses

import numpy as np
import pytest
from tokenizers import AddedToken

from prompts import PACKS
from prompts.pack import PromptPack, Template
from prompts.template import PromptTemplate
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from tests.builders import make_index, make_tokenizer

# What Qwen2.5's template comes to for the messages we send.
CHATML = """
{%- if messages[0]['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message['role'] + '\\n' + message['content'] }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""


def chatml_tokenizer(index):
    tokenizer = make_tokenizer(index)
    tokenizer.add_tokens(
        [AddedToken(text, special=True, normalized=False) for text in ("<|im_start|>", "<|im_end|>")]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="module")
def short_index():
    """SIDs of one to three levels."""
    rng = np.random.default_rng(4)
    codes = np.stack([rng.integers(0, 8, 90) for _ in range(3)], axis=1)
    codes[codes[:, 0] == 1, 1:] = -1
    return make_index(codes, (8, 8, 8))


@pytest.fixture(scope="module", params=["plain", "chat", "plain, short SIDs"])
def template(request, small_index, short_index) -> PromptTemplate:
    index = short_index if "short" in request.param else small_index
    if request.param == "chat":
        return PromptTemplate(PromptPack.load("chat"), chatml_tokenizer(index), index)
    return PromptTemplate(PromptPack.load("plain"), make_tokenizer(index), index)


def sequences(num_items: int, count: int = 12, repeats: bool = False) -> Interactions:
    rng = np.random.default_rng(0)
    rows = [rng.choice(num_items, rng.integers(3, 60), replace=repeats) for _ in range(count)]
    return Interactions.leave_one_out([str(i) for i in range(count)], rows)


def with_pack(template: PromptTemplate, **changes) -> PromptTemplate:
    pack = dataclasses.replace(template.pack, **changes)
    return PromptTemplate(pack, template.tokenizer, template.index)


@pytest.mark.parametrize("room", [400, 40])
def test_token_ids_are_equal_in_sft_rl_evaluation_and_endpoint(template, room):
    """One question asked in every way: by the tokenizer, in pieces, as a tree, as chat messages."""
    from rl.train_cases import prompt_rows
    from sft.examples import TaskContext
    from sft.tasks import seqrec

    first = template.pack.templates("seqrec")[:1]  # what RL, evaluation and the endpoint ask
    template = with_pack(template, tasks={**template.pack.tasks, "seqrec": first})
    pieces = template.seqrec_pieces()
    budget = len(pieces.before) + len(pieces.after) + room
    template = with_pack(template, max_prompt_tokens=budget)
    interactions = sequences(template.index.catalog.num_items)
    cases = interactions.histories("train")
    trained = {}
    context = TaskContext(template.index, interactions, template)
    for example in seqrec.examples(context, np.random.default_rng(0)):
        start = len(example.input_ids) - sum(example.branch_length)
        paths = [example.input_ids] if not example.branch_length else []
        for attach, length in zip(example.branch_attach, example.branch_length, strict=True):
            paths.append(example.input_ids[: attach + 1] + example.input_ids[start : start + length])
            start += length
        for path, target in zip(paths, example.target_items, strict=True):
            trained.setdefault(target, []).append(path)
    asked_by_rl = prompt_rows(cases, template)
    tokenizer = template.tokenizer
    frame = {
        "chat_template": template.pack.chat_template or tokenizer.chat_template,
        "add_generation_prompt": True,
        **template.pack.chat_template_kwargs,
    }
    for case in range(len(cases)):
        history, target = cases.history(case), int(cases.targets_C[case])
        rendered = template.render("seqrec", target, history)
        ids = rendered.prompt_ids
        assert len(ids) <= budget
        assert ids == template.prompt("seqrec", history) == template.seqrec_prompt(history)
        assert ids + template.sid_ids[target] in trained[target]
        messages = asked_by_rl[case]["prompt"]
        assert ids == template.encode_prompt(messages[-1]["content"])
        # What TRL and vLLM do with chat messages: the frame as text, then its ids, nothing added.
        text = tokenizer.apply_chat_template(messages, tokenize=False, **frame)
        assert ids == tokenizer.encode(text, add_special_tokens=False)
        assert rendered.completion_ids == [*template.sid_ids[target], template.end_id]


def test_the_budget_drops_the_oldest_items(template):
    history = np.arange(40)
    whole = with_pack(template, max_history=100, max_prompt_tokens=10_000)
    assert whole.bounded_history(history) == history.tolist()
    twenty = with_pack(template, max_history=20, max_prompt_tokens=10_000)
    assert twenty.bounded_history(history) == list(range(20, 40))
    room = len(whole.seqrec_prompt(history[-7:]))
    for slack, kept in ((0, 7), (-1, 6)):
        tight = with_pack(template, max_history=100, max_prompt_tokens=room + slack)
        assert len(tight.bounded_history(history)) == kept
        assert tight.seqrec_prompt(history) == tight.prompt("seqrec", history)
        assert tight.seqrec_prompt(history) == whole.seqrec_prompt(history[-kept:])
    least = len(whole.seqrec_prompt(history[-1:]))
    nothing = with_pack(template, max_prompt_tokens=least - 1)
    with pytest.raises(InputError, match=f"max_prompt_tokens: {least - 1} .* raise it to {least} or more"):
        nothing.seqrec_prompt(history)
    with pytest.raises(InputError, match=f"max_prompt_tokens: {least - 1} is too small for the wording"):
        nothing.prompt("seqrec", history)


def test_titles_are_bounded_too(template):
    budget = len(template.render("title_history2sid", 3, [39]).prompt_ids) + 60
    tight = with_pack(template, max_history=100, max_prompt_tokens=budget)
    rendered = tight.render("title_history2sid", 3, np.arange(40))
    assert len(rendered.prompt_ids) <= budget
    text = tight.tokenizer.decode(rendered.prompt_ids)
    assert template.index.catalog.titles[39] in text
    assert template.index.catalog.titles[38] in text
    assert template.index.catalog.titles[0] not in text


def test_a_prompt_without_history(template):
    assert template.seqrec_prompt([]) == template.prompt("seqrec", [])


def test_end_of_turn_ids(small_index):
    plain = PromptTemplate(PromptPack.load("plain"), make_tokenizer(small_index), small_index)
    assert plain.end_id == plain.tokenizer.eos_token_id
    tokenizer = chatml_tokenizer(small_index)
    chat = PromptTemplate(PromptPack.load("chat"), tokenizer, small_index)
    assert chat.end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.decode(chat.seqrec_prompt([1])).endswith("<think>\n\n</think>\n\n")


def test_words_with_braces_and_literal_braces_in_wordings(small_index):
    """A user's braces are text; doubled braces of a wording are single ones in every way of asking."""
    wording = [Template(user="{{json}} {history_sids} {{}}", answer="{sid}")]
    pack = PromptPack.load("plain")
    pack = dataclasses.replace(pack, tasks={**pack.tasks, "seqrec": wording})
    template = PromptTemplate(pack, make_tokenizer(small_index), small_index)
    assert template.seqrec_prompt([1, 2]) == template.prompt("seqrec", [1, 2])
    assert "{json}" in template.tokenizer.decode(template.seqrec_prompt([1]))
    asked = template.prompt("query2sid", query="a {history_sids} b {0}")
    assert "a {history_sids} b {0}" in template.tokenizer.decode(asked)


def test_answers_parse_back_to_their_items(template):
    index = template.index
    for item in range(0, index.catalog.num_items, 17):
        codes = template.vocabulary.decode(template.render("title2sid", item).completion_ids[:-1])
        assert codes == tuple(code for code in index.semantic_ids.codes_NL[item].tolist() if code >= 0)
        assert item in index.semantic_ids.items_of(codes)
        assert index.semantic_ids.parse(index.semantic_ids.spell(item)) == codes


@pytest.mark.parametrize(
    "text, words",
    [
        ("tasks: {seqrec: []}", "no template to train on"),
        ("tasks: {seqrec: [{user: '{histroy}', answer: '{sid}'}]}", "refers to {histroy}"),
        ("tasks: {seqrec: [{user: a}]}", "answer: is missing"),
        ("tasks: {seqrec: [{user: a, answer: b}]}\nmax_histroy: 3", "max_histroy"),
        ("tasks: {seqrec: [{user: a, answer: b}]}\nmax_history: 0", "max_history: 0"),
        ("tasks: {seqrec: [{user: a, answer: b}]}\nmax_history: many", "max_history"),
        ("tasks: {seqrec: [{user: a, answer: b, held_out: true}]}", "no template to train on"),
        (
            "tasks: {x: [{user: a, answer: b, held_out: true}, {user: c, answer: d}]}",
            "task 'x' holds out its first wording",
        ),
        ("tasks: {x: [{user: 'a {title', answer: b}]}", "'a {title' is no template .* double a brace"),
        ("tasks: {x: [{user: '{sid} is', answer: '{sid}'}]}", "asks with {sid} .* gives the answer away"),
        ("tasks: {x: [{user: '{history_sids} {title}', answer: '{sid}'}]}", "asks with {title}"),
        ("tasks: {x: [{user: a, answer: b}]}\nhistory_sid: '{sid}{sid}'", "it must hold {sid} once"),
        ("tasks: {x: [{user: a, answer: b}]}\nhistory_title: none", "it must hold {title} once"),
        ("tasks: {x: [{user: a, answer: b}]}\nanswer_end: '{end}'", "answer_end is '{end}'"),
        ("history_separator: ' '", "tasks: is missing"),
        ("- a list", "expected `key: value`"),
    ],
)
def test_pack_errors_name_the_key(tmp_path, text, words):
    path = tmp_path / "pack.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        PromptPack.load(path)
    assert "\n" not in str(caught.value)


def test_packs_survive_a_round_trip_and_unknown_names_are_refused(tmp_path):
    for name in PACKS:
        pack = PromptPack.load(name)
        pack.save(tmp_path / name)
        assert PromptPack.load(tmp_path / name) == pack
    with pytest.raises(InputError, match="neither one of"):
        PromptPack.load("no_such_pack")
    with pytest.raises(InputError, match="has no templates in this pack"):
        PromptPack.load("plain").templates("no_such_task")


def test_frames_that_cannot_work_are_refused(small_index):
    tokenizer = make_tokenizer(small_index)
    with pytest.raises(InputError, match="no chat template"):
        PromptTemplate(PromptPack.load("chat"), tokenizer, small_index)
    endless = dataclasses.replace(
        PromptPack.load("plain"), chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(InputError, match="nothing after an answer"):
        _ = PromptTemplate(endless, tokenizer, small_index).end_id
    broken = dataclasses.replace(endless, chat_template="{% for m in messages %}")
    with pytest.raises(InputError, match="cannot frame a request"):
        PromptTemplate(broken, tokenizer, small_index)
    picky = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}a"
    with pytest.raises(InputError, match="no system here.* `system`"):
        PromptTemplate(dataclasses.replace(endless, chat_template=picky, system="s"), tokenizer, small_index)
    ends = dataclasses.replace(endless, answer_end="\n{eos}")
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="answer_end is .*{eos}', and the tokenizer has no eos"):
        _ = PromptTemplate(ends, tokenizer, small_index).end_ids
