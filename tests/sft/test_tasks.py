"""Every alignment task: no valid/test leakage, prompts within budget, answers that parse back to their
target.
"""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from prompts import PACKS
from prompts.branches import IGNORE
from prompts.pack import PromptPack, Template
from prompts.template import PromptTemplate
from sft import TASKS
from sft.collators import BranchCollator
from sft.examples import TaskContext
from sft.shards import training_rows
from sid_builder.errors import InputError
from sid_builder.registry import resolve
from tests.sft.builders import make_interactions
from tests.sft.shop import REMOVED, make_intents, make_shop, make_shop_index

HISTORY_TASKS = {"seqrec", "title_history2sid", "sid_history2title", "title_history2title", "fusionseqrec"}
ITEM_TASKS = {"title2sid", "sid2title", "item2index", "index2item", "query2sid"}
INTENT_TASKS = {"itemsearch", "preferenceobtain", "preference2sid", "reasoned_seqrec"}


@pytest.fixture(scope="module")
def context(recommender):
    interactions = make_interactions(recommender.index.catalog.num_items)
    return TaskContext(recommender.index, interactions, recommender.template)


@pytest.fixture(scope="module", params=sorted(PACKS))
def shop(request):
    return make_shop(request.param)


def _collect(context, task, seed=0):
    return list(resolve(TASKS, task, "task")(context, np.random.default_rng(seed)))


def _paths(example):
    """Prompt ids and answer ids of every target: the trunk as far as the branch sees it, and the branch."""
    start = len(example.input_ids) - sum(example.branch_length)
    spans = [(start, 0, start)]  # an example without branches is its trunk
    if example.branch_attach:
        spans, at = [], start
        for attach, length in zip(example.branch_attach, example.branch_length, strict=True):
            spans.append((attach + 1, at, at + length))
            at += length
    for trunk, low, high in spans:
        ids = example.input_ids[:trunk] + (example.input_ids[low:high] if low else [])
        labels = example.shift_labels[low:high] if low else example.shift_labels[:trunk]
        answer = [label for label in labels if label != IGNORE]
        yield ids[: len(ids) - len(answer) + 1], answer


def _texts(context, task, target):
    """What the pack's trained wordings may answer about an item, from the catalogue and the intents."""
    row = context.index.catalog.row(target) if target >= 0 else {"title": "", "description": ""}
    fields = {
        "sid": context.index.semantic_ids.spell(target) if target >= 0 else "",
        "title": row["title"],
        "description": " ".join(row["description"].split()[:40]),
    }
    tastes = [intent.text for intent in context.intents.select(["preference"], "train")]
    wordings = [wording for wording in context.template.pack.tasks[task] if not wording.held_out]
    return {
        wording.answer.format(**fields, preference=taste)
        for wording in wordings
        for taste in tastes
        if all(fields.get(name, taste) for name in wording.fields & {"sid", "title", "description"})
    }


def test_the_suite_knows_every_task():
    assert set(TASKS) == HISTORY_TASKS | ITEM_TASKS | INTENT_TASKS


@pytest.mark.parametrize("task", sorted(TASKS))
def test_conformance(shop, task):
    """Deterministic by seed, within budget, and answers about the row's own target."""
    template, tokenizer = shop.template, shop.template.tokenizer
    examples = _collect(shop, task)
    assert examples and examples == _collect(shop, task)
    end = tokenizer.decode(template.end_ids)
    for example in examples:
        assert example.task == task
        paths = list(_paths(example))
        assert len(paths) == len(example.target_items)
        for (prompt, answer), target in zip(paths, example.target_items, strict=True):
            assert len(prompt) <= template.pack.max_prompt_tokens
            assert target not in REMOVED
            text = tokenizer.decode(answer)
            assert text.endswith(end) and answer[-1] == template.end_id
            said = text.removesuffix(end)
            codes = shop.index.semantic_ids.parse(said)
            if codes is None:
                assert said in _texts(shop, task, target)
            else:
                assert shop.index.semantic_ids.items_of(codes) == [target]


@pytest.mark.parametrize("task", sorted(TASKS))
def test_parts_are_the_whole(shop, task):
    """Parts made on their own, in any order, hold each target as often as the whole does."""
    whole = Counter(target for example in _collect(shop, task) for target in example.target_items)
    parts = [dataclasses.replace(shop, part=part, num_parts=4) for part in range(4)]
    found = [Counter(t for example in _collect(part, task) for t in example.target_items) for part in parts]
    assert sum(found, Counter()) == whole and all(found)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_no_valid_or_test_item_is_reachable(shop, task):
    """Change every held-out item and every held-out intent: the training rows stay exactly as they were."""
    old = shop.interactions
    items = old.items_I.copy()
    for split in ("valid", "test"):
        held = old.histories(split)
        items[old.indptr_S1[held.sequence_C] + held.position_C] = 0
    assert (items != old.items_I).any()
    changed = dataclasses.replace(
        shop,
        interactions=dataclasses.replace(old, items_I=items),
        intents=make_intents(shop.index.catalog, held_out_words="that nobody has asked before"),
    )
    assert _collect(changed, task) == _collect(shop, task)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_held_out_wordings_are_never_trained_on(task):
    marked = {
        name: [dataclasses.replace(t, user="HELD " + t.user) if t.held_out else t for t in templates]
        for name, templates in PromptPack.load("chat").tasks.items()
    }
    shop = make_shop(dataclasses.replace(PromptPack.load("chat"), tasks=marked))
    texts = [shop.template.tokenizer.decode(example.input_ids) for example in _collect(shop, task)]
    assert texts and not any("HELD" in text for text in texts)


@pytest.mark.parametrize("task", ["item2index", "index2item"])
def test_composites_take_every_shape_an_item_has_the_texts_for(task):
    shop = make_shop("chat")
    seen = {"titled": set(), "described": set()}
    for seed in range(12):
        for example in _collect(shop, task, seed):
            (target,) = example.target_items
            text = shop.template.tokenizer.decode([*example.input_ids, example.shift_labels[-1]])
            shape = (f"no. {target}" in text, f"made {target} times" in text)
            if target == 7:
                seen["titled"].add(shape)
            elif target == 10:  # described, without a title
                seen["described"].add(shape)
            elif target == 9:  # titled, without a description
                assert shape == (True, False)
    assert seen == {"titled": {(True, False), (False, True), (True, True)}, "described": {(False, True)}}


def test_fusionseqrec_goes_from_sids_to_words_and_from_words_to_sids():
    shop = make_shop("chat")
    index, shapes = shop.index, set()
    for example in _collect(shop, "fusionseqrec"):
        ((prompt, answer),) = _paths(example)
        asked = "sids" if set(prompt) & set(shop.template.vocabulary.all_ids.tolist()) else "titles"
        said = shop.template.tokenizer.decode(answer[:-1])
        row = index.catalog.row(example.target_items[0])
        told = {row["title"]: "title", row["description"]: "description"}.get(said, "sid")
        shapes.add((asked, told))
    assert shapes == {("sids", "title"), ("sids", "description"), ("titles", "sid")}


def _with_wordings(pack, task, *wordings):
    return dataclasses.replace(pack, tasks={**pack.tasks, task: list(wordings)})


def test_metadata_that_no_item_has_is_refused_by_task_and_field(tmp_path):
    plain = PromptPack.load("plain")
    bare = make_shop_index(described=False)
    only = _with_wordings(plain, "item2index", Template("about {description}", "{sid}"))
    with pytest.raises(InputError, match=r"task_weights.item2index: .* \{description\}, which no item") as e:
        training_rows(make_shop(only, bare), {"item2index": 1.0}, 0, tmp_path, {})
    assert "\n" not in str(e.value)
    assert _collect(make_shop("plain", bare), "item2index"), "asked by title where nothing is described"
    untitled = make_shop("plain", make_shop_index(titled=False))
    for task in ("title2sid", "sid_history2title", "title_history2sid"):
        with pytest.raises(InputError, match=f"task_weights.{task}: .* which no item of the catalogue has"):
            training_rows(untitled, {task: 1.0}, 0, tmp_path, {})
    asks = _with_wordings(plain, "title2sid", Template("{query}", "{sid}"))
    with pytest.raises(InputError, match=r"\{query\}, which this task has no words for"):
        training_rows(make_shop(asks), {"title2sid": 1.0}, 0, tmp_path, {})


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_task_without_templates_is_refused(task, tmp_path):
    plain = PromptPack.load("plain")
    less = dataclasses.replace(plain, tasks={name: t for name, t in plain.tasks.items() if name != task})
    with pytest.raises(InputError, match=f"task: '{task}' has no templates in this pack, .* tasks.{task}"):
        training_rows(make_shop(less), {task: 1.0}, 0, tmp_path, {})


@pytest.mark.parametrize("task", sorted(INTENT_TASKS))
def test_tasks_of_words_need_intents(task, tmp_path):
    shop = dataclasses.replace(make_shop(), intents=None)
    with pytest.raises(InputError, match="pass --intents"):
        training_rows(shop, {task: 1.0}, 0, tmp_path, {})


def test_seqrec_covers_every_train_case_once(context):
    targets = sorted(t for example in _collect(context, "seqrec") for t in example.target_items)
    assert targets == sorted(context.interactions.histories("train").targets_C.tolist())


def _case_logprobs(model, prompt, answer):
    ids = torch.tensor([prompt + answer[:-1]])
    logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
    return logprobs[len(prompt) - 1 :].gather(1, torch.tensor(answer)[:, None]).sum()


@pytest.mark.parametrize("max_history", [20, 3])
def test_seqrec_is_exactly_the_sliding_window_loss(recommender, context, max_history):
    """One packed pass over trunks and branches gives each window's log-prob, windows longer than the prompt
    included.
    """
    pack = dataclasses.replace(recommender.template.pack, max_history=max_history)
    template = PromptTemplate(pack, recommender.tokenizer, recommender.index)
    bounded = TaskContext(context.index, context.interactions, template)
    examples = _collect(bounded, "seqrec")
    collator = BranchCollator(recommender.tokenizer.pad_token_id, torch.float32)
    batch = collator([example.as_row() for example in examples])
    assert batch["input_ids"].shape[0] < len(examples) or max_history == 20, "short rows are packed"
    labels = batch.pop("shift_labels")
    del batch["labels"]
    with torch.no_grad():
        logprobs = recommender.model(**batch).logits.log_softmax(-1)
        picked = logprobs.gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
        ours = picked[labels != IGNORE].sum()
        expected = torch.zeros(())
        histories = context.interactions.histories("train")
        for case in range(len(histories)):
            target = int(histories.targets_C[case])
            prompt = template.seqrec_prompt(histories.history(case))
            expected += _case_logprobs(
                recommender.model, prompt, [*template.sid_ids[target], template.end_id]
            )
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-2)


def test_training_prompt_is_the_evaluation_prompt(context):
    """The path of each branch is `seqrec_prompt` of its history: SFT reads what evaluation asks."""
    histories = context.interactions.histories("train")
    case = 0
    for example in _collect(context, "seqrec"):
        start = len(example.input_ids) - sum(example.branch_length)
        for attach, length in zip(example.branch_attach, example.branch_length, strict=True):
            path = example.input_ids[: attach + 1] + example.input_ids[start : start + length]
            target = int(histories.targets_C[case])
            prompt = context.template.seqrec_prompt(histories.history(case))
            assert path == prompt + context.template.sid_ids[target]
            start, case = start + length, case + 1
    assert case == len(histories)
