"""Every alignment task: no valid/test leakage, prompts within budget, answers that parse back to their
target.
"""

import dataclasses

import numpy as np
import pytest
import torch

from prompts.branches import IGNORE
from sft import TASKS
from sft.collators import BranchCollator
from sft.examples import TaskContext
from sft.mixture import build_table
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.registry import resolve
from tests.sft.builders import make_interactions


@pytest.fixture(scope="module")
def context(recommender):
    interactions = make_interactions(recommender.index.catalog.num_items)
    return TaskContext(recommender.index, interactions, recommender.template)


def _collect(context, task, seed=0):
    return list(resolve(TASKS, task, "task")(context, np.random.default_rng(seed)))


def _answers(example, end_id):
    """The labels, cut after each end-of-turn token."""
    answers, run = [], []
    for label in example.shift_labels:
        run += [label] if label != IGNORE else []
        if label == end_id:
            answers.append(run)
            run = []
    assert not run
    return answers


@pytest.mark.parametrize("task", sorted(TASKS))
def test_conformance(context, task):
    template, index = context.template, context.index
    examples = _collect(context, task)
    assert examples and examples == _collect(context, task), "deterministic by seed"
    for example in examples:
        assert example.task == task
        assert (
            len(example.input_ids)
            <= template.pack.max_prompt_tokens + 8 * (1 + len(example.branch_attach)) + 40
        )
        answers = _answers(example, template.end_id)
        assert len(answers) == len(example.target_items)
        for answer, target in zip(answers, example.target_items, strict=True):
            assert answer[-1] == template.end_id
            if task.endswith("title"):
                assert context.template.tokenizer.decode(answer[:-1]) == index.catalog.titles[target]
            else:
                assert template.vocabulary.decode(answer[:-1]) == tuple(index.semantic_ids.codes_NL[target])


@pytest.mark.parametrize("task", ["seqrec", "title_history2sid", "sid_history2title"])
def test_no_valid_or_test_item_is_reachable(context, task):
    """Change every held-out item: the training rows stay exactly as they were."""
    old = context.interactions
    items = old.items_I.copy()
    for split in ("valid", "test"):
        held = old.histories(split)
        items[old.indptr_S1[held.sequence_C] + held.position_C] = 0
    changed = dataclasses.replace(old, items_I=items)
    assert (items != old.items_I).any()
    assert _collect(TaskContext(context.index, changed, context.template), task) == _collect(context, task)


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
    import dataclasses

    from prompts.template import PromptTemplate

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


def test_mixture_weights(context):
    table = build_table(context, {"title2sid": 2.5, "sid2title": 1.0, "seqrec": 0.0}, seed=0)
    counts = {task: table["task"].count(task) for task in set(table["task"])}
    num_items = context.index.catalog.num_items
    assert counts["sid2title"] == num_items and "seqrec" not in counts
    assert 2.3 * num_items < counts["title2sid"] < 2.7 * num_items
    alone = build_table(context, {"sid2title": 1.0}, seed=0)
    rows = [row for row in table if row["task"] == "sid2title"]
    assert rows == list(alone), "a task's rows do not depend on the other tasks"


def test_a_task_without_examples_is_an_error(context):
    empty = Interactions.leave_one_out(["u"], [np.array([1])])
    with pytest.raises(InputError, match="task_weights.seqrec: the data holds no example"):
        build_table(TaskContext(context.index, empty, context.template), {"seqrec": 1.0}, seed=0)
