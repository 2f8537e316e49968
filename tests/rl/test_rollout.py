"""Rollouts: distinct, legal, from the policy as it is now, asked with the prompt of SFT and evaluation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rl.rollout import BeamRollout, check_group_size
from rl.train_cases import draw_train_cases, prompt_rows
from serve.decoding.recommender import Recommender
from sid_builder.errors import InputError

G = 8


class FakeTrainer:
    """What BeamRollout reads of a trainer."""

    def __init__(self, model, rows, num_generations=G):
        self.model, self.rollout_rows = model, rows
        self.num_generations = self.num_generations_eval = num_generations
        self.accelerator = SimpleNamespace(unwrap_model=lambda model: model)


@pytest.fixture
def policy(model_dir) -> Recommender:
    return Recommender.load(model_dir, device="cpu")


def repeated_rows(policy, count=3, size=G):
    rows = prompt_rows(draw_train_cases(policy, count, "all", seed=0), policy.template)
    return [row for row in rows for _ in range(size)]


def roll(policy, rows, exclude_history=True, size=G):
    rollout = BeamRollout(policy.template, exclude_history)
    return rollout([row["prompt"] for row in rows], FakeTrainer(policy.model, rows, size))


def test_beams_are_distinct_legal_and_in_beam_order(policy):
    rows = repeated_rows(policy)
    output = roll(policy, rows)
    trie, vocabulary = policy.index.trie, policy.template.vocabulary
    for group in range(3):
        part = slice(group * G, (group + 1) * G)
        codes = [vocabulary.decode(ids) for ids in output["completion_ids"][part]]
        assert len(set(codes)) == G
        assert all(trie.node_of(path) is not None and len(path) == trie.depth for path in codes)
        assert output["beam_rank"][part] == list(range(G))
        assert output["group"][part] == [group] * G
        assert not {item for path in codes for item in policy.index.semantic_ids.items_of(path)} & set(
            rows[group * G]["history"]
        )
    assert output["logprobs"] is None


def test_prompt_ids_are_those_of_sft_and_evaluation(policy):
    rows = repeated_rows(policy)
    output = roll(policy, rows)
    for row, ids in zip(rows, output["prompt_ids"], strict=True):
        history = np.array(row["history"])
        assert ids == policy.template.prompt("seqrec", history) == policy.template.seqrec_prompt(history)
        assert ids == policy.template.render("seqrec", row["target_item"], history).prompt_ids


def test_rolls_out_the_current_policy_and_restores_its_mode(policy):
    rows = repeated_rows(policy)
    policy.model.train()
    before = roll(policy, rows)["completion_ids"]
    assert policy.model.training
    assert roll(policy, rows)["completion_ids"] == before
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.std())
    assert roll(policy, rows)["completion_ids"] != before


def test_history_may_be_kept_in_the_list(policy):
    rows = repeated_rows(policy, 2, size=59)  # every SID there is
    kept = roll(policy, rows, exclude_history=False, size=59)["completion_ids"]
    assert tuple(policy.template.sid_ids[rows[0]["history"][0]]) in {tuple(ids) for ids in kept[:59]}


def test_groups_that_cannot_be_filled_are_refused(policy):
    trie = policy.index.trie
    check_group_size(trie.num_leaves - 5, trie, 5)
    with pytest.raises(InputError, match=f"num_generations: {trie.num_leaves}.*choose fewer"):
        check_group_size(trie.num_leaves, trie, 5)
    with pytest.raises(InputError, match="num_generations: 59, but a prompt has only"):
        roll(policy, repeated_rows(policy, 1, size=59), size=59)


def test_positions(policy):
    every = draw_train_cases(policy, 10_000, "all", seed=0)
    last = draw_train_cases(policy, 10_000, "last", seed=0)
    assert len(every) == 40 * 3  # 6 items: 4 in train, 3 of them with a history
    assert len(last) == 40
    assert (last.position_C == 3).all()
    drawn = draw_train_cases(policy, 10, "all", seed=1)
    again = draw_train_cases(policy, 10, "all", seed=1)
    assert (drawn.sequence_C == again.sequence_C).all()
    assert len(drawn) == 10


def test_rows_never_hold_valid_or_test_targets(policy):
    interactions = policy.interactions
    rows = prompt_rows(draw_train_cases(policy, 10_000, "all", seed=0), policy.template)
    sequences = np.split(interactions.items_I, interactions.indptr_S1[1:-1])
    allowed = {(tuple(s[:p].tolist()), int(s[p])) for s in sequences for p in range(1, len(s) - 2)}
    assert {(tuple(row["history"]), row["target_item"]) for row in rows} == allowed
