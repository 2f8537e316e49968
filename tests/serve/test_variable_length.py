"""SIDs of two to four codes, prefix-free: codes, trie, vocabulary, prompts, training rows and decoders.

They are what `append_token` with `only_colliding` makes, and what an index that goes on below full prefixes
looks like.
"""

import numpy as np
import pytest
import torch

from rl.rewards.completions import BoundReward
from rl.rollout import Rollout
from rl.rollout_options import RolloutOptions
from serve.decoding import tree_beam
from serve.decoding.ranking import ItemFilter
from serve.decoding.sid_walk import INLINE, ITEMS, RowTokens, SidWalk
from serve.evaluation.floors import popularity, rank_floor
from serve.evaluation.model_ranking import rank_targets
from sft import TASKS
from sft.examples import TaskContext
from sid_builder.registry import resolve
from sid_builder.repairs import RepairInput
from sid_builder.repairs.append_token import AppendTokenOptions, repair
from sid_builder.trie import END
from tests.builders import make_index, make_recommender
from tests.rl.builders import RolloutTrainer
from tests.serve.test_tree_beam import assert_same, codes_of, forced_logits, ragged_prompts, reference
from tests.sft.builders import make_interactions

LENGTHS = {2, 3, 4}


@pytest.fixture(scope="module")
def index():
    """90 items under 6 x 6 (x 6) codes; whoever shares an SID has a running index behind it."""
    rng = np.random.default_rng(11)
    codes = np.stack([rng.integers(0, 6, 90) for _ in range(3)], axis=1).astype(np.int32)
    codes[codes[:, 0] < 2, 2] = -1
    repaired = repair(AppendTokenOptions(only_colliding=True, extra_codes=1), RepairInput(codes, (6, 6, 6)))
    index = make_index(repaired.codes_NL, repaired.level_sizes)
    lengths = (index.semantic_ids.codes_NL >= 0).sum(axis=1)
    assert set(lengths.tolist()) == LENGTHS and index.semantic_ids.collision_rate == 0
    return index


@pytest.fixture(scope="module")
def made(index):
    return make_recommender(index)


def sid_of(index, item: int) -> tuple[int, ...]:
    return tuple(code for code in index.semantic_ids.codes_NL[item].tolist() if code >= 0)


def test_an_sid_is_spelt_parsed_and_found(made, index):
    ids, trie, template = index.semantic_ids, index.trie, made.template
    for item in range(ids.num_items):
        sid = sid_of(index, item)
        text = ids.spell(item)
        assert ids.parse(text) == sid and ids.items_of(sid) == [item]
        tokens = template.tokenizer.encode(text, add_special_tokens=False)
        assert tokens == template.sid_ids[item] == template.vocabulary.encode(ids.codes_NL[item])
        assert template.vocabulary.decode(tokens) == sid
        assert trie.items_of_leaf(trie.leaf_of(sid)).tolist() == [item]
        for length in range(len(sid)):
            assert trie.leaf_of(sid[:length]) is None, "the beginning of an SID is no SID"
        assert trie.leaf_of((*sid, 0)) is None


def test_prompts_without_the_tokenizer_are_those_with_it(made):
    rng = np.random.default_rng(0)
    for size in (1, 5, 40):
        history = rng.integers(0, 90, size)
        prompt = made.template.seqrec_prompt(history)
        assert prompt == made.template.prompt(
            "seqrec", history[-len(made.template.bounded_history(history)) :]
        )
        assert len(prompt) <= made.template.pack.max_prompt_tokens


@pytest.mark.parametrize("k", [5, 200])
def test_tree_beam_is_the_brute_force_beam(made, k):
    prompts = ragged_prompts(made, 2)
    for score in ("full", "trie", "sid"):
        rankings = tree_beam.decode(made.model, prompts, made.trie, k, score=score)
        for prompt, ranking in zip(prompts, rankings, strict=True):
            assert_same(ranking, *reference(made, prompt, k, score=score))
            assert [sid_of(made.index, item) for item in ranking.items_K] == codes_of(ranking)
    item_filter = ItemFilter(exclude=np.arange(0, 90, 2))
    (ranking,) = tree_beam.decode(made.model, prompts[:1], made.trie, k, [item_filter])
    assert_same(ranking, *reference(made, prompts[0], k, item_filter))


def test_a_free_beam_waits_where_an_sid_is_whole():
    """Plain search over all tokens, where a beam that spells a short SID keeps its place and score."""
    # Few codes and a head that likes their tokens, so that some beams spell whole SIDs.
    codes = [(0, a, -1) for a in range(3)] + [(1, a, b) for a in range(3) for b in range(3)]
    liked = make_recommender(make_index(np.array(codes), (2, 3, 3)), tied=False, seed=5)
    liked.model.lm_head.weight.data.mul_(0.2)
    trie, vocabulary = liked.index.trie, liked.template.vocabulary
    bias = torch.zeros(liked.model.lm_head.out_features)
    bias[torch.from_numpy(vocabulary.all_ids)] = 9.0
    liked.model.lm_head.bias = torch.nn.Parameter(bias)
    k = 40
    prompts = ragged_prompts(liked, 2)
    rankings = tree_beam.decode(liked.model, prompts, liked.trie, k, constraint="none")
    seen = set()
    for prompt, ranking in zip(prompts, rankings, strict=True):
        beams: list[tuple[list[int], float, bool]] = [([], 0.0, False)]
        for _ in range(trie.depth):
            grown = [beam for beam in beams if beam[2]]
            growing = [beam for beam in beams if not beam[2]]
            logits = forced_logits(liked.model, prompt, [[*path, 0] for path, _, _ in growing])
            for path, total, _ in growing:
                values, tokens = logits[tuple(path)].log_softmax(0).topk(k)
                for value, token in zip(values.tolist(), tokens.tolist(), strict=True):
                    codes = vocabulary.decode([*path, token])
                    whole = codes is not None and trie.leaf_of(codes) is not None
                    grown.append(([*path, token], total + value, whole))
            beams = sorted(grown, key=lambda beam: -beam[1])[:k]
        assert ranking.legal_B.tolist() == [whole for _, _, whole in beams]
        np.testing.assert_allclose(ranking.beam_scores_B, [total for _, total, _ in beams], atol=1e-4)
        expected = [vocabulary.decode(path) for path, _, whole in beams if whole]
        assert [codes for codes in codes_of(ranking) if codes] == expected
        assert [sid_of(liked.index, item) for item in ranking.items_K] == expected
        seen |= {len(codes) for codes in expected}
    assert seen == {2, 3}, "SIDs of both lengths came up"


def test_the_walk_of_the_logits_processor_ends_at_every_leaf(made):
    """After each prefix of each SID: the next codes, and the end token where it is whole."""
    index, template = made.index, made.template
    trie, end_id = index.trie, template.end_id
    walk, depth = SidWalk(made.trie, end_id), trie.depth
    said = [template.sid_ids[item][:length] for item in range(90) for length in range(5)]
    vocabulary_size = made.model.config.vocab_size
    for mode in (ITEMS, INLINE):
        tail = torch.full((len(said), depth), -1)
        for row, tokens in enumerate(said):
            if tokens:
                tail[row, depth - len(tokens) :] = torch.tensor(tokens)
        count = torch.tensor([len(tokens) for tokens in said])
        limit = torch.full_like(count, 100)
        start = torch.zeros(len(said), 2, dtype=torch.long)
        rows = RowTokens(torch.full_like(count, mode), tail, count, limit, start)
        logits = walk.constrain(torch.zeros(len(said), vocabulary_size), walk.places(rows))
        for row, tokens in enumerate(said):
            legal = set(torch.nonzero(logits[row] > -torch.inf).flatten().tolist())
            codes = template.vocabulary.decode(tokens)
            if trie.leaf_of(codes) is None and (codes or mode == ITEMS):
                following, _ = trie.children(trie.node_of(codes), len(codes))
                assert END not in following
                assert legal == {int(template.vocabulary.token_ids[len(codes)][code]) for code in following}
            elif mode == ITEMS:
                assert legal == {end_id}
            else:
                assert end_id in legal and not legal & set(template.vocabulary.token_ids[1].tolist())


def test_training_rows_parse_back_to_their_targets(made):
    context = TaskContext(made.index, make_interactions(90), made.template)
    end_id = made.template.end_id
    for task in ("seqrec", "title2sid", "title_history2sid", "query2sid"):
        targets = []
        for example in resolve(TASKS, task, "task")(context, np.random.default_rng(0)):
            labels = [label for label in example.shift_labels if label >= 0]
            answers = " ".join(map(str, labels)).split(f" {end_id}")[:-1]
            parsed = [made.template.vocabulary.decode(list(map(int, answer.split()))) for answer in answers]
            assert parsed == [sid_of(made.index, target) for target in example.target_items]
            targets += example.target_items
        assert {len(sid_of(made.index, target)) for target in targets} == LENGTHS


def test_evaluation_ranks_every_target(made):
    interactions = make_interactions(90)
    histories = interactions.histories("test")
    ranked = rank_targets(made, histories, num_beams=90, exclude_history=False, progress=False)
    assert (ranked.item_rank_C > 0).all() and ranked.invalid_beams == ranked.duplicate_beams == 0
    np.testing.assert_array_equal(ranked.item_rank_C, ranked.sid_rank_C)
    for case in range(3):
        prompt = made.template.seqrec_prompt(histories.history(case))
        sids, _ = reference(made, prompt, 90)
        assert ranked.item_rank_C[case] == 1 + sids.index(sid_of(made.index, int(histories.targets_C[case])))
    floor = rank_floor(popularity(interactions, 90), histories, made.index.trie, exclude_history=False)
    np.testing.assert_array_equal(floor.item_rank_C, floor.sid_rank_C)


@pytest.mark.parametrize("mode", ["beam", "sample", "mixed"])
def test_rollouts_and_rewards_see_whole_sids(made, mode):
    history, size = [4, 8, 15], 30
    text = made.template.user_text(made.template.pack.templates("seqrec")[0], history)
    case = {"prompt": made.template.messages(text), "history": history, "target_item": 16}
    rolled = RolloutTrainer(made.model, [case], size).roll(
        Rollout(made.template, RolloutOptions(mode), exclude_history=False)
    )
    decoded = [made.template.vocabulary.decode(ids) for ids in rolled["completion_ids"]]
    items = [made.index.semantic_ids.items_of(codes)[0] for codes in decoded]
    assert (len(set(items)) == size) is (mode != "sample") and len({len(codes) for codes in decoded}) > 1
    target = next(item for item in items if len(sid_of(made.index, item)) == 2)
    reward = BoundReward("hit", lambda rows: rows.hit_C, made.index, made.template.vocabulary)
    columns = (rolled[name] for name in ("beam_rank", "group", "beam_score"))
    values = reward(rolled["completion_ids"], [target] * size, *columns, [history] * size)
    assert values == [float(item == target) for item in items]
