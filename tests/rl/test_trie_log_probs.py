"""Log-probs over the trie's children: a distribution over the catalogue, as in decoding, in every layout."""

import numpy as np
import pytest
import torch

from rl.trie_log_probs import TrieLogProbs
from serve.decoding.tree_beam import decode
from serve.decoding.trie_step import DeviceTrie
from tests.builders import make_index, make_recommender
from tests.rl.builders import rows_with_hits
from tests.rl.update_cases import (
    DEPTH,
    assert_same_step,
    dense_trie_log_probs,
    log_probs,
    loss_and_gradients,
)


def test_probabilities_of_all_sids_add_up_to_1(trie_step, monkeypatch):
    """Every SID of the catalogue behind one prompt, and each is what a beam says it is."""
    trainer, policy, batch = trie_step
    trie = policy.index.trie
    sids = torch.tensor([policy.template.vocabulary.encode(codes) for codes in trie.codes_ML])
    prompt = batch["prompt_ids"][:1][batch["prompt_mask"][:1].bool()].tolist()
    rows = {
        "prompt_ids": torch.tensor([prompt]).expand(len(sids), -1),
        "completion_ids": sids,
        "prompt_mask": torch.ones(len(sids), len(prompt), dtype=torch.long),
        "completion_mask": torch.ones_like(sids),
    }
    with torch.no_grad():
        log_p, entropy = log_probs(trainer, rows)
    assert log_p.sum(dim=1).exp().sum() == pytest.approx(1, abs=1e-5)
    # The chain rule: the entropy of the catalogue is that of each step, by how often it is taken.
    assert (log_p.sum(dim=1).exp() * entropy.sum(dim=1)).sum() == pytest.approx(
        float(-(log_p.sum(dim=1).exp() * log_p.sum(dim=1)).sum()), abs=1e-4
    )
    monkeypatch.setattr(trainer._trie, "temperature", 1.0)
    with torch.no_grad():
        plain = log_probs(trainer, rows)[0].sum(dim=1)
    (ranking,) = decode(policy.model, [prompt], policy.trie, len(sids), score="trie")
    scores = {
        tuple(codes): score for codes, score in zip(ranking.codes_BL, ranking.beam_scores_B, strict=True)
    }
    expected = [scores[tuple(codes)] for codes in trie.codes_ML]
    np.testing.assert_allclose(plain.numpy(), expected, atol=1e-4)


def test_log_probs_and_gradients_against_masked_logits(trie_step):
    trainer, policy, batch = trie_step
    mask = batch["completion_mask"]
    results = []
    for log_p in (log_probs(trainer, batch)[0], dense_trie_log_probs(trainer, policy, batch)):
        trainer.model.zero_grad()
        (log_p * mask * batch["advantages"][:, None]).sum().backward()
        results.append(
            ((log_p * mask).detach(), {name: p.grad.clone() for name, p in trainer.model.named_parameters()})
        )
    assert_same_step(*results, atol=1e-4)


def test_trie_in_every_layout_and_for_every_policy(trie_step, monkeypatch):
    trainer, _, batch = trie_step
    shared = loss_and_gradients(trainer, batch)
    assert_same_step(loss_and_gradients(trainer, batch, shared_prompt=False), shared)
    monkeypatch.setattr(trainer.args, "per_device_train_batch_size", 4)
    assert_same_step(loss_and_gradients(trainer, batch), shared)
    monkeypatch.undo()
    # The reference is the policy as it began, which it still is; the rollout's old log-probs as well.
    trainer._step, trainer._buffered_inputs = 0, None
    inputs = trainer._prepare_inputs(rows_with_hits(trainer, trie_step[1]))
    with torch.no_grad():
        now = log_probs(trainer, inputs)[0]
    for name in ("ref_per_token_logps", "old_per_token_logps"):
        torch.testing.assert_close(inputs[name], now, atol=1e-5, rtol=1e-5)


def test_short_sids_end_without_a_choice():
    codes = np.array([(0, -1, -1), (1, 0, -1), (1, 1, 0), (1, 1, 1), (2, 0, 0)])
    recommender = make_recommender(make_index(codes, (3, 2, 2)))
    vocabulary = recommender.template.vocabulary
    trie = DeviceTrie(recommender.index.trie, vocabulary)
    head = recommender.model.get_output_embeddings()
    labels = torch.full((len(codes), DEPTH), -100)
    for row, sid in enumerate(codes):
        ids = vocabulary.encode(sid)
        labels[row, : len(ids)] = torch.tensor(ids)
    # A state that depends on the prefix alone, as a model's does.
    state = {
        prefix: torch.randn(head.weight.shape[1])
        for sid in codes.tolist()
        for prefix in (tuple(sid[:level]) for level in range(DEPTH))
    }
    hidden = torch.stack(
        [torch.stack([state[tuple(sid[:level])] for level in range(DEPTH)]) for sid in codes.tolist()]
    )
    with torch.no_grad():
        log_p, entropy = TrieLogProbs(trie, 0.7)(head, hidden, labels)
    assert log_p.sum(dim=1).exp().sum() == pytest.approx(1, abs=1e-6)
    assert (log_p[labels == -100] == 0).all() and (entropy[labels == -100] == 0).all()
    with pytest.raises(AssertionError, match="no SID of the trie"):
        TrieLogProbs(trie, 1.0)(head, hidden, labels.roll(1, dims=0)[:, [1, 0, 2]])
