"""`serve.evaluate_search`: lists of a model and of search engines, what is left out of them, the tables."""

import json

import numpy as np
import pytest

from prompts.intents import Intent, Intents
from serve import evaluate_search
from serve.evaluation import search_engines
from serve.evaluation.search import LIST_SIZE, SearchCases, SearchLists, model_lists, search_prompt
from serve.evaluation.search_engines import bm25_scores, engine_lists
from serve.evaluation.search_report import ALL, METRICS, case_values, slices_of, summarise
from sid_builder.artifact import open_artifact, writing
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex
from tests.builders import make_recommender

KINDS = ("tent", "lamp", "boot", "jacket")
COLOURS = ("red", "blue", "green", "black", "white")
CODES = np.array([(k, c, n) for k in range(4) for c in range(5) for n in range(3)], dtype=np.int32)


def make_shop(removed=()):
    rows = [
        {
            "item_id": f"P{n}",
            "title": f"{COLOURS[c]} {KINDS[k]} model {'abc'[m]}",
            "brand": ("Aurora", "Cairn")[m % 2],
            "categories": [KINDS[k]],
            "price": 10.0 + n,
        }
        for n, (k, c, m) in enumerate(CODES.tolist())
    ]
    removed_N = np.isin(np.arange(60), removed)
    ids = SemanticIds(CODES, (4, 5, 3))
    return SidIndex(Catalog.from_rows(rows), ids, np.arange(60, dtype=np.int64), removed_N=removed_N)


@pytest.fixture(scope="module")
def shop():
    return make_shop()


@pytest.fixture(scope="module")
def shop_recommender(shop):
    return make_recommender(shop)


@pytest.fixture(scope="module")
def model_dir(shop_recommender, tmp_path_factory):
    from sft.model_directory import write_model_directory

    root, made = tmp_path_factory.mktemp("search"), shop_recommender
    sequences = [np.random.default_rng(u).permutation(60)[:6] for u in range(8)]
    with writing(root / "interactions", "interactions_for_test") as artifact:
        Interactions.leave_one_out([f"u{u}" for u in range(8)], sequences).save(artifact.path)
    pack = made.template.pack
    write_model_directory(root / "model", made.model, made.tokenizer, pack, made.index, root / "interactions")
    return root / "model"


REQUESTS = [
    Intent("query", ("a red tent",), 1, split="test", wanted={"max_price": 30.0}),
    Intent("query", ("a green boot, not from Cairn",), 36, split="test", wanted={"not_brand": ["Cairn"]}),
    Intent("query", ("a lamp", "cheaper"), 16, shown=(29,), split="test", wanted={"max_price": 38.99}),
    Intent("intention", ("something for the rain",), 50, history=(1, 2), split="test"),
    Intent("preference", ("likes red things",), user="u1", split="test"),
    Intent("query", ("a black lamp",), 24, split="valid"),
]


def write_jsonl(path, requests, catalog):
    rows = [
        {**row, "wanted": json.loads(row["wanted"])}
        for row in Intents.of(requests, catalog).table.to_pylist()
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def cases_of(*requests, exclude_history=True):
    return SearchCases(requests, exclude_history)


def lists_of(*rows):
    items = np.full((len(rows), LIST_SIZE), -1, dtype=np.int64)
    for number, row in enumerate(rows):
        items[number, : len(row)] = row
    return SearchLists(items, 1.0)


def even_items(wanted):
    """Items with an even number fit "parity", none fits "nothing"."""
    return (np.arange(60) % 2 == 0) & ("nothing" not in wanted)


# ---- figures


def test_metrics_of_lists_by_hand():
    asked = [
        Intent("query", ("x",), 7, wanted={"parity": "even"}),
        Intent("query", ("x",), 8, wanted={"nothing": True}),
        Intent("query", ("x",), 9),
    ]
    lists = lists_of([5, 7, 4, 6, *range(20, 30)], [2, 4, 6], [1, 9, 3, *range(30, 40)])
    values, ceiling_C = case_values({"s": lists}, cases_of(*asked), even_items)
    ndcg = 1 / np.log2(3)
    # 4, 6, 20, 22, 24 of the first ten are even; a list of three has seven empty places.
    expected = [[0, 1, 1, ndcg, 0.5, 0], [0, 0, 0, 0, 0, 0], [0, 1, 1, ndcg, np.nan, np.nan]]
    np.testing.assert_allclose(values["s"], expected)
    np.testing.assert_allclose(ceiling_C, [1.0, 0.0, np.nan])


def test_items_turned_down_fit_no_request():
    asked = Intent("query", ("x", "y"), 2, shown=(4,), history=(6,), wanted={"parity": 1})
    for exclude, fit in ((True, 0.1), (False, 0.2)):
        cases = cases_of(asked, exclude_history=exclude)
        values, _ = case_values({"s": lists_of([4, 6, 2, 1])}, cases, even_items)
        assert values["s"][0, METRICS.index("fit@10")] == pytest.approx(fit)


def test_rare_fits_bound_what_is_possible():
    few = np.isin(np.arange(60), [3, 4, 5])
    asked = Intent("query", ("x", "y"), 3, shown=(5,), wanted={"k": 1})
    values, ceiling_C = case_values({"s": lists_of([3, 4, 1])}, cases_of(asked), lambda wanted: few)
    assert ceiling_C[0] == pytest.approx(0.2) == values["s"][0, METRICS.index("fit@10")]


def test_slices_and_paired_differences():
    rng = np.random.default_rng(0)
    asked = [
        Intent(
            "query",
            ("x",) * (1 + n % 2),
            n % 60,
            shown=(59,) * (n % 2),
            wanted={"parity": 1} if n % 3 else {},
        )
        for n in range(90)
    ]
    cases = cases_of(*asked)
    assert {k: int(v.sum()) for k, v in slices_of(cases).items()} == {
        ALL: 90,
        "query, 1 turn": 45,
        "query, 2 turns": 45,
        "states parity": 60,
    }
    good = lists_of(*([n % 60, *range(0, 20, 2)] for n in range(90)))
    weak = lists_of(*(rng.permutation(60)[:20].tolist() for _ in range(90)))
    results = summarise({"model": good, "bm25": weak, "dense": good}, cases, even_items, seed=1)
    whole = results["slices"][ALL]
    assert whole["systems"]["model"]["r@1"] == 1.0 and whole["with_constraints"] == 60
    assert whole["differences"]["dense"]["r@10"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    against = whole["differences"]["bm25"]["fit@10"]
    assert 0 < against["low"] < against["difference"] < against["high"]
    assert "fit@10" in results["slices"]["query, 2 turns"]["systems"]["bm25"]
    again = summarise({"model": good, "bm25": weak, "dense": good}, cases, even_items, seed=1)
    assert json.dumps(again) == json.dumps(results)


def test_requests_without_constraints_have_no_fit():
    cases = cases_of(Intent("query", ("x",), 3), Intent("query", ("y",), 4))
    results = summarise({"model": lists_of([3], [1]), "bm25": lists_of([4], [4])}, cases, even_items, 0)
    whole = results["slices"][ALL]
    assert whole["highest_fit@10"] is None and "fit@10" not in whole["systems"]["model"]
    assert set(whole["differences"]["bm25"]) == {"r@10", "ndcg@10"}


# ---- systems


def test_bm25_finds_words_in_any_form_and_is_no_judge_of_negation():
    pytest.importorskip("bm25s")
    items = ["Red tents for camping", "blue jackets", "green lamp", ""]
    red, jacket, nothing, negated = bm25_scores(items, ["a red tent", "JACKET", "the", "a lamp, not green"])
    assert red.argmax() == 0 and (red > 0).sum() == 1
    assert jacket.argmax() == 1 and not nothing.any()
    assert negated.argmax() == 2, "BM25 reads the word that was ruled out as one that was asked for"


def test_engine_lists_leave_out_what_cannot_be_the_answer():
    index = make_shop(removed=(3,))
    cases = cases_of(Intent("query", ("x", "y"), 9, shown=(0,), history=(1,)), exclude_history=True)
    lists = engine_lists("engine", iter([-np.arange(60.0)]), cases, index)
    assert lists.items_CK[0, :3].tolist() == [2, 4, 5]
    kept = engine_lists(
        "engine", iter([np.zeros(60)]), cases_of(*cases.intents, exclude_history=False), index
    )
    assert kept.items_CK[0, :3].tolist() == [1, 2, 4], "ties go by item_index, the history stays"


def test_prompts_are_those_of_training(shop_recommender):
    """Word for word what sft.tasks.itemsearch renders, in its first wording."""
    template = shop_recommender.template
    alone, conversation, behind = REQUESTS[0], REQUESTS[2], REQUESTS[3]

    def read(intent):
        return template.tokenizer.decode(search_prompt(template, intent).ids)

    spell, end = template.index.semantic_ids.spell, template.tokenizer.eos_token
    assert read(alone) == f"a red tent{end}"
    assert read(conversation) == f"a lamp{end}{spell(29)}{end}cheaper{end}"
    assert read(behind) == f"{spell(1)}{spell(2)} now: something for the rain{end}"


def test_a_pack_without_a_wording_is_an_error(shop_recommender):
    import dataclasses

    from prompts.template import PromptTemplate

    template = shop_recommender.template
    tasks = {"query2sid": template.pack.tasks["query2sid"], "seqrec": template.pack.tasks["seqrec"]}
    bare = PromptTemplate(dataclasses.replace(template.pack, tasks=tasks), template.tokenizer, template.index)
    assert search_prompt(bare, REQUESTS[0]) == search_prompt(template, REQUESTS[0])
    with pytest.raises(InputError, match=r"kinds: .* no wording .* \{intention\} and a history"):
        search_prompt(bare, REQUESTS[3])


def test_model_lists_are_the_beams_without_what_is_excluded(shop_recommender):
    from serve.decoding.ranking import ItemFilter
    from serve.decoding.tree_beam import decode

    requests = [intent for intent in REQUESTS if intent.item >= 0]
    cases = cases_of(*requests)
    lists = model_lists(shop_recommender, cases, 50, "tree_beam", batch_tokens=300)
    for case, intent in enumerate(requests):
        prompt = search_prompt(shop_recommender.template, intent).ids
        left_out = ItemFilter(exclude=np.array([*intent.shown, *intent.history], dtype=np.int64))
        (ranking,) = decode(shop_recommender.model, [prompt], shop_recommender.trie, 50, [left_out])
        assert lists.items_CK[case].tolist() == ranking.items_K[:LIST_SIZE].tolist()
        assert not set(lists.items_CK[case].tolist()) & {*intent.shown, *intent.history}


def test_a_long_request_is_cut_as_in_training(shop_recommender):
    long = Intent("query", ("a red tent " * 300,), 4)
    prompt, template = search_prompt(shop_recommender.template, long), shop_recommender.template
    assert prompt.ids == template.render("itemsearch", 4, query=long.text).prompt_ids
    with pytest.warns(UserWarning, match=r"max_prompt_tokens: 1 prompt\(s\) were over .* tokens"):
        lists = model_lists(shop_recommender, cases_of(REQUESTS[0], long), 50, "tree_beam", 4096)
    assert (lists.items_CK >= 0).any(axis=1).all()


# ---- command


def run(model_dir, intents, output_dir, *flags):
    argv = ["--model", str(model_dir), "--intents", intents, "--output_dir", str(output_dir)]
    return evaluate_search.main([*argv, "--device", "cpu", *map(str, flags)])


def test_command_writes_results_tables_and_picture(model_dir, shop, tmp_path, capsys):
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("bm25s")
    intents = write_jsonl(tmp_path / "intents.jsonl", REQUESTS, shop.catalog)
    results = run(model_dir, intents, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (tmp_path / "out" / "search.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "out" / "table.md").read_text() in capsys.readouterr().out
    open_artifact(tmp_path / "out", evaluate_search.RESULTS_KIND).verify_hashes()
    assert results["order"] == ["model", "bm25", "dense"] and results["num_cases"] == 4
    assert results["exclude_history"] is True
    slices = results["slices"]
    assert {name: part["cases"] for name, part in slices.items()} == {
        ALL: 4,
        "intention, 1 turn, behind a history": 1,
        "query, 1 turn": 2,
        "query, 2 turns": 1,
        "states max_price": 2,
        "states not_brand": 1,
    }
    # Engines read plain words: both find the red tent. The encoder does not know what "not Aurora" leaves.
    assert slices["query, 1 turn"]["systems"]["bm25"]["r@10"] == 1.0
    assert slices["query, 1 turn"]["systems"]["dense"]["r@10"] >= 0.5
    only = run(model_dir, intents, tmp_path / "one", "--kinds", "intention", "--exclude_history", "no")
    assert only["num_cases"] == 1 and only["exclude_history"] is False


def test_sample_of_cases_is_drawn_by_seed(model_dir, shop, tmp_path):
    from serve.evaluation.search import select_cases

    requests = [Intent("query", (f"number {n}",), n, split="test") for n in range(40)]
    intents = Intents.of(requests, shop.catalog)
    first, again, other = (
        select_cases(intents, ("query",), "test", shop, 10, seed, True).texts for seed in (0, 0, 1)
    )
    assert first == again != other and len(first) == 10
    assert len(select_cases(intents, ("query",), "test", make_shop(removed=(5,)), 0, 0, True)) == 39


def test_intents_of_another_catalogue_are_refused(model_dir, tmp_path):
    rows = [{"item_id": "Q1", "title": "a"}, {"item_id": "P3", "title": "b"}]
    other = Catalog.from_rows(rows)
    with writing(tmp_path / "intents", "intents") as artifact:
        Intents.of([Intent("query", ("x",), 1, history=(0,), split="test")], other).write(artifact.path)
    with pytest.raises(InputError, match="another catalogue: it speaks of 'Q1'.*60 items"):
        run(model_dir, str(tmp_path / "intents"), tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_beams", 5], "num_beams: 5"),
        (["--kinds", "preference"], "kinds: .*preference.*no other"),
        (["--split", "train"], "--split"),
        (["--decoder", "nosuch"], "decoder: 'nosuch'"),
        (["--model", "missing"], "missing: no such directory"),
        (["--intents", "missing.jsonl"], "intents: 'missing.jsonl' does not exist"),
        (["--text_template", "none"], "text_template: 'none' has no field"),
        (["--output_dir", "."], "output_dir"),
        (["--split", "valid", "--kinds", "intention"], "split: 'valid' holds no intention.*'test': 5"),
        (["--encoder", "/no/such/encoder"], "encoder: /no/such/encoder is no directory"),
    ],
)
def test_bad_arguments_are_one_line(model_dir, shop, tmp_path, flags, message):
    intents = write_jsonl(tmp_path / "intents.jsonl", REQUESTS, shop.catalog)
    with pytest.raises(InputError, match=message) as caught:
        run(model_dir, intents, tmp_path / "out", *flags)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("module", "extra"), [("bm25s", "search"), ("sentence_transformers", "embed")])
def test_missing_library_names_its_extra(model_dir, shop, tmp_path, monkeypatch, module, extra):
    monkeypatch.setattr(search_engines, "find_spec", lambda name: None if name == module else object())
    intents = write_jsonl(tmp_path / "intents.jsonl", REQUESTS, shop.catalog)
    with pytest.raises(InputError, match=rf"{module}: is not installed; pip install 'sidereal\[{extra}\]'"):
        run(model_dir, intents, tmp_path / "out")
