"""A pack of somebody else's making gives its very bytes: frame, separators, SID spelling, end of answer."""

import dataclasses

import numpy as np
import pytest

from prompts.pack import PromptPack, Template
from prompts.template import PromptTemplate
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex
from tests.builders import make_tokenizer

BOS = "<|start|>"
# Two parts, a blank before newlines, BOS written by the template, nothing behind the answer's own end.
FRAME = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'Read on. \n\n<<Order>>\n' + message['content'] + '\n\n<<Reply>>\n' }}"
    "{% else %}{{ message['content'] + '\n' + eos_token }}{% endif %}{% endfor %}"
)
SEQREC = [
    Template("Go on. \n\n<<Given>> \nItems {history_sids}, in this order.", "{sid}"),
    Template("{history_sids}", "{sid}"),
    Template("Behind {history_sids} ", "{sid}", held_out=True),
]
PEER = PromptPack(
    tasks={
        "seqrec": SEQREC,
        "title2sid": [Template('Name: "{title}".', "{sid}")],
        "title_history2title": [Template("Read {history_titles} .", '"{title}."')],
        "itemsearch": [Template("{history_sids}: {query}", "{sid}")],
    },
    chat_template=FRAME,
    answer_end="\n{eos}",
    history_sid='"{sid}"',
    history_separator=", ",
    history_title="'{title}'",
    title_separator="; ",
    max_prompt_tokens=600,
)


@pytest.fixture(scope="module")
def index() -> SidIndex:
    codes = np.random.default_rng(2).permutation(np.indices((4, 4, 4)).reshape(3, -1).T)[:50]
    rows = [{"item_id": str(i), "title": f"Thing, {i}% new" if i != 4 else ""} for i in range(50)]
    ids = SemanticIds(codes.astype(np.int32), (4, 4, 4), "[{letter}:{code}]")
    return SidIndex(Catalog.from_rows(rows), ids, np.arange(50))


def byte_level(index: SidIndex):
    tokenizer = make_tokenizer(index)
    tokenizer.add_special_tokens({"bos_token": BOS})
    return tokenizer


def llama_like(index: SidIndex, prepend_scheme: str):
    """Marks blanks with "▁" and puts one before the first word (of the text, or of every piece between added
    tokens): text is spelled differently behind an SID than alone.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    alphabet = [chr(code) for code in range(32, 127)] + ["\n", "▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "</s>", BOS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([t.user for t in SEQREC] * 5 + index.catalog.titles, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token=BOS
    )
    tokens = index.semantic_ids.all_tokens()
    fast.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    return fast


MAKERS = {
    "byte level": byte_level,
    "llama, first": lambda index: llama_like(index, "first"),
    "llama, always": lambda index: llama_like(index, "always"),
}


@pytest.fixture(scope="module", params=sorted(MAKERS))
def any_template(request, index) -> PromptTemplate:
    return PromptTemplate(PEER, MAKERS[request.param](index), index)


@pytest.fixture(scope="module")
def template(index) -> PromptTemplate:
    return PromptTemplate(PEER, byte_level(index), index)


def sid(index, item):
    a, b, c = index.semantic_ids.codes_NL[item]
    return f"[a:{a}][b:{b}][c:{c}]"


def written(template, rendered):
    return template.tokenizer.decode(rendered.prompt_ids + rendered.completion_ids)


def test_bytes_of_a_sid_history(template, index):
    eos = template.tokenizer.eos_token
    before = BOS + "Read on. \n\n<<Order>>\n"
    after = f"\n\n<<Reply>>\n{sid(index, 5)}\n{eos}"
    history = f'"{sid(index, 3)}", "{sid(index, 8)}"'
    asked = [f"Go on. \n\n<<Given>> \nItems {history}, in this order.", history, f"Behind {history} "]
    for wording, words in enumerate(asked):
        assert written(template, template.render("seqrec", 5, [3, 8], wording)) == before + words + after


def test_bytes_of_titles_and_of_a_conversation(template, index):
    eos = template.tokenizer.eos_token
    said = written(template, template.render("title_history2title", 5, [3, 4, 8]))  # item 4 has no title
    assert said == (
        f"{BOS}Read on. \n\n<<Order>>\nRead 'Thing, 3% new'; 'Thing, 8% new' .\n\n<<Reply>>\n"
        f'"Thing, 5% new."\n{eos}'
    )
    turns = [("a lamp", 7)]
    said = written(template, template.render("itemsearch", 5, [3], 0, turns, query="{cheaper} <b_1>"))
    assert said == (
        f"{BOS}Read on. \n\n<<Order>>\na lamp\n\n<<Reply>>\n{sid(index, 7)}\n{eos}"
        f'Read on. \n\n<<Order>>\n"{sid(index, 3)}": {{cheaper}} <b_1>\n\n<<Reply>>\n{sid(index, 5)}\n{eos}'
    )


def test_an_answer_is_tokenised_with_its_end(index):
    """Qwen's vocabulary has '.\\n' as one token: so MiniOneRec's targets, title and newline, were read."""
    from tokenizers import AddedToken

    tokenizer = byte_level(index)
    tokenizer.add_tokens([AddedToken('."\n', special=False, normalized=False)])
    template = PromptTemplate(PEER, tokenizer, index)
    ids = template.render("title_history2title", 5, [3]).completion_ids
    assert ids[-2:] == [tokenizer.convert_tokens_to_ids('."\n'), tokenizer.eos_token_id]


def test_every_sid_answer_carries_newline_and_eos(any_template, index):
    from sft.examples import TaskContext
    from sft.tasks import seqrec

    tokenizer = any_template.tokenizer
    newline = tokenizer.encode(sid(index, 0) + "\n", add_special_tokens=False)[3:]
    end = [*newline, tokenizer.eos_token_id]
    assert any_template.end_ids == end and any_template.end_id == tokenizer.eos_token_id
    for item in range(0, 50, 7):
        rendered = any_template.render("seqrec", item, [1, 2])
        assert rendered.completion_ids == any_template.sid_ids[item] + end
    sequences = [np.array([3, 8, 5, 9, 2]), np.array([7, 1, 4, 6])]
    interactions = Interactions.leave_one_out(["u", "v"], sequences)
    for positions in ("all", "windows"):
        context = TaskContext(index, interactions, any_template, positions=positions)
        for example in seqrec.examples(context, np.random.default_rng(0)):
            answers = [label for label in example.shift_labels if label >= 0]
            wanted = [any_template.sid_ids[target] + end for target in example.target_items]
            assert answers == sum(wanted, [])


@pytest.mark.parametrize("wording", range(len(SEQREC)))
def test_pieces_and_branches_are_the_prompt(any_template, index, wording):
    """Every way to the same ids, whatever stands around an SID and however the tokenizer spells blanks."""
    from sft.examples import TaskContext
    from sft.tasks import seqrec

    for history in ([3], [3, 8], list(range(30)), [9, 9, 9]):
        assert any_template.seqrec_prompt(history, wording) == any_template.prompt("seqrec", history, wording)
    trained = dataclasses.replace(SEQREC[wording], held_out=False)
    pack = dataclasses.replace(PEER, tasks={"seqrec": [trained]}, max_history=6)
    template = PromptTemplate(pack, any_template.tokenizer, index)
    interactions = Interactions.leave_one_out(["u"], [np.arange(14)])
    found = set()
    for example in seqrec.examples(TaskContext(index, interactions, template), rng=np.random.default_rng(0)):
        start = len(example.input_ids) - sum(example.branch_length)
        paths = [] if example.branch_length else [example.input_ids]
        for attach, length in zip(example.branch_attach, example.branch_length, strict=True):
            paths.append(example.input_ids[: attach + 1] + example.input_ids[start : start + length])
            start += length
        for path, target in zip(paths, example.target_items, strict=True):
            answer = template.sid_ids[target] + template.end_ids
            assert path == template.prompt("seqrec", range(target)[-6:]) + answer[:-1]
            found.add(target)
    assert found == set(range(1, 12))


def test_a_title_history_without_a_title_has_no_words(template):
    assert template.history_fields([4]) == {"history_sids"}
    assert template.history_fields([4, 5]) == {"history_sids", "history_titles"}
    assert template.history_fields([]) == set()


@pytest.mark.parametrize(
    "wording",
    [
        Template("{history_sids} and {history_sids}", "{sid}"),
        Template("{history_titles}", "{sid}"),
        Template("{history_sids} {query}", "{sid}"),
        Template("{history_sids}", "It is {sid}"),
    ],
)
def test_seqrec_wordings_that_would_not_be_what_evaluation_asks(template, index, wording):
    pack = dataclasses.replace(PEER, tasks={"seqrec": [wording]})
    with pytest.raises(InputError, match="task 'seqrec' has the wording .* once and alone"):
        PromptTemplate(pack, template.tokenizer, index).seqrec_prompt([1, 2])


def test_a_conversation_over_budget_is_an_error(template, index):
    long = [("words " * 300, 1)]
    with pytest.raises(InputError, match="max_prompt_tokens: 600 is too small for the wording"):
        template.render("itemsearch", 5, [3], 0, long, query="x")


def test_missing_texts_are_named(template):
    with pytest.raises(InputError, match=r"task 'title2sid' refers to \{title\}, and item '4' has none"):
        template.render("title2sid", 4)
    with pytest.raises(InputError, match=r"task 'itemsearch' refers to \{query\}, and the request has none"):
        template.render("itemsearch", 5, [3])
