"""The verdict: KL by enumeration, what is looked at closely, cases kept apart, and what is said in words."""

import copy
import json
import re

import numpy as np
import pytest
import torch

from rl.acceptance import Acceptance, Measured, halves
from rl.acceptance_report import draw, table
from rl.policy_probes import PolicyProbes, Probed, walk
from serve.decoding.recommender import Recommender
from serve.decoding.tree_beam import decode
from serve.evaluation.metrics import RankedCases, metrics_of_ranks
from serve.evaluation.model_ranking import rank_targets
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from tests.builders import make_index, make_recommender


@pytest.fixture(scope="module")
def policy(model_dir) -> Recommender:
    return Recommender.load(model_dir, device="cpu")


def moved(policy: Recommender, amount: float = 0.02) -> Recommender:
    """The policy with noise on its weights."""
    model, generator = copy.deepcopy(policy.model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return Recommender(model, policy.tokenizer, policy.index, policy.template, policy.path)


def mixed_lengths() -> Recommender:
    """40 items of SIDs with one to three codes."""
    codes = [(a, b, c) for a in range(3) for b in range(4) for c in range(3)]
    codes += [(3, 0, -1), (3, 1, -1), (4, -1, -1), (5, -1, -1)]
    return make_recommender(make_index(np.array(codes), (6, 6, 6)))


def log_probs_by_hand(policy: Recommender, prompt: list[int]) -> np.ndarray:
    """Log-prob of every SID under the trie, float64 [M]: one plain forward pass per prefix."""
    trie, vocabulary = policy.index.trie, policy.template.vocabulary
    sids = [tuple(code for code in row if code >= 0) for row in trie.codes_ML.tolist()]
    found = np.zeros(len(sids))
    for prefix in {sid[:level] for sid in sids for level in range(len(sid))}:
        below = [at for at, sid in enumerate(sids) if sid[: len(prefix)] == prefix]
        nexts = sorted({sids[at][len(prefix)] for at in below})
        tokens = [int(vocabulary.token_ids[level][code]) for level, code in enumerate(prefix)]
        with torch.no_grad():
            logits = policy.model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].double()
        of_nexts = logits[[int(vocabulary.token_ids[len(prefix)][code]) for code in nexts]].log_softmax(0)
        for at in below:
            found[at] += float(of_nexts[nexts.index(sids[at][len(prefix)])])
    return found


@pytest.mark.parametrize("lengths", ["equal", "mixed"])
def test_kl_is_that_over_all_sids_and_less_with_narrow_beams(policy, lengths):
    start = policy if lengths == "equal" else mixed_lengths()
    after = moved(start)
    prompts = [start.template.seqrec_prompt(np.array(history)) for history in ([3], [5, 7, 9], [11, 2])]
    exact = []
    for prompt in prompts:
        log_p, log_q = (log_probs_by_hand(one, prompt) for one in (after, start))
        assert np.exp(log_p).sum() == pytest.approx(1) == np.exp(log_q).sum()
        exact.append(float((np.exp(log_p) * (log_p - log_q)).sum()))
    kl = {}
    for width in (1, 4, 60):
        path = walk(start, prompts, width)
        kl[width] = walk(after, prompts, width, path).kl(path)
        assert walk(start, prompts, width, path).kl(path).tolist() == [0, 0, 0]
    np.testing.assert_allclose(kl[60], exact, rtol=1e-4)
    assert min(exact) > 0.01
    for width in (1, 4):  # level 1 is always seen whole
        assert (kl[width] > 0).all() and (kl[width] < kl[60]).all()


def test_probes_see_lists_free_beams_and_the_way_from_the_start(policy):
    cases = policy.interactions.histories("valid").take(np.arange(6))
    probes, after = PolicyProbes(policy, cases, 20), moved(policy)
    first, second = probes.look(policy.model), probes.look(after.model)
    assert not first.kl_C.any() and (second.kl_C > 0).all()
    assert probes.look(policy.model).kl_C.tolist() == [0] * 6, "the start stays the start"
    for case in range(6):
        history = cases.history(case)
        prompt = policy.template.seqrec_prompt(history)
        (listed,) = decode(policy.model, [prompt], policy.trie, 59)
        items = [item for item in listed.items_K.tolist() if item not in history]
        assert first.level_1_C[case] == len(set(policy.index.semantic_ids.codes_NL[items[:10], 0]))
        (free,) = decode(policy.model, [prompt], policy.trie, 10, constraint="none")
        assert first.invalid_C[case] == pytest.approx(1 - free.legal_B.mean())
    assert len(set(first.level_1_C)) > 1


def test_cases_that_choose_are_not_those_that_judge(policy):
    def targets(cases):
        return {(int(s), int(p)) for s, p in zip(cases.sequence_C, cases.position_C, strict=True)}

    apart = Acceptance.on_valid(policy, 31, 50, seed=1, chooses=True)
    assert (len(apart.choosing), len(apart.judging)) == (16, 15) == halves(31, True)[::-1]
    assert not targets(apart.choosing) & targets(apart.judging)
    again = Acceptance.on_valid(policy, 31, 50, seed=1, chooses=True)
    assert targets(again.judging) == targets(apart.judging)
    assert targets(Acceptance.on_valid(policy, 31, 50, 2, True).judging) != targets(apart.judging)
    both = Acceptance.on_valid(policy, 31, 50, seed=1, chooses=False)
    assert targets(both.judging) == targets(apart.judging) | targets(apart.choosing)
    assert targets(both.choosing) == targets(apart.choosing)
    everything = Acceptance.on_valid(policy, 10**6, 50, seed=1, chooses=True)
    assert len(everything.choosing) + len(everything.judging) == 40
    assert Acceptance.on_valid(policy, 0, 50, seed=1, chooses=True) is None


def test_too_few_valid_cases(policy):
    empty = Recommender(policy.model, policy.tokenizer, policy.index, policy.template, policy.path)
    empty.interactions = Interactions.leave_one_out(["a", "b"], [np.array([1, 2]), np.array([3, 4])])
    with pytest.raises(InputError, match="valid_cases: 9, but valid has 0 cases") as caught:
        Acceptance.on_valid(empty, 9, 50, seed=0, chooses=True)
    assert "\n" not in str(caught.value) and "set valid_cases: 0" in str(caught.value)
    with pytest.raises(InputError, match="valid_cases: 1, but valid has 40 cases"):
        Acceptance.on_valid(policy, 1, 50, seed=0, chooses=True)
    assert len(Acceptance.on_valid(policy, 1, 50, seed=0, chooses=False).judging) == 1


def test_figures_and_measures_are_those_of_serve_evaluation(policy):
    acceptance = Acceptance.on_valid(policy, 40, 50, seed=0, chooses=True)
    chosen = rank_targets(policy, acceptance.choosing, 50, progress=False)
    figures, expected = acceptance.figures(policy.model), metrics_of_ranks(chosen.item_rank_C)
    assert figures == {
        **{name: expected[name] for name in ("ndcg@10", "hr@10", "hr@50")},
        "coverage@10": chosen.coverage,
    }
    acceptance.measure("before", policy.model)
    judged = rank_targets(policy, acceptance.judging, 50, progress=False)
    assert (acceptance.measured["before"].ranked.item_rank_C == judged.item_rank_C).all()
    assert acceptance.of_all_cases("before") == {"coverage@10": judged.coverage, "level_1_codes": 6}


def judged(policy: Recommender, before: list[int], after: list[int], **probed) -> Acceptance:
    """An acceptance of given ranks, each held by a hundred cases; `probed` gives [before, after] values."""
    acceptance = Acceptance.on_valid(policy, 40, 50, seed=0, chooses=False)
    for at, (when, ranks) in enumerate((("before", before), ("after", after))):
        rank_C = np.repeat(np.array(ranks, dtype=np.int32), 100)
        covered_N = np.arange(60) < (30, 20)[at]
        values = {name: np.resize(np.array(both[at], dtype=float), 200) for name, both in probed.items()}
        flat = dict.fromkeys(("level_1_C", "invalid_C", "kl_C"), np.full(200, 0.5))
        acceptance.measured[when] = Measured(RankedCases(rank_C, rank_C, covered_N), Probed(**flat | values))
    return acceptance


HELPED_AT_A_COST = ([5, 5, 40, 60], [1, 1, 0, 60])


@pytest.mark.parametrize(
    ("ranks", "probed", "verdict", "said"),
    [
        (
            ([5, 5, 40], [1, 1, 40]),
            {},
            "helped",
            r"^helped: NDCG@10 0\.2579 -> 0\.6667 \(\+158\.5%.*cases$",
        ),
        (([1, 1, 40], [5, 5, 40]), {}, "hurt", r"^hurt: NDCG@10 0\.6667 -> 0\.2579 .*cases$"),
        (([5, 5, 40], [5, 5, 40]), {}, "no clear change", r"HR@50 1\.0000 -> 1\.0000 \(\+0\.0%, \+0\.0000"),
        (HELPED_AT_A_COST, {}, "helped", r"^helped: .*; but HR@50 clearly fell, from 0\.7500 to 0\.5000$"),
        (
            ([5, 40], [1, 40]),
            {"level_1_C": ([4, 5], [2, 3]), "invalid_C": ([0.0], [0.25])},
            "helped",
            r"but level-1 codes in a top 10 clearly fell, from 4\.5000 to 2\.5000, and invalid rate of a "
            r"free beam clearly rose, from 0\.0000 to 0\.2500$",
        ),
        (([5, 40], [1, 40]), {"invalid_C": ([0.25], [0.0])}, "helped", r"cases$"),
    ],
)
def test_the_verdict_says_what_was_gained_and_at_what_cost(policy, ranks, probed, verdict, said):
    acceptance = judged(policy, *ranks, **probed)
    assert acceptance.verdict() == verdict
    assert re.search(said, acceptance.statement()), acceptance.statement()
    assert "\n" not in acceptance.statement()


def test_what_is_written_and_shown(policy, tmp_path):
    acceptance = judged(policy, *HELPED_AT_A_COST, kl_C=([0.0], [0.1, 0.3]))
    acceptance.write(tmp_path, {"kept_step": 20})
    draw(acceptance, tmp_path, "grpo run")
    assert (tmp_path / "acceptance.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "acceptance.json").read_text())
    assert content["verdict"] == "helped" and content["step"] == {"kept_step": 20}
    assert content["losses"] == ["HR@50 clearly fell, from 0.7500 to 0.5000"]
    assert content["cases"] == {"choosing": 20, "judging": 40, "probed": 40}
    row = content["differences"]["hr@50"]
    assert (row["before"], row["after"], row["difference"]) == (0.75, 0.5, -0.25)
    low, high = row["interval_95"]
    assert -0.35 < low < -0.25 < high < -0.15
    assert content["kl"]["mean"] == pytest.approx(0.2)
    assert content["kl"]["interval_95"][0] < 0.2 < content["kl"]["interval_95"][1]
    assert content["before"]["coverage@10"] == 0.5 and content["after"]["coverage@10"] == pytest.approx(1 / 3)
    lines = table(acceptance).splitlines()
    assert re.fullmatch(r"HR@50 +0\.7500 +0\.5000 +-0\.2500 +-0\.\d{4} \.\. -0\.\d{4}", lines[3])
    assert re.fullmatch(r"coverage@10 +0\.5000 +0\.3333 +-0\.1667", lines[6])
    assert lines[8].startswith("KL to the start, nats") and " 0.2000 " in lines[8]
