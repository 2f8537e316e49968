"""Scores of given SIDs against each as a sequence of its own, and against the tree beam."""

import numpy as np
import pytest
import torch

from serve.decoding.candidate_scores import score_candidates
from serve.decoding.recommender import Recommender
from serve.decoding.tree_beam import decode
from serve.decoding.trie_step import DeviceTrie
from serve.engine.torch_engine import decode_widths
from sid_builder.errors import InputError
from tests.builders import make_index, make_recommender

PROMPTS = [[5, 9, 30, 31, 7], [12], [8, 8, 40, 41, 42, 43, 44, 45, 46]]


@torch.inference_mode()
def one_by_one(recommender, prompt, codes):
    """Log-probs of an SID's tokens behind a prompt, in a plain forward pass."""
    tokens = recommender.template.vocabulary.encode(codes)
    logits = recommender.model(torch.tensor([[*prompt, *tokens]])).logits[0].float().log_softmax(dim=-1)
    found = [float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(tokens)]
    return found + [0.0] * (len(codes) - len(found))


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_scores_are_those_of_separate_sequences(small_index, architecture):
    recommender = make_recommender(small_index, architecture)
    codes_NL = small_index.semantic_ids.codes_NL
    candidates = [codes_NL[:40], codes_NL[[7, 7, 200]], codes_NL[[299]]]
    scores = score_candidates(recommender.model, PROMPTS, candidates, recommender.trie)
    for prompt, codes_CL, scores_CL in zip(PROMPTS, candidates, scores, strict=True):
        wanted = np.array([one_by_one(recommender, prompt, codes) for codes in codes_CL])
        assert scores_CL.shape == codes_CL.shape and scores_CL.dtype == np.float32
        assert np.abs(scores_CL - wanted).max() < 1e-4


def test_sums_are_the_beams_scores(recommender):
    (ranking,) = decode(recommender.model, [PROMPTS[0]], recommender.trie, 300)
    (scores_CL,) = score_candidates(recommender.model, [PROMPTS[0]], [ranking.codes_BL], recommender.trie)
    assert np.abs(scores_CL.sum(axis=1) - ranking.beam_scores_B).max() < 1e-4


def test_short_sids_score_as_far_as_they_go():
    codes = np.array([[0, -1, -1], [1, 2, -1], [1, 3, 4], [2, 0, 0], [1, 3, 5]], dtype=np.int32)
    recommender = make_recommender(make_index(codes, (4, 4, 8)))
    (scores_CL,) = score_candidates(recommender.model, [PROMPTS[0]], [codes], recommender.trie)
    wanted = np.array([one_by_one(recommender, PROMPTS[0], row) for row in codes])
    assert np.abs(scores_CL - wanted).max() < 1e-4 and scores_CL[0, 1:].tolist() == [0, 0]


def test_bad_input(recommender):
    codes = recommender.index.semantic_ids.codes_NL[:2]
    with pytest.raises(InputError, match="an empty prompt cannot be scored"):
        score_candidates(recommender.model, [[]], [codes], recommender.trie)
    assert score_candidates(recommender.model, [], [], recommender.trie) == []
    (none,) = score_candidates(recommender.model, [[3]], [codes[:0]], recommender.trie)
    assert none.shape == (0, 3)


def test_a_code_without_a_token(recommender):
    missing = DeviceTrie(recommender.index.trie, recommender.template.vocabulary)
    missing.vocabulary.token_ids[0][3], kept = -1, missing.vocabulary.token_ids[0][3]
    try:
        with pytest.raises(InputError, match="are spelled by no tokens"):
            score_candidates(recommender.model, [[3]], [np.array([[3, 1, 1]], dtype=np.int32)], missing)
    finally:
        missing.vocabulary.token_ids[0][3] = kept


def test_beams_of_several_widths_in_one_batch(recommender: Recommender):
    """Each request keeps what a beam of its own width would have kept."""
    rng = np.random.default_rng(3)
    widths = [1, 2, 7, 300, 20, 3]
    prompts = [rng.integers(5, 200, size).tolist() for size in (3, 30, 12, 5, 40, 1)]
    together = decode_widths(recommender, prompts, widths, [None] * 6)
    for prompt, width, mine in zip(prompts, widths, together, strict=True):
        (alone,) = decode(recommender.model, [prompt], recommender.trie, width)
        assert mine.items_K.tolist() == alone.items_K.tolist()
        assert mine.codes_BL.tolist() == alone.codes_BL.tolist()
        assert np.abs(mine.beam_scores_B - alone.beam_scores_B).max() < 1e-4
