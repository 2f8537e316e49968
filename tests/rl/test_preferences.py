"""Where preferences come from: beams, draws, feedback, rewards; what never enters; the artefact."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prompts.template import PromptTemplate
from rl import NEGATIVES, preferences
from rl.negatives.feedback import FeedbackNegatives, FeedbackOptions
from rl.negatives.weighted import WeightedNegatives
from rl.preference_cases import PromptCase, cases_of
from rl.preference_files import open_preferences
from rl.preference_options import PreferenceOptions, source_options
from rl.preference_sets import PreferenceMaker
from rl.preferences import make_preferences
from serve.decoding.ranking import ItemFilter
from serve.decoding.recommender import Recommender
from serve.decoding.tree_beam import decode
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.registry import resolve
from tests.rl.builders import make_model_dir


@pytest.fixture(scope="module")
def policy(model_dir) -> Recommender:
    return Recommender.load(model_dir, device="cpu")


def sets_of(policy, options, cases=None, seed=0):
    maker = PreferenceMaker(policy, options, seed)
    cases = maker.cases(30, "all") if cases is None else cases
    return cases, list(maker.sets(cases, progress=False))


def flags(model_dir, output_dir, *more: str) -> list[str]:
    return [
        *("--model", str(model_dir), "--output_dir", str(output_dir)),
        *("--device", "cpu", "--max_prompts", "30", *more),
    ]


def with_interactions(policy, interactions) -> Recommender:
    """The same model, whose users did something else."""
    other = Recommender(policy.model, policy.tokenizer, policy.index, policy.template)
    other.interactions = interactions
    return other


def test_the_truth_against_the_best_wrong_beams(policy):
    cases, sets = sets_of(policy, PreferenceOptions(negatives={"beam": 3}, num_beams=8))
    ids, template = policy.index.semantic_ids, policy.template
    assert len(sets) == len(cases) == 30
    for case, made in zip(cases, sets, strict=True):
        assert made.prompt_ids == template.seqrec_prompt(case.history)
        assert (made.chosen.item, made.chosen.source) == (case.target, "truth")
        (beam,) = decode(policy.model, [made.prompt_ids], policy.trie, 8, [ItemFilter(exclude=case.history)])
        truth = ids.codes_NL[case.target]
        wrong = [rank for rank, codes in enumerate(beam.codes_BL) if (codes != truth).any()]
        assert [answer.rank for answer in made.rejected] == wrong[:3]
        assert made.chosen.rank == (-1 if len(wrong) == 8 else min(set(range(8)) - set(wrong)))
        for answer in (made.chosen, *made.rejected):
            assert answer.token_ids == [*template.sid_ids[answer.item], template.end_id]
        for answer, rank in zip(made.rejected, wrong, strict=False):
            assert (ids.codes_NL[answer.item] == beam.codes_BL[rank]).all()


def test_an_item_that_shares_the_targets_sid_is_never_rejected(policy):
    """Items 58 and 59 share an SID: asked for 58, with as many wrong answers as there are."""
    interactions = Interactions.leave_one_out(["u"], [np.array([3, 58, 5, 7])])
    other = with_interactions(policy, interactions)
    for source in ("beam", "random"):  # 59 SIDs, without the truth's and the history's
        options = PreferenceOptions(negatives={source: 57}, num_beams=60)
        _, (made,) = sets_of(other, options, cases_of(interactions.histories("train")))
        assert made.chosen.item == 58 and len({answer.item for answer in made.rejected}) == 57
        assert not {3, 58, 59} & {answer.item for answer in made.rejected}


def test_what_is_not_on_the_shelf_is_in_histories_only(policy):
    """Item 7 is taken off: a user had it, and everything else but the answer can be drawn."""
    index = dataclasses.replace(policy.index, stored_trie=None, removed_N=np.arange(60) == 7)
    template = PromptTemplate(policy.template.pack, policy.tokenizer, index)
    other = Recommender(policy.model, policy.tokenizer, index, template)
    other.interactions = Interactions.leave_one_out(["u"], [np.array([7, 3, 9, 5])])
    _, (made,) = sets_of(other, PreferenceOptions(negatives={"random": 57}))
    assert made.history == [7]
    assert {made.chosen.item, *(answer.item for answer in made.rejected)} == set(range(60)) - {7, 58}


@pytest.mark.parametrize("source", ["beam", "random", "popularity"])
def test_a_source_gives_what_it_is_asked_for(policy, source):
    """What every source keeps to: as many as asked, distinct, on the shelf, by seed, none that is taken."""
    thing = resolve(NEGATIVES, source, "negatives")(
        source_options(source, {}), policy.index, policy.interactions
    )
    beam_B = np.arange(20, 0, -1)
    case = PromptCase(4, np.array([1, 2]), 30)
    for count in (1, 5, 12):
        drawn = [thing.draw(case, beam_B, {7, 9}, count, np.random.default_rng(seed)) for seed in (0, 0, 1)]
        assert drawn[0] == drawn[1] and len(set(drawn[0])) == count
        assert not {7, 9} & set(drawn[0]) and all(0 <= leaf < 59 for leaf in drawn[0])
        assert (drawn[0] != drawn[2]) is (source != "beam")
    with pytest.raises(InputError, match=f"negatives.{source}: 60"):
        thing.draw(case, beam_B, {7, 9}, 60, np.random.default_rng(0))


def test_draws_follow_the_weights(policy):
    """Of items with weights 1 to 5, the last of which is refused, two drawn without replacement."""
    trie = policy.index.trie
    weights_N = np.zeros(60)
    weights_N[[10, 20, 30, 40, 50]] = [1, 2, 3, 4, 5]
    leaf = trie.leaf_of_item_N[[10, 20, 30, 40, 50]].tolist()
    source, case = WeightedNegatives("popularity", weights_N, trie), PromptCase(0, np.array([3]), 5)
    rng, firsts, seconds = np.random.default_rng(0), Counter(), Counter()
    for _ in range(4000):
        first, second = source.draw(case, np.empty(0), {leaf[4]}, 2, rng)
        firsts[first] += 1
        seconds[second] += 1
    share = {leaf[at]: (at + 1) / 10 for at in range(4)}
    second_share = {
        one: sum(share[other] * share[one] / (1 - share[other]) for other in share if other != one)
        for one in share
    }
    for counted, expected in ((firsts, share), (seconds, second_share)):
        assert {one: count / 4000 for one, count in counted.items()} == pytest.approx(expected, abs=0.03)
    source._sum_N[:] = np.cumsum(np.eye(60)[50])  # every quick draw is refused: the exact way takes over
    rng, exact = np.random.default_rng(0), Counter()
    for _ in range(4000):
        exact[source.draw(case, np.empty(0), {leaf[4]}, 1, rng)[0]] += 1
    assert {one: count / 4000 for one, count in exact.items()} == pytest.approx(share, abs=0.03)


def test_a_mixture_takes_every_source_once_and_needs_no_weights_without_beams(policy, model_dir):
    mixed = PreferenceOptions(negatives={"beam": 2, "random": 3, "popularity": 1}, num_beams=8)
    _, sets = sets_of(policy, mixed)
    for made in sets:
        assert [answer.source for answer in made.rejected] == ["beam"] * 2 + ["random"] * 3 + ["popularity"]
        assert len({tuple(answer.token_ids) for answer in (made.chosen, *made.rejected)}) == 7
        assert not set(made.history) & {answer.item for answer in made.rejected}
    options = PreferenceOptions(negatives={"random": 2})
    weightless = Recommender(None, policy.tokenizer, policy.index, policy.template, policy.path)
    assert not options.needs_beam and mixed.needs_beam
    assert sets_of(weightless, options)[1] == sets_of(policy, options)[1]
    assert sets_of(weightless, options, seed=1)[1] != sets_of(policy, options)[1]


def test_a_case_draws_the_same_whatever_is_made_beside_it(policy):
    """So several processes make what one makes."""
    options = PreferenceOptions(negatives={"beam": 1, "random": 2}, num_beams=8)
    cases, sets = sets_of(policy, options)
    halves = [sets_of(policy, options, part)[1] for part in (cases[:13], cases[13:])]
    assert halves[0] + halves[1] == sets


def test_only_prompts_whose_beam_holds_the_truth(policy):
    options = PreferenceOptions(num_beams=12)
    _, every = sets_of(policy, options)
    _, hits = sets_of(policy, PreferenceOptions(num_beams=12, only_hits=True))
    assert hits == [made for made in every if made.chosen.rank >= 0] and 0 < len(hits) < len(every)


def test_valid_and_test_are_never_asked(policy):
    """Whatever is made of train stays the same when valid and test ask for something else."""
    inter = policy.interactions
    items_I = inter.items_I.copy()
    for row in range(inter.num_sequences):
        end = inter.indptr_S1[row + 1]
        items_I[end - 2 : end] = items_I[end - 1 : end - 3 : -1]  # the valid and the test target, swapped
    changed = dataclasses.replace(inter, items_I=items_I)
    options = PreferenceOptions(negatives={"beam": 1, "popularity": 1}, num_beams=8)
    made = [sets_of(other, options)[1] for other in (policy, with_interactions(policy, changed))]
    assert made[0] == made[1]
    pairs = {(tuple(one.history), one.chosen.item) for one in made[0]}
    for split in ("valid", "test"):
        held = cases_of(inter.histories(split))
        assert not pairs & {(tuple(case.history.tolist()), case.target) for case in held}


# ------------------------------------------------------------------------------------------ rewards judge


def test_a_reward_puts_its_best_beam_against_its_worst(policy):
    """By `popularity`, a penalty: the least popular of the beam against the most popular."""
    options = PreferenceOptions(negatives={"beam": 2}, num_beams=8, rewards={"popularity": 1.0})
    cases, sets = sets_of(policy, options)
    counts = policy.interactions.train_counts(60)
    assert len(sets) == len(cases)
    for case, made in zip(cases, sets, strict=True):
        prompt = [policy.template.seqrec_prompt(case.history)]
        (beam,) = decode(policy.model, prompt, policy.trie, 8, [ItemFilter(exclude=case.history)])
        assert made.chosen.source == "beam"
        if not {58, 59} & set(beam.items_K.tolist()):  # which are one beam, worth their mean
            of_beam = sorted(counts[beam.items_K])
            assert counts[made.chosen.item] == of_beam[0]
            assert [counts[answer.item] for answer in made.rejected] == of_beam[:-3:-1]


def test_where_rewards_tell_nothing_apart_there_is_no_preference(policy):
    """`rule` alone: a set for every hit, and none for a beam without one."""
    options = PreferenceOptions(negatives={"beam": 3}, num_beams=12, rewards={"rule": 1.0})
    cases, sets = sets_of(policy, options)
    hits = sets_of(policy, PreferenceOptions(num_beams=12, only_hits=True))[1]
    assert [made.history for made in sets] == [made.history for made in hits]
    for made, hit in zip(sets, hits, strict=True):
        assert made.chosen.token_ids == hit.chosen.token_ids
        lowest = [rank for rank in range(11, -1, -1) if rank != made.chosen.rank][:3]
        assert [answer.rank for answer in made.rejected] == lowest


# --------------------------------------------------------------------------------------------- feedback


def feedback(policy, tmp_path, lines, interactions=None):
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    options = PreferenceOptions(negatives={"feedback": 2}, negative_args={"feedback": {"file": str(path)}})
    return sets_of(with_interactions(policy, interactions or policy.interactions), options, None)


def test_a_log_gives_prompts_choices_and_rejections(policy, tmp_path, capsys):
    interactions = Interactions.leave_one_out(["u", "v"], [np.array([3, 9, 5, 7, 8, 6]), np.array([1, 2, 4])])
    lines = [
        {"user": "u", "chosen": "item-5", "rejected": "item-20"},
        {"user": "u", "chosen": "item-30", "rejected": ["item-31", "item-32", "item-33"]},
        {"history": ["item-40", "item-41"], "chosen": "item-42", "rejected": ["item-43"]},
        {"user": "u", "chosen": "item-8", "rejected": "item-20"},  # valid asks for it
        {"user": "u", "chosen": "item-6", "rejected": "item-20"},  # test asks for it
        {"user": "u", "chosen": "item-9", "rejected": ["item-6", "item-21"]},  # so does it for a rejected one
    ]
    _, sets = feedback(policy, tmp_path, lines, interactions)
    found = [(made.history, made.chosen.item, [answer.item for answer in made.rejected]) for made in sets]
    assert found == [
        ([3, 9], 5, [20]),
        ([3, 9, 5, 7], 30, [31, 32]),
        ([40, 41], 42, [43]),
        ([3], 9, [21]),
    ]
    assert {answer.source for made in sets for answer in made.rejected} == {"feedback"}
    said = capsys.readouterr().out
    assert "2 lines that ask for what valid or test does" in said
    assert "1 rejected items that valid or test asks for" in said


def test_ratings_set_what_was_liked_against_what_was_disliked_later(policy):
    items = np.array([3, 9, 5, 7, 8, 6, 11, 12], dtype=np.int32)
    ratings = np.array([5, 5, 3, 1, 4, 2, 1, 1], dtype=np.float32)
    interactions = Interactions.from_csr(
        pa.array(["u"]), np.array([0, 8]), items, features_I={"rating": ratings}
    )
    source = FeedbackNegatives(FeedbackOptions(column="rating"), policy.index, interactions)
    cases = source.cases(interactions.histories("train"))
    # Train is the first six; 5 was not liked, and 11 and 12 are asked for by valid and test.
    assert [(case.target, case.logged) for case in cases] == [(9, (7, 6)), (8, (6,))]
    with pytest.raises(InputError, match=r"feedback.column: 'stars' is not a feature .* \['rating'\]"):
        FeedbackNegatives(FeedbackOptions(column="stars"), policy.index, interactions).cases(
            interactions.histories("train")
        )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {"user": "u1", "chosen": "x9", "rejected": "item-1"},
            "log.jsonl:2: chosen is 'x9', which is not in",
        ),
        ({"user": "u1", "chosen": "item-1", "rejected": ["x9"]}, "log.jsonl:2: rejected is 'x9'"),
        ({"history": ["x9"], "chosen": "item-1", "rejected": "item-2"}, "log.jsonl:2: history is 'x9'"),
        ({"user": "who", "chosen": "item-1", "rejected": "item-2"}, "log.jsonl:2: user is 'who', who is not"),
        ({"history": [], "chosen": "item-1", "rejected": "item-2"}, r"log.jsonl:2: history is \[\]"),
        ({"chosen": "item-1", "rejected": "item-2"}, "log.jsonl:2: give a user or a history"),
        ({"user": "u1", "rejected": "item-2"}, "log.jsonl:2: chosen is missing"),
        ({"user": "u1", "chosen": "item-1", "rejected": "item-1"}, "'item-1' is chosen and rejected"),
        ({"usr": "u1", "chosen": "item-1", "rejected": "item-2"}, "did you mean 'user'"),
        ("text", "log.jsonl:2: holds a str"),
    ],
)
def test_a_bad_line_of_a_log_is_named(policy, tmp_path, line, message):
    good = {"user": "u1", "chosen": "item-1", "rejected": "item-2"}
    with pytest.raises(InputError, match=message):
        feedback(policy, tmp_path, [good, line])


# -------------------------------------------------------------------------------- the command, the artefact


def test_the_command_writes_what_people_and_training_read(model_dir, policy, tmp_path, capsys):
    out = tmp_path / "preferences"
    preferences.main(flags(model_dir, out, "--negatives", '{"beam": 2, "random": 1}', "--num_beams", "8"))
    told = capsys.readouterr().out
    assert "30 sets from 30 prompts, rejected: 60 by beam, 30 by random" in told
    rows = open_preferences(out, policy.template)
    table = pq.read_table(out / "preferences.parquet").to_pylist()
    assert rows.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"] and len(rows) == 30
    item_ids = policy.index.catalog.item_ids
    for row, line in zip(rows, table, strict=True):
        items = [item_ids.index(item) for item in (line["chosen"], *line["rejected"])]
        answers = [[*policy.template.sid_ids[item], policy.template.end_id] for item in items]
        assert [row["chosen_ids"], *row["rejected_ids"]] == answers
        assert row["prompt_ids"] == policy.template.seqrec_prompt(list(map(item_ids.index, line["history"])))
    page = (out / "sample.md").read_text()
    title = policy.index.catalog.titles[item_ids.index(table[0]["chosen"])]
    assert page.count("- chosen: ") == 20 and page.count("- rejected: ") == 60
    assert f"- chosen: **{title}** `<a_" in page and "of the beam)" in page and "(random; " in page
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["seeds"] == {"seed": 0} and manifest["config"]["negatives"] == {"beam": 2, "random": 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('{"bean": 1}', "negatives: 'bean' is not known"),
        ('{"beam": 16}', "negatives.beam: 16; must be fewer than num_beams: 16"),
        ('{"random": 0}', "negatives.random: 0; give at least 1"),
        ("{}", "negatives: empty"),
        ('{"random": 60}', "negatives.random: 60, but for a prompt there are only 5[0-9] SIDs"),
        ('{"feedback": 1}', "negative_args.feedback: give file"),
    ],
)
def test_bad_negatives_leave_nothing_behind(model_dir, tmp_path, given, message):
    with pytest.raises(InputError, match=message):
        preferences.main(flags(model_dir, tmp_path / "out", "--negatives", given))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--negative_args", '{"random": {}}'], "negative_args.random: is not one of negatives"),
        (["--negative_args", '{"beam": {"width": 3}}'], "negative_args.beam.width: unknown key"),
        (["--rewards", '{"rules": 1}'], "rewards: 'rules' is not known"),
        (["--rewards", '{"rule": 1}', "--negatives", '{"random": 1}'], "judge beams alone"),
        (["--reward_args", '{"rule": {}}'], "have no effect without rewards"),
        (["--max_prompts", "0"], "max_prompts: 0"),
        (["--num_beams", "60", "--negatives", '{"beam": 59}'], "of a beam of 5[0-9] SIDs only 5[0-9] may be"),
        (
            ["--rewards", '{"rule": 1}', "--num_beams", "2", "--max_prompts", "2"],
            "no prompt gave a preference",
        ),
    ],
)
def test_bad_options_leave_nothing_behind(model_dir, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        preferences.main(flags(model_dir, tmp_path / "out", *more))
    assert not list(tmp_path.iterdir())


def test_preferences_of_another_index_vocabulary_or_pack_are_refused(policy, tmp_path):
    options = PreferenceOptions(negatives={"random": 1})
    make_preferences(policy, options, 10, "all", 0, tmp_path / "own")
    assert len(open_preferences(tmp_path / "own", policy.template)) == 10
    others = {
        "index": make_model_dir(tmp_path / "index", seed=1),
        "prompts": make_model_dir(tmp_path / "pack", pack="instruction"),
    }
    for name, path in others.items():
        made_by = Recommender.load(path, device="cpu")
        make_preferences(made_by, options, 10, "all", 0, tmp_path / f"by_{name}")
        with pytest.raises(InputError, match=f"were made with another {name} than the model to train"):
            open_preferences(tmp_path / f"by_{name}", policy.template)
    with pytest.raises(InputError, match="is a 'model' artefact, but a 'preferences' one is needed"):
        open_preferences(others["index"], policy.template)
