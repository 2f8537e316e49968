"""Rollouts: legal, from the policy as it is now, asked with the prompt of SFT and evaluation; every mode."""

import numpy as np
import pytest
import torch

from rl.rewards import rule
from rl.rewards.completions import BoundReward
from rl.rollout import Rollout
from rl.rollout_options import RolloutOptions
from rl.train_cases import draw_train_cases, prompt_rows
from serve.decoding.ranking import ItemFilter
from serve.decoding.recommender import Recommender
from serve.decoding.tree_beam import decode
from sid_builder.errors import InputError
from tests.rl.builders import RolloutTrainer
from tests.serve.test_tree_sample import assert_drawn_from, exact

G = 8


@pytest.fixture
def policy(model_dir) -> Recommender:
    return Recommender.load(model_dir, device="cpu")


def train_rows(policy, count=3):
    return prompt_rows(draw_train_cases(policy, count, "all", seed=0), policy.template)


def roll(policy, cases, size=G, exclude_history=True, process=0, step=0, **options):
    rollout = Rollout(policy.template, RolloutOptions(**options), exclude_history)
    return RolloutTrainer(policy.model, cases, size, process, step).roll(rollout)


def leaves_of(policy, output, size=G):
    """Leaves of the trie, [B, G]."""
    codes = [policy.template.vocabulary.decode(ids) for ids in output["completion_ids"]]
    return np.array([policy.index.trie.leaf_of(path) for path in codes]).reshape(-1, size)


def beam_of(policy, case, k):
    prompt = policy.template.seqrec_prompt(case["history"])
    (ranking,) = decode(
        policy.model, [prompt], policy.trie, k, [ItemFilter(exclude=np.array(case["history"]))]
    )
    return [policy.index.trie.leaf_of(path) for path in map(tuple, ranking.codes_BL)], ranking.beam_scores_B


@pytest.mark.parametrize("options", [{}, {"mode": "sample"}, {"mode": "mixed", "oversample": 1.5}])
def test_completions_are_legal_and_in_rank_order(policy, options):
    cases = train_rows(policy)
    output = roll(policy, cases, **options)
    leaves = leaves_of(policy, output)
    scores = np.reshape(output["beam_score"], (-1, G))
    ranks = np.reshape(output["beam_rank"], (-1, G))
    for group, case in enumerate(cases):
        assert not set(leaves[group]) & set(policy.index.trie.leaf_of_item_N[case["history"]])
        assert (np.diff(scores[group]) <= 0).all()
        distinct = list(dict.fromkeys(leaves[group]))
        assert (len(distinct) == G) or options.get("mode") == "sample"
        assert ranks[group].tolist() == [distinct.index(leaf) for leaf in leaves[group]]
        log_probs = exact(policy, policy.template.seqrec_prompt(case["history"]))[1]
        np.testing.assert_allclose(scores[group], log_probs[leaves[group]], atol=1e-4)
    assert output["group"] == [group for group in range(3) for _ in range(G)]
    assert output["logprobs"] is None


def test_beams_are_those_of_evaluation(policy):
    cases = train_rows(policy)
    leaves = leaves_of(policy, roll(policy, cases))
    for group, case in enumerate(cases):
        assert leaves[group].tolist() == beam_of(policy, case, G)[0]


def test_draws_come_as_often_as_the_policy_makes_them(policy):
    """Under the history's filter, at a temperature."""
    (case,) = train_rows(policy, 1)
    leaves = leaves_of(policy, roll(policy, [case], 3000, mode="sample", temperature=1.5), 3000)
    item_filter = ItemFilter(exclude=np.array(case["history"]))
    prompt = policy.template.seqrec_prompt(case["history"])
    assert_drawn_from(leaves[0], exact(policy, prompt, 1.5, item_filter)[0])


def test_a_mixed_group_is_a_beam_and_draws_from_outside_of_it(policy):
    """One draw beside three beams, 1,500 times: the policy's probabilities of what the beam left out."""
    (case,) = train_rows(policy, 1)
    leaves = leaves_of(policy, roll(policy, [case] * 1500, 4, mode="mixed", sampled=0.25), 4)
    beam, _ = beam_of(policy, case, 3)
    outside = [[leaf for leaf in group if leaf not in beam] for group in leaves]
    assert all(set(beam) < set(group) for group in leaves) and {len(rest) for rest in outside} == {1}
    prompt = policy.template.seqrec_prompt(case["history"])
    probs, _ = exact(policy, prompt, item_filter=ItemFilter(exclude=np.array(case["history"])))
    probs[beam] = 0
    assert_drawn_from(np.concatenate(outside), probs / probs.sum())


def test_prompt_ids_are_those_of_sft_and_evaluation(policy):
    cases = train_rows(policy)
    output = roll(policy, cases)
    for case, ids in zip(cases, output["prompt_ids"][::G], strict=True):
        history = np.array(case["history"])
        assert ids == policy.template.prompt("seqrec", history) == policy.template.seqrec_prompt(history)
        assert ids == policy.template.render("seqrec", case["target_item"], history).prompt_ids


@pytest.mark.parametrize("mode", ["beam", "sample", "mixed"])
def test_rolls_out_the_current_policy_and_restores_its_mode(policy, mode):
    cases = train_rows(policy)
    policy.model.train()
    before = roll(policy, cases, mode=mode)["completion_ids"]
    assert policy.model.training
    assert roll(policy, cases, mode=mode)["completion_ids"] == before
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.std())
    assert roll(policy, cases, mode=mode)["completion_ids"] != before


@pytest.mark.parametrize("mode", ["sample", "mixed"])
def test_draws_follow_the_seed_the_step_and_the_place(policy, mode):
    cases = train_rows(policy, 4)
    rollout = Rollout(policy.template, RolloutOptions(mode), True)

    def drawn(process=0, step=0, part=slice(0, 4), by=rollout):
        return RolloutTrainer(policy.model, cases[part], G, process, step).roll(by)["completion_ids"]

    first, second, later = drawn(), drawn(), drawn(step=1)
    assert first != second and later not in (first, second)
    resumed = Rollout(policy.template, RolloutOptions(mode), True)
    assert drawn(step=1, by=resumed) == later
    halves = [
        drawn(process, 0, part, by=Rollout(policy.template, RolloutOptions(mode), True))
        for process, part in enumerate((slice(0, 2), slice(2, 4)))
    ]
    assert halves[0] + halves[1] == first


def test_history_may_be_kept_in_the_list(policy):
    cases = train_rows(policy, 2)
    kept = roll(policy, cases, 59, exclude_history=False)["completion_ids"]  # every SID there is
    assert tuple(policy.template.sid_ids[cases[0]["history"][0]]) in {tuple(ids) for ids in kept[:59]}


def test_a_hit_among_more_candidates_takes_the_last_place(policy):
    (case,) = train_rows(policy, 1)
    beam, scores = beam_of(policy, case, 12)
    hit = int(policy.index.trie.leaf_items_V[beam[10]])
    assert policy.index.trie.leaf_of_item_N[hit] == beam[10]
    output = roll(policy, [{**case, "target_item": hit}], oversample=1.5)
    assert leaves_of(policy, output)[0].tolist() == [*beam[: G - 1], beam[10]]
    assert output["hit"] == [False] * (G - 1) + [True]
    assert output["beam_rank"] == list(range(G))
    np.testing.assert_allclose(output["beam_score"], scores[[*range(G - 1), 10]], atol=1e-5)


@pytest.mark.parametrize("mode", ["beam", "sample", "mixed"])
def test_truth_is_added_once_with_its_log_prob(policy, mode):
    """In the place of the last completion of a group without a hit, in its rank by score; nowhere else."""
    cases = train_rows(policy, 40)
    plain, added = (roll(policy, cases, mode=mode, add_ground_truth=flag) for flag in (False, True))
    before, after = leaves_of(policy, plain), leaves_of(policy, added)
    truths = policy.index.trie.leaf_of_item_N[[case["target_item"] for case in cases]]
    missed = (before != truths[:, None]).all(axis=1)
    assert missed.any() and not missed.all()
    assert np.reshape(added["hit"], (-1, G)).any(axis=1).all()
    scores = np.reshape(added["beam_score"], (-1, G))
    for group, case in enumerate(cases):
        if not missed[group]:
            assert after[group].tolist() == before[group].tolist()
            continue
        assert (after[group] == truths[group]).sum() == 1
        assert len(set(before[group]) - set(after[group])) <= 1
        (place,) = np.flatnonzero(after[group] == truths[group])
        log_probs = exact(policy, policy.template.seqrec_prompt(case["history"]))[1]
        assert scores[group, place] == pytest.approx(log_probs[truths[group]], abs=1e-4)
        assert (np.diff(scores[group]) <= 0).all()


def resampling(policy, cases, dataset, lucky, **options):
    """A rollout under a reward that tells completions apart for the targets `lucky` alone."""

    def reward(target_item, beam_rank, **_):
        pairs = zip(target_item, beam_rank, strict=True)
        return [float(target in lucky and rank == 0) for target, rank in pairs]

    rollout = Rollout(policy.template, RolloutOptions(idle_groups="resample", **options), True)
    trainer = RolloutTrainer(policy.model, cases, G, dataset=dataset, rewards=[reward])
    return trainer, trainer.roll(rollout)


def test_idle_groups_make_place_for_other_prompts(policy):
    dataset = train_rows(policy, 60)
    cases, others = dataset[:6], dataset[6:]
    lucky = {cases[2]["target_item"]} | {case["target_item"] for case in others[::2]}
    was_idle = [case["target_item"] not in lucky for case in cases]
    trainer, output = resampling(policy, cases, dataset, lucky, resample_rounds=20)
    now = trainer.rollout_rows[::G]
    for case, replaced, idle in zip(cases, now, was_idle, strict=True):
        assert (replaced["prompt"] == case["prompt"]) is not idle
        assert replaced["target_item"] in lucky
    prompts = [row["prompt"][-1]["content"] for row in now]
    assert len(set(prompts)) == 6
    assert all(row["prompt"] == now[at // G]["prompt"] for at, row in enumerate(trainer.rollout_rows))
    assert output["prompt_ids"][::G] == [policy.template.seqrec_prompt(row["history"]) for row in now]
    assert output["group"] == [group for group in range(6) for _ in range(G)]
    for group, case in enumerate(now):
        assert leaves_of(policy, output)[group].tolist() == beam_of(policy, case, G)[0]
    assert trainer.shares == {"idle_groups": [np.mean(was_idle)]}


def test_resampling_ends(policy):
    """After so many rounds, or when there are no other prompts: what is idle stays, and keeps its prompt."""
    dataset = train_rows(policy, 30)
    for rows, rounds in ((dataset, 2), (dataset[:6], 20)):
        trainer, _ = resampling(policy, dataset[:6], rows, lucky=set(), resample_rounds=rounds)
        now = [row["prompt"] for row in trainer.rollout_rows[::G]]
        assert now == [case["prompt"] for case in dataset[:6]]
        assert trainer.shares == {"idle_groups": [1.0]}


def test_resampling_rewards_see_what_trl_shows_them(policy):
    """The real reward, through the adapter that TRL calls."""
    dataset = train_rows(policy, 100)
    reward = BoundReward("rule", rule.reward, policy.index, policy.template.vocabulary)
    rollout = Rollout(policy.template, RolloutOptions(idle_groups="resample", resample_rounds=30), True)
    trainer = RolloutTrainer(policy.model, dataset[:6], G, dataset=dataset, rewards=[reward])
    output = trainer.roll(rollout)
    assert trainer.shares["idle_groups"][0] > 0
    assert np.reshape(output["hit"], (-1, G)).any(axis=1).all()


def test_a_group_larger_than_the_catalogue_holds_repeats_or_is_refused(policy):
    cases = train_rows(policy, 1)
    for options in ({}, {"mode": "mixed"}):
        with pytest.raises(InputError, match="num_generations: 70, but a prompt has only"):
            roll(policy, cases, 70, **options)
    assert len(roll(policy, cases, 70, mode="sample")["completion_ids"]) == 70


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
