"""Intents composed from a catalogue: true of their items, held out honestly, never of valid or test."""

import dataclasses
import gzip
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from prompts.intents import Intents
from prompts.wanted import Shelf, fitting
from sft import compose_intents
from sft.intents import grammar, requests
from sft.intents.facts import CatalogFacts
from sft.intents.refinements import conversation
from sft.intents.requests import RequestWriter
from sft.intents.reviews import TrainPairs, review_requests
from sft.intents.tastes import intentions, newest_cases, preferences
from sid_builder.artifact import open_artifact
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex
from sid_builder.sources.toy import ToyArgs, load
from tests.sft.builders import write_sids

ARGS = ToyArgs(num_users=40, items_per_category=14)


@pytest.fixture(scope="module")
def shop():
    data = load(ARGS)
    codes = np.random.default_rng(0).permutation(np.unique(np.indices((8, 8, 8)).reshape(3, -1).T, axis=0))
    num_items = data.catalog.num_items
    ids = SemanticIds(codes[:num_items].astype(np.int32), (8, 8, 8))
    index = SidIndex(data.catalog, ids, data.interactions.train_counts(num_items))
    return index, data.interactions


@pytest.fixture(scope="module")
def writer(shop):
    return RequestWriter(CatalogFacts(shop[0].catalog), Shelf(shop[0].catalog))


@pytest.fixture(scope="module")
def sids(shop, tmp_path_factory):
    return write_sids(tmp_path_factory.mktemp("shop") / "sids", *shop)


def compose(sids, output_dir, *flags) -> Intents:
    compose_intents.main(["--sid_dir", str(sids), "--output_dir", str(output_dir), *map(str, flags)])
    return Intents.load(output_dir, SidIndex.load(sids / "sid_index").catalog)


def test_every_request_is_true_of_its_item_and_of_nothing_it_excludes(shop, writer):
    catalog = shop[0].catalog
    fits, prices = fitting(catalog), catalog.table["price"].to_numpy()
    columns = [catalog.table[name].to_pylist() for name in ("title", "description")]
    texts = np.array([" ".join(both).lower() for both in zip(*columns, strict=True)])
    seen: Counter[str] = Counter()
    for item in range(catalog.num_items):
        found = list(writer.requests(item, 6, np.random.default_rng(item)))
        assert len({intent.text.lower() for intent in found}) == len(found) > 3
        for intent in found:
            text, wanted = intent.text.lower(), intent.wanted
            mask_N = fits(wanted)
            assert mask_N[item] and intent.item == item, (text, wanted)
            seen.update(list(wanted))
            if "max_price" in wanted:
                assert prices[mask_N].max() <= wanted["max_price"]
            if "min_price" in wanted:
                assert prices[mask_N].min() >= wanted["min_price"]
            if {"max_price", "min_price"} & set(wanted):
                signs = ("dollars", "$", "under", *requests._CHEAP, *requests._DEAR)
                assert any(sign in text for sign in signs), text
            for word in [*wanted.get("words", ()), *wanted.get("not_words", ())]:
                assert word in text
            for word in wanted.get("words", ()):
                assert all(word in told for told in texts[mask_N])
            for word in wanted.get("not_words", ()):
                assert not any(word in told for told in texts[mask_N])
                assert any(word in told for told in texts), "it excludes something"
            for name in ("brand", "category"):
                assert wanted.get(name, "").lower().rstrip("s") in text
    assert set(seen) == {"words", "category", "brand", "not_brand", "not_words", "max_price", "min_price"}


def test_an_exclusion_excludes_something_that_fits_otherwise(shop, writer):
    """ "not red" would say nothing where no red one fits."""
    fits, told = fitting(shop[0].catalog), 0
    for item in range(0, shop[0].catalog.num_items, 3):
        for intent in writer.requests(item, 6, np.random.default_rng(item)):
            stated = {name: value for name, value in intent.wanted.items() if not name.startswith("not_")}
            if stated != intent.wanted:
                told += 1
                assert fits(stated).sum() > fits(intent.wanted).sum()
    assert told > 20


def test_what_is_held_out_is_said_in_frames_that_train_never_uses(shop, writer):
    frames = [*grammar._HELD_OUT_FOR_ONE, *grammar._HELD_OUT_FOR_SOME, *grammar._HELD_OUT_OPENINGS]
    starts = tuple(frame.partition("{")[0].lower() for frame in frames)
    told: Counter[tuple[str, bool]] = Counter()
    for item in range(shop[0].catalog.num_items):
        for intent in writer.requests(item, 6, np.random.default_rng(item), held_out=0.2):
            told[intent.split, intent.text.lower().startswith(starts)] += 1
    assert told["train", False] > 400 and not told["train", True]
    assert min(told["valid", True], told["test", True], told["valid", False], told["test", False]) > 20


def test_a_conversation_ends_where_the_data_leads(shop, writer):
    """What was shown fits all that was said before it, and not what is said next; the target fits all."""
    catalog = shop[0].catalog
    fits, prices = fitting(catalog), catalog.table["price"].to_numpy()
    brands = catalog.table["brand"].to_pylist()
    said = set()
    for item in range(catalog.num_items):
        talk = conversation(writer, item, "train", np.random.default_rng(item))
        if talk is None:
            continue
        assert 2 <= len(talk.turns) == len(talk.shown) + 1 <= 3
        assert item not in talk.shown and len(set(talk.shown)) == len(talk.shown)
        mask_N = fits(talk.wanted)
        assert mask_N[item] and not mask_N[list(talk.shown)].any()
        last, shown = talk.text.lower(), talk.shown[-1]
        if "cheaper" in last:
            assert prices[item] < prices[shown]
            said.add("cheaper")
        if last in ("not that brand", "another brand, please"):
            assert brands[item] != brands[shown]
            said.add("brand")
        if last.startswith("the same but"):
            assert last.removeprefix("the same but ") in catalog.titles[item].lower()
            said.add("same but")
        if last.startswith("the same in"):
            colour = last.removeprefix("the same in ")
            assert colour in catalog.titles[item] and colour not in catalog.titles[shown]
            said.add("colour")
        if len(talk.turns) == 3:
            said.add("three turns")
    assert said == {"cheaper", "brand", "same but", "colour", "three turns"}


def with_other_held_out(old: Interactions, item: int) -> Interactions:
    """The same train; what is held out for valid and test is `item` every time."""
    items = old.items_I.copy()
    for split in ("valid", "test"):
        held = old.histories(split)
        items[old.indptr_S1[held.sequence_C] + held.position_C] = item
    assert (items != old.items_I).any()
    return dataclasses.replace(old, items_I=items)


def test_train_knows_nothing_of_valid_and_test(shop, writer):
    """Every held-out interaction is another item; what train's users want and like stays word for word."""
    index, old = shop
    changed = with_other_held_out(old, 0)

    def of_train(interactions):
        cases = newest_cases(index, interactions, "train")
        return [
            *intentions(writer, cases, "train", 1),
            *preferences(writer.facts, cases, "train", 1),
        ]

    found = of_train(old)
    assert len(found) > 40 and found == of_train(changed)
    valid = list(intentions(writer, newest_cases(index, old, "valid"), "valid", 1))
    assert {intent.split for intent in valid} == {"valid"}
    for intent in [*found, *valid]:
        if intent.kind == "intention":
            assert writer.shelf.holds(intent.item, intent.wanted) and intent.item not in intent.history


def test_the_commands_train_knows_nothing_of_valid_and_test(shop, tmp_path):
    """The whole command, over two data sets that differ in every held-out interaction."""
    index, old = shop
    told = []
    for name, interactions in (("old", old), ("new", with_other_held_out(old, 5))):
        sids = write_sids(tmp_path / name, index, interactions)
        told.append(compose(sids, tmp_path / f"{name}_out", "--per_item", 1))
    kinds = ("query", "intention", "preference")
    assert told[0].select(kinds, "train").table.equals(told[1].select(kinds, "train").table)
    assert not told[0].select(kinds, "test").table.equals(told[1].select(kinds, "test").table)


def test_a_taste_says_what_recurs(shop, writer):
    """Every thing, quality and brand in the words is in the history; qualities and brands more than once."""
    index, interactions = shop
    titles, brands = index.catalog.titles, index.catalog.table["brand"].to_pylist()
    told = list(preferences(writer.facts, newest_cases(index, interactions, "valid"), "valid", 0))
    assert len(told) > 30 and {intent.split for intent in told} == {"valid"}
    named = 0
    for intent in told:
        texts = [titles[item] for item in intent.history]
        own = Counter(brands[item] for item in intent.history)
        for brand in set(brands):
            if brand in intent.text:
                named += 1
                assert own[brand] > 1, (intent.text, texts)
        for colour in ("red", "blue", "green", "black", "orange", "purple", "grey", "yellow"):
            if f" {colour}" in intent.text:
                assert sum(f" {colour} " in text for text in texts) > 1, (intent.text, texts)
    assert named > 20


def test_the_command_is_deterministic_and_holds_queries_out(sids, tmp_path, capsys):
    first = compose(sids, tmp_path / "a", "--per_item", 4, "--held_out", 0.1)
    assert "query" in capsys.readouterr().out
    again = compose(sids, tmp_path / "b", "--per_item", 4, "--held_out", 0.1)
    assert first.table.equals(again.table)
    other = compose(sids, tmp_path / "c", "--per_item", 4, "--seed", 1)
    assert not first.table.equals(other.table)
    sizes = {split: len(first.select(["query"], split)) for split in ("train", "valid", "test")}
    share = sizes["valid"] / sum(sizes.values())
    assert 0.07 < share < 0.13 and sizes["test"] > 0
    train = {intent.item for intent in first.select(["query"], "train")}
    held = {intent.item for intent in first.select(["query"], "test")}
    assert len(held & train) > 0.9 * len(held), "an item's other requests are in train"
    assert len(first.select(["preference"], "train")) > 30
    assert len(first.select(["preference"], "test")) == len(first.select(["intention"], "test")) == 40
    summary = open_artifact(tmp_path / "a", "intents").summary
    assert sum(summary["intents"].values()) == len(first) and 0.1 < summary["share_with_one_answer"] < 1
    page = (tmp_path / "a" / "sample.md").read_text()
    assert "## query, 3 turns" in page and page.count("\n- ") > 60


def test_all_queries_of_a_few_items_are_held_out(sids, tmp_path):
    found = compose(sids, tmp_path / "out", "--users", "false", "--held_out", 0, "--held_out_items", 0.2)
    train = {intent.item for intent in found.select(["query"], "train")}
    held = {intent.item for split in ("valid", "test") for intent in found.select(["query"], split)}
    assert not train & held and 0.1 < len(held) / len(train | held) < 0.3


@pytest.mark.parametrize(
    "rows",
    [
        [{"item_id": f"i{n}", "title": f"Soft red wool scarf number {n}"} for n in range(30)],
        [{"item_id": f"i{n}", "title": f"Brand{n % 3} torch {n}", "price": 5.0 + n} for n in range(8)],
        [{"item_id": "a", "title": "Odd"}, {"item_id": "b", "title": ""}],
    ],
    ids=["titles only", "no categories", "hardly any words"],
)  # fmt: skip
def test_catalogues_with_little_to_tell(rows):
    catalog = Catalog.from_rows(rows)
    writer = RequestWriter(CatalogFacts(catalog), Shelf(catalog))
    for item in range(catalog.num_items):
        for intent in writer.requests(item, 3, np.random.default_rng(item)):
            assert intent.text.strip() and writer.shelf.holds(item, intent.wanted)
            assert "price" in rows[item] or not {"max_price", "min_price"} & set(intent.wanted)


def review_line(shop, case: int, split: str, text: str) -> str:
    index, interactions = shop
    cases = interactions.histories(split)
    user = interactions.users[int(cases.sequence_C[case])].as_py()
    item_id = index.catalog.item_ids[int(cases.targets_C[case])]
    return json.dumps({"reviewerID": user, "asin": item_id, "summary": "", "reviewText": text})


def test_reviews_of_train_become_requests(shop, sids, tmp_path):
    index, interactions = shop
    thing = index.catalog.row(int(interactions.histories("train").targets_C[0]))["categories"][-1]
    sentence = f"Very lightweight {thing} for muddy days"
    path = tmp_path / "reviews.jsonl"
    lines = [
        review_line(shop, 0, "train", f"{sentence}. I love it. My husband has two {thing}. It broke."),
        review_line(shop, 0, "test", f"Another {thing} that lasts"),
        json.dumps({"user_id": "nobody", "parent_asin": "P0000", "text": f"A {thing} indeed", "title": ""}),
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    pairs = TrainPairs(interactions, index.catalog.item_ids)
    told = list(review_requests(path, pairs, CatalogFacts(index.catalog)))
    assert told == [(int(interactions.histories("train").targets_C[0]), sentence.lower())]
    found = compose(
        sids, tmp_path / "out", "--reviews", path, "--per_item", 0, "--conversations", 0, "--users", "false"
    )
    assert [intent.text for intent in found] == [sentence.lower()]
    path.write_text(lines[0] + '\n{"asin": "x"}', encoding="utf-8")
    with pytest.raises(InputError, match="reviews.jsonl:2: has neither reviewerID"):
        compose(sids, tmp_path / "bad", "--reviews", path)
    path.write_text(lines[0] + "\n{not json", encoding="utf-8")
    with pytest.raises(InputError, match="reviews.jsonl:2: .*not valid JSON"):
        compose(sids, tmp_path / "bad", "--reviews", path)
    assert not (tmp_path / "bad").exists()


def test_reviews_in_the_peers_layout_and_gzip(shop, tmp_path):
    index, interactions = shop
    cases = interactions.histories("train")
    user, item = interactions.users[int(cases.sequence_C[0])].as_py(), int(cases.targets_C[0])
    thing = index.catalog.row(item)["categories"][-1]
    text = f"Very lightweight {thing} for muddy days"
    pairs, facts = TrainPairs(interactions, index.catalog.item_ids), CatalogFacts(index.catalog)
    (tmp_path / "Shop.user2id").write_text(f"{user}\t4\n")
    (tmp_path / "Shop.item2id").write_text(f"{index.catalog.item_ids[item]}\t9\n")
    path = tmp_path / "Shop.review.json"
    path.write_text(json.dumps({"(4, 9)": {"review": text, "summary": "ok"}}))
    assert list(review_requests(path, pairs, facts)) == [(item, text.lower())]
    path.write_text(json.dumps({"(4, 8)": {"review": text}}))
    with pytest.raises(InputError, match=r"Shop.review.json: '\(4, 8\)': item '8' is not in the item2id"):
        list(review_requests(path, pairs, facts))
    path.write_text(json.dumps({"4-9": {"review": text}}))
    with pytest.raises(InputError, match="Shop.review.json: '4-9' is no review; expected"):
        list(review_requests(path, pairs, facts))
    zipped = tmp_path / "reviews.json.gz"
    row = {"user_id": user, "parent_asin": index.catalog.item_ids[item], "title": text, "text": None}
    zipped.write_bytes(gzip.compress(json.dumps(row).encode()))
    assert list(review_requests(zipped, pairs, facts)) == [(item, text.lower())]


def test_a_user_with_several_sequences_has_reviews_in_all():
    interactions = Interactions.leave_one_out(["ann", "ann"], [np.array([0, 1, 2, 3]), np.array([4, 5, 6])])
    pairs = TrainPairs(interactions, [f"i{n}" for n in range(7)])
    known = [pairs.item("ann", f"i{n}") for n in range(7)]
    assert known == [0, 1, -1, -1, 4, -1, -1]  # the last two of each sequence are valid's and test's
    assert pairs.item("bob", "i0") == pairs.item("ann", "i9") == -1


def test_reviews_of_a_held_out_interaction_are_nobodys():
    """Pre-split rows: a test row's history holds the user's valid item, which train must not read of."""
    rows = [  # (user, items, split that asks for the last)
        ("ann", [0, 1], "train"),
        ("ann", [0, 1, 2], "valid"),
        ("ann", [0, 1, 2, 3], "test"),
        ("bob", [4, 0], "train"),
        ("bob", [4, 0, 4], "test"),  # bought again: whose review is it?
        ("eve", [1, 2], "valid"),
    ]
    lengths = np.array([len(items) for _, items, _ in rows])
    bounds = {}
    for split in ("train", "valid", "test"):  # as sources of pre-split rows have them
        bounds[f"{split}_lo_S"] = lengths - 1
        bounds[f"{split}_hi_S"] = lengths - 1 + np.array([asks == split for *_, asks in rows])
    interactions = Interactions(
        users=pa.array([user for user, *_ in rows]),
        indptr_S1=np.concatenate([[0], np.cumsum(lengths)]),
        items_I=np.concatenate([items for _, items, _ in rows]).astype(np.int32),
        **bounds,
    )
    pairs = TrainPairs(interactions, [f"i{item}" for item in range(5)])
    known = {(user, i) for user in ("ann", "bob", "eve") for i in range(5) if pairs.item(user, f"i{i}") == i}
    assert known == {("ann", 0), ("ann", 1), ("bob", 0)}


def test_lcrecs_texts_and_our_own_are_imported(sids, tmp_path):
    (tmp_path / "Shop.item2id").write_text("P0003\t0\nP0007\t1\n")
    (tmp_path / "Shop.user2id").write_text("user00001\t0\n")
    texts = {
        "user_explicit_preference": {"0": ["likes red things"]},
        "user_vague_intention": {
            "train": {"0": {"item": 0, "inters": [1], "querys": ["something for the rain", "dry on top"]}},
            "test": {},
        },
    }
    peer, own = tmp_path / "Shop.user.json", tmp_path / "own.jsonl"
    peer.write_text(json.dumps(texts))
    own.write_text('{"text": "a tent", "item_id": "P0001", "split": "test"}\n')
    none = ("--per_item", 0, "--conversations", 0, "--users", "false")
    found = list(compose(sids, tmp_path / "out", "--imports", peer, own, *none))
    assert [(one.kind, one.text, one.split) for one in found] == [
        ("preference", "likes red things", "train"),
        ("intention", "something for the rain", "train"),
        ("query", "dry on top", "train"),
        ("query", "a tent", "test"),
    ]
    assert found[1].item == 3 and found[1].history == (7,) and found[0].user == "user00001"
    texts["user_vague_intention"]["train"]["0"]["querys"] = ["only one"]
    peer.write_text(json.dumps(texts))
    with pytest.raises(InputError, match=r"user_vague_intention.train of user '0': querys is \['only one'\]"):
        compose(sids, tmp_path / "bad", "--imports", peer, *none)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--per_item", -1], "per_item: -1"),
        (["--held_out", 0.5], "held_out: 0.5"),
        (["--held_out_items", -0.1], "held_out_items: -0.1"),
        (["--reviews", "nowhere.gz"], "reviews: nowhere.gz is no file"),
        (["--per_item", 0, "--conversations", 0, "--users", "false"], "nothing can be composed"),
    ],
)
def test_bad_input_is_named(sids, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        compose(sids, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()
