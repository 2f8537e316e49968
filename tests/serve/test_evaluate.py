"""`serve.evaluate` from a model directory to its results, in process."""

import json

import numpy as np
import pytest

from serve import evaluate
from serve.evaluation.metrics import metrics_of_ranks
from serve.evaluation.model_ranking import flat_metrics, rank_targets, sample_cases, target_ranks
from sid_builder.artifact import open_artifact, writing
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from tests.builders import make_index, make_recommender


@pytest.fixture(scope="module")
def interactions(small_index):
    rng = np.random.default_rng(3)
    sequences = [
        rng.choice(small_index.catalog.num_items, rng.integers(3, 9), replace=False) for _ in range(60)
    ]
    return Interactions.leave_one_out([f"u{i}" for i in range(60)], sequences)


@pytest.fixture(scope="module")
def model_dirs(recommender, interactions, tmp_path_factory):
    """Two tiny models over the same catalogue."""
    from sft.model_directory import write_model_directory

    root = tmp_path_factory.mktemp("models")
    with writing(root / "interactions_only", "interactions_for_test") as artifact:
        interactions.save(artifact.path)
    for name, seed in (("first", 0), ("second", 1)):
        made = make_recommender(recommender.index, seed=seed)
        write_model_directory(
            root / name,
            made.model,
            made.tokenizer,
            made.template.pack,
            made.index,
            root / "interactions_only",
        )
    return root


def test_command_writes_results_tables_and_picture(model_dirs, capsys):
    argv = ["--model", str(model_dirs / "first"), "--also", str(model_dirs / "second"), "--device", "cpu"]
    results = evaluate.main([*argv, "--split", "valid", "--max_cases", "25", "--batch_tokens", "1000"])
    output = model_dirs / "first_valid_results"
    artifact = open_artifact(output, evaluate.RESULTS_KIND)
    assert json.loads((output / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (output / "metrics.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert (output / "table.md").read_text() in printed
    assert results["order"] == ["popularity", "one-hop", "first", "second"]
    assert results["num_cases"] == 25
    for name in ("first", "second"):
        row = results["rows"][name]
        assert row["num_beams"] == 25 * 50
        assert row["invalid_rate"] == row["duplicate_rate"] == 0.0
        assert row["item"]["hr@1"] <= row["item"]["hr@50"] <= row["sid"]["hr@50"]
    assert set(results["differences"]) == {"popularity", "one-hop", "second"}
    assert results["exclude_history"] is True
    assert {"version", "commit"} <= set(results["code"])
    assert all(len(entry["sha256"]) == 64 for entry in results["inputs"].values())
    assert artifact.manifest["seeds"] == {"sample_and_bootstrap": 0}


def test_floors_alone_before_anything_is_trained(small_index, interactions, model_dirs, tmp_path):
    from tests.sft.builders import write_sids

    sids = write_sids(tmp_path / "sids", small_index, interactions)
    results = evaluate.main(["--model", str(sids), "--split", "valid"])
    assert results["order"] == ["popularity", "one-hop"] and results["compared_with"] == "popularity"
    beside = evaluate.main(
        ["--model", str(model_dirs / "first"), "--split", "valid", "--output_dir", str(tmp_path / "beside")]
    )
    for floor in results["order"]:
        assert results["rows"][floor]["item"] == beside["rows"][floor]["item"]


def test_free_beam_reports_what_is_invalid(model_dirs):
    argv = [
        "--model",
        str(model_dirs / "first"),
        "--max_cases",
        "4",
        "--constraint",
        "none",
        "--device",
        "cpu",
    ]
    results = evaluate.main([*argv, "--output_dir", str(model_dirs / "free")])
    assert results["rows"]["first"]["invalid_rate"] > 0.5  # an untrained model seldom spells an SID


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--num_beams", "20"], "num_beams: 20"),
        (["--split", "train"], "--split"),
        (["--decoder", "nosuch"], "decoder: 'nosuch'"),
        (["--also", "missing"], "missing: no such directory"),
        (["--output_dir", "."], "output_dir"),
        (["--decoder", "generate"], "exclude_history no"),
    ],
)
def test_bad_arguments_are_one_line(model_dirs, argv, words):
    with pytest.raises(InputError, match=words) as caught:
        evaluate.main(["--model", str(model_dirs / "first"), "--max_cases", "2", "--device", "cpu", *argv])
    assert "\n" not in str(caught.value)
    assert not (model_dirs / "first_test_results").exists()


def test_models_of_another_catalogue_are_refused(model_dirs, interactions):
    from sft.model_directory import write_model_directory

    index = make_index(np.array([[0, 0], [0, 1], [1, 0]]), (2, 2))
    made = make_recommender(index)
    other = model_dirs / "other"
    write_model_directory(
        other, made.model, made.tokenizer, made.template.pack, index, model_dirs / "interactions_only"
    )
    with pytest.raises(InputError, match="another catalogue"):
        evaluate.main(["--model", str(model_dirs / "first"), "--also", str(other), "--max_cases", "2"])


def test_ranks_match_a_plain_search_of_the_lists(recommender, interactions):
    """Batching, sorting by length and the history filter change nothing."""
    from serve.decoding.ranking import ItemFilter
    from serve.decoding.tree_beam import decode

    histories = sample_cases(interactions.histories("test"), 20, seed=1)
    ranked = rank_targets(recommender, histories, batch_tokens=700, progress=False)
    for case in range(len(histories)):
        history, target = histories.history(case), int(histories.targets_C[case])
        prompt = recommender.template.prompt("seqrec", history)
        item_filter = ItemFilter(exclude=history)
        (ranking,) = decode(recommender.model, [prompt], recommender.trie, 50, [item_filter])
        items = ranking.items_K.tolist()
        assert not set(items) & set(history.tolist())
        assert ranked.item_rank_C[case] == (items.index(target) + 1 if target in items else 0)
    assert ranked.covered_N.sum() >= 10
    flat = flat_metrics(ranked)
    assert flat["hr@10"] == metrics_of_ranks(ranked.item_rank_C)["hr@10"]


def test_whole_history_is_excluded_though_the_prompt_is_bounded(recommender):
    sequence = np.random.default_rng(0).permutation(300)[:60]
    interactions = Interactions.leave_one_out(["u"], [sequence])
    histories = interactions.histories("test")
    assert len(recommender.template.bounded_history(histories.history(0))) == 20
    ranked = rank_targets(recommender, histories, num_beams=300, progress=False)
    assert ranked.item_rank_C[0] >= 1
    assert not ranked.covered_N[sequence[:-1]].any()


def test_model_in_training_is_left_in_training(recommender, interactions):
    recommender.model.train()
    try:
        rank_targets(recommender, interactions.histories("test").take(np.arange(2)), progress=False)
        assert recommender.model.training
    finally:
        recommender.model.eval()


def test_target_ranks_of_collided_items(small_index):
    trie = small_index.trie
    leaf = int(np.argmax(trie.leaf_size_M))
    group = trie.items_of_leaf(leaf).tolist()
    alone = [int(trie.items_of_leaf(i)[0]) for i in range(3) if i != leaf]
    listed = np.array([alone[0], *group, alone[1]])
    assert target_ranks(listed, group[-1], trie) == (1 + len(group), 2)
    assert target_ranks(listed, alone[1], trie) == (2 + len(group), 3)
    assert target_ranks(listed[:-2], group[-1], trie) == (0, 2)
    assert target_ranks(listed, -1, trie) == (0, 0)


def test_sample_is_drawn_by_seed(interactions):
    histories = interactions.histories("test")
    first, again, other = (sample_cases(histories, 10, seed).sequence_C for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert sample_cases(histories, 0) is histories


def test_wordings_are_ranked_each_and_reported_together(model_dirs, capsys):
    """Beside the usual tables, which stay those of the first wording."""
    argv = ["--model", str(model_dirs / "first"), "--device", "cpu", "--max_cases", "40", "--split", "valid"]
    usual = evaluate.main([*argv, "--output_dir", str(model_dirs / "usual")])
    assert "wordings" not in usual and "wording" not in (model_dirs / "usual" / "table.md").read_text()
    capsys.readouterr()
    asked = evaluate.main([*argv, "--output_dir", str(model_dirs / "asked"), "--wordings", "all"])
    assert asked["rows"]["first"]["item"] == usual["rows"]["first"]["item"]
    spread = asked["wordings"]["first"]
    assert [entry["held_out"] for entry in spread["each"]] == [False, True, True]
    assert spread["each"][0]["ndcg@10"] == usual["rows"]["first"]["item"]["ndcg@10"]
    assert len({entry["ndcg@10"] for entry in spread["each"]}) > 1, "another wording is another prompt"
    for name in ("hr@10", "ndcg@10"):
        values = [entry[name] for entry in spread["each"]]
        assert spread[name] == {"mean": np.mean(values), "min": min(values), "max": max(values)}
    printed = capsys.readouterr().out
    assert "| first (3) |" in printed and f"{spread['hr@10']['mean']:.4f}" in printed
    assert "| first, held out: `{history_sids} and then?` |" in printed


def test_a_wording_asks_with_its_own_prompts(recommender, interactions):
    from serve.decoding.ranking import ItemFilter
    from serve.decoding.tree_beam import decode

    histories = sample_cases(interactions.histories("test"), 8, seed=1)
    ranked = rank_targets(recommender, histories, progress=False, wording=2)
    for case in range(len(histories)):
        prompt = recommender.template.prompt("seqrec", histories.history(case), 2)
        seen = [ItemFilter(exclude=histories.history(case))]
        items = decode(recommender.model, [prompt], recommender.trie, 50, seen)[0].items_K.tolist()
        target = int(histories.targets_C[case])
        assert ranked.item_rank_C[case] == (items.index(target) + 1 if target in items else 0)


def test_wordings_that_are_not_there(model_dirs, small_index, interactions, tmp_path):
    import dataclasses

    from prompts.pack import PromptPack
    from serve.evaluate import chosen_wordings
    from tests.sft.builders import write_sids

    pack = PromptPack.load("plain")
    assert chosen_wordings(pack, "all") == [0, 1, 2] and chosen_wordings(pack, "first") == [0]
    assert chosen_wordings(pack, "held_out") == [1, 2] and chosen_wordings(pack, "trained") == [0]
    trained = [template for template in pack.tasks["seqrec"] if not template.held_out]
    with pytest.raises(InputError, match="wordings: 'held_out', and the model's prompt pack holds no"):
        chosen_wordings(dataclasses.replace(pack, tasks={"seqrec": trained}), "held_out")
    sids = write_sids(tmp_path / "sids", small_index, interactions)
    with pytest.raises(InputError, match="wordings: 'all', and floors read none"):
        evaluate.main(["--model", str(sids), "--wordings", "all"])
    with pytest.raises(InputError, match="--wordings"):
        evaluate.main(["--model", str(model_dirs / "first"), "--wordings", "second"])
