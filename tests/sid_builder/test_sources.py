"""Sources: one conformance suite, then each one's malformed input, named by file and line."""

import gzip
import json

import numpy as np
import pytest

from sid_builder import SOURCES, cli
from sid_builder.errors import InputError
from sid_builder.item_text import item_texts
from sid_builder.registry import options_class, resolve

ITEMS = [
    {
        "item_id": "red",
        "title": "Red shoes",
        "brand": "Cairn",
        "categories": ["Shoes"],
        "price": 10,
        "asin": "A1",
    },
    {"item_id": 7, "title": "Blue\u2028tent", "description": "Blue,\nwide", "colours": ["blue"]},
    {"item_id": "x", "title": "", "categories": "Stoves"},
]
SEQUENCES = [{"user": "u1", "items": ["red", 7, "x", 7]}, {"user": 2, "items": [7, "red"]}]
TOKENS = {"0": ["<a_3>", "<b_0>"], "1": ["<a_5>", "<b_1>"], "2": ["<a_3>", "<b_2>"]}
HEADER = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid"
ROWS = {
    "train": ["U1,['a'],b,[0],1,['<a_3><b_0>'],<a_5><b_1>"],
    "valid": ["U1,\"['a', 'b']\",c,\"[0, 1]\",2,\"['<a_3><b_0>', '<a_5><b_1>']\",<a_3><b_2>"],
    "test": ["U2,['c'],a,[2],0,['<a_3><b_2>'],<a_3><b_0>"],
}


def load(source, **args):
    function = resolve(SOURCES, source, "source")
    return function(cli.build_dataclass(options_class(function), args, "source_args"))


def write_jsonl(directory, items=ITEMS, sequences=SEQUENCES):
    for name, rows in (("items", items), ("sequences", sequences)):
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def write_minionerec(directory, rows=ROWS, tokens=TOKENS, items=None):
    for folder in ("train", "valid", "test", "info", "index"):
        (directory / folder).mkdir()
    for split in ("train", "valid", "test"):
        (directory / split / "Toys_5_2016.csv").write_text("\n".join([HEADER, *rows[split]]) + "\n")
    (directory / "train" / "rows_with_source.csv").write_text("user_id,item_id\nU9,9\n")
    described = {
        "0": {"title": "a", "description": "['It's 5\" wide', 'not closed']", "brand": "B", "categories": ""},
        "1": {"title": "b", "description": "['one', \"it's two\"]", "brand": "", "categories": "['K', 'L']"},
        "2": {"title": "c", "description": "", "brand": "", "categories": ""},
    }
    (directory / "index" / "Toys.item.json").write_text(json.dumps(items or described))
    (directory / "index" / "Toys.index.json").write_text(json.dumps(tokens))
    info = "".join(
        f"{''.join(tokens[key])}\t{title}\t{key}\n"
        for key, title in zip("012", "abc", strict=True)
        if key in tokens
    )
    (directory / "info" / "Toys_5_2016.txt").write_text(info)
    return directory


def write_amazon(directory):
    reviews = [
        {"user_id": user, "parent_asin": item, "timestamp": 1000 * time, "rating": 5.0}
        for time, (user, item) in enumerate([("u1", "a"), ("u1", "b"), ("u2", "b"), ("u1", "c"), ("u2", "a")])
    ]
    items = [{"parent_asin": key, "title": f"Item {key}"} for key in "abc"]
    for name, rows in (("Toys.jsonl", reviews), ("meta_Toys.jsonl", items)):
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def write_table(directory):
    (directory / "log.csv").write_text("user,item\nu1,a\nu1,b\nu2,b\nu1,c\nu2,a\n")
    return directory / "log.csv"


def write_lcrec(directory):
    (directory / "Toys.inter.json").write_text('{"0": [0, 1, 2], "1": [1, 0]}')
    (directory / "Toys.item2id").write_text("a\t0\nb\t1\nc\t2\n")
    return directory


def write_recbole(directory):
    rows = "u1\ta\nu1\tb\nu2\tb\nu1\tc\nu2\ta\n"
    (directory / "toys.inter").write_text("user_id:token\titem_id:token\n" + rows)
    return directory


@pytest.fixture(params=sorted(SOURCES))
def loaded(request, tmp_path):
    """Each source's data, read twice, and how many interactions went in."""
    if request.param == "toy":
        args, given = {"num_users": 40, "min_length": 4, "max_length": 4}, 160
    elif request.param == "jsonl":
        args, given = {"path": str(write_jsonl(tmp_path))}, 6
    elif request.param == "amazon":
        args, given = {"path": str(write_amazon(tmp_path))}, 5
    elif request.param == "table":
        args, given = {"path": str(write_table(tmp_path))}, 5
    elif request.param == "lcrec":
        args, given = {"path": str(write_lcrec(tmp_path))}, 5
    elif request.param == "recbole":
        args, given = {"path": str(write_recbole(tmp_path))}, 5
    elif request.param == "combined":
        shops = {"toy": {"source": "toy", "args": {"num_users": 9, "min_length": 4, "max_length": 4}}}
        shops["table"] = {"source": "table", "path": str(write_table(tmp_path))}
        args, given = {"parts": shops}, 41
    else:
        assert request.param == "minionerec", "a new source needs its small data here"
        args, given = {"path": str(write_minionerec(tmp_path))}, 7
    return load(request.param, **args), load(request.param, **args), given


def test_nothing_is_dropped_and_splits_are_inside_sequences(loaded):
    data, _, given = loaded
    interactions = data.interactions
    assert interactions.num_interactions == given and data.notes["rows_dropped"] == 0
    assert (interactions.items_I >= 0).all() and (interactions.items_I < data.catalog.num_items).all()
    lengths = np.diff(interactions.indptr_S1)
    assert (interactions.train_hi_S <= lengths).all() and (interactions.test_hi_S <= lengths).all()
    for split in ("train", "valid", "test"):
        assert len(interactions.histories(split)) == data.notes[f"{split}_cases"] > 0
        assert all(
            len(interactions.histories(split).history(case)) >= 1
            for case in range(data.notes[f"{split}_cases"])
        )


def test_reading_twice_gives_the_same(loaded):
    data, again, _ = loaded
    assert data.catalog.table.equals(again.catalog.table)
    np.testing.assert_array_equal(data.interactions.items_I, again.interactions.items_I)
    assert data.notes == again.notes


def test_interactions_round_trip(loaded, tmp_path):
    data, _, _ = loaded
    data.interactions.save(tmp_path)
    back = type(data.interactions).load(tmp_path)
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(
            back.histories(split).targets_C, data.interactions.histories(split).targets_C
        )


def test_jsonl_reads_what_was_given(tmp_path):
    data = load("jsonl", path=str(write_jsonl(tmp_path)))
    assert data.catalog.item_ids == ["red", "7", "x"] and data.catalog.row(0)["asin"] == "A1"
    assert item_texts(data.catalog, "{title}[. {description}]") == ["Red shoes", "Blue tent. Blue, wide", ""]
    assert data.notes["item_keys_not_kept"] == ["colours"] and data.notes["items_without_title"] == 1
    assert data.interactions.users.to_pylist() == ["u1", "2"] and data.notes["has_repeats"]
    assert data.interactions.histories("test").history(0).tolist() == [0, 1, 2]
    assert data.interactions.histories("test").targets_C.tolist() == [1]


def test_jsonl_renames_keys_and_keeps_timestamps(tmp_path):
    items = [{"asin": name, "item_id": i, "title": name} for i, name in enumerate("abc")]
    sequences = [{"uid": "u", "items": ["a", "c", "b"], "timestamps": [3, 3, 9]}]
    write_jsonl(tmp_path, items, sequences)
    data = load("jsonl", path=str(tmp_path), rename={"item_id": "asin", "user": "uid"})
    assert data.catalog.item_ids == ["a", "b", "c"]
    assert data.interactions.items_I.tolist() == [0, 2, 1] and data.interactions.timestamps_I.tolist() == [
        3,
        3,
        9,
    ]


def test_jsonl_reads_gzip_line_by_line(tmp_path):
    write_jsonl(tmp_path)
    plain = load("jsonl", path=str(tmp_path))
    for name in ("items", "sequences"):
        content = (tmp_path / f"{name}.jsonl").read_bytes()
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(content))
    files = {"items_file": "items.jsonl.gz", "sequences_file": "sequences.jsonl.gz"}
    data = load("jsonl", path=str(tmp_path), **files)
    assert data.catalog.table.equals(plain.catalog.table) and data.notes == plain.notes
    np.testing.assert_array_equal(data.interactions.items_I, plain.interactions.items_I)
    (tmp_path / "sequences.jsonl.gz").write_bytes(gzip.compress(content)[:-4])
    with pytest.raises(InputError, match=r"sequences\.jsonl\.gz:2: the gz stream is broken"):
        load("jsonl", path=str(tmp_path), **files)


def test_jsonl_keeps_ratings_and_prices_and_splits_in_time(tmp_path):
    sequences = [
        {"user": "u", "items": ["red", 7, "x"], "timestamps": [1, 5, 9], "ratings": [5, None, 3.5]},
        {"user": "v", "items": [7, "red", 7, "x"], "timestamps": [0, 6, 7, 8], "ratings": [1, 2, 3, 4]},
    ]
    write_jsonl(tmp_path, sequences=sequences)
    data = load("jsonl", path=str(tmp_path), split="global_temporal", split_shares=[3, 1, 1])
    np.testing.assert_array_equal(
        data.interactions.features_I["rating"], np.float32([5, np.nan, 3.5, 1, 2, 3, 4])
    )
    assert data.notes["split"] == "global-temporal 3:1:1"
    cases = {name: data.interactions.histories(name) for name in ("train", "valid", "test")}
    asked = {
        name: list(zip(c.sequence_C.tolist(), c.position_C.tolist(), strict=True))
        for name, c in cases.items()
    }
    assert asked == {"train": [(0, 1), (1, 1), (1, 2)], "valid": [(1, 3)], "test": [(0, 2)]}
    with pytest.raises(InputError, match="split: global_temporal needs timestamps"):
        write_jsonl(tmp_path)
        load("jsonl", path=str(tmp_path), split="global_temporal")


@pytest.mark.parametrize(
    ("items", "sequences", "message"),
    [
        ([], SEQUENCES, "catalogue: it has no items"),
        ([*ITEMS, '{"item_id": "y"'], SEQUENCES, r"items\.jsonl:4: .* is not valid JSON"),
        ([*ITEMS, "[1, 2]"], SEQUENCES, r"items\.jsonl:4: holds a list; write one JSON object a line"),
        (
            [*ITEMS, {"item_id": "7"}],
            SEQUENCES,
            r"items\.jsonl:4: item_id '7' is a duplicate of items\.jsonl:2",
        ),
        ([*ITEMS, {"title": "no key"}], SEQUENCES, r"items\.jsonl:4: item_id is None"),
        (
            [{"item_id": "a", "price": "dear"}],
            SEQUENCES,
            r"items\.jsonl:1: price is 'dear'; expected a number",
        ),
        (ITEMS, [], "interactions: there are none"),
        (
            ITEMS,
            [*SEQUENCES, {"user": "u", "items": ["red", 8]}],
            r"sequences\.jsonl:3: item 8 is not in the items file",
        ),
        (ITEMS, [{"user": "u", "items": []}], r"sequences\.jsonl:1: items is \[\]; expected a list"),
        (ITEMS, [{"user": "u", "item": [7]}], r"sequences\.jsonl:1: items is None"),
        (ITEMS, [{"items": [7]}], r"sequences\.jsonl:1: user is None"),
        (
            ITEMS,
            [{"user": "u", "items": [7, 7], "timestamps": [2, 1]}],
            r"sequences\.jsonl:1: timestamps go back",
        ),
        (
            ITEMS,
            [{"user": "u", "items": [7, 7], "timestamps": [2]}],
            r"sequences\.jsonl:1: timestamps do not match",
        ),
        (
            ITEMS,
            [{"user": "u", "items": [7], "timestamps": [2]}, SEQUENCES[0]],
            r"sequences\.jsonl:2: .* some lines only",
        ),
        (
            ITEMS,
            [SEQUENCES[0] | {"prices": [1, 2, 3, 4]}, SEQUENCES[1]],
            r"sequences\.jsonl:2: prices are given on some lines only",
        ),
        (
            ITEMS,
            [{"user": "u", "items": [7], "ratings": [1, 2]}],
            r"sequences\.jsonl:1: ratings do not match items",
        ),
        (
            ITEMS,
            [{"user": "u", "items": [7], "ratings": ["five"]}],
            r"sequences\.jsonl:1: 'five' in ratings is no number",
        ),
    ],
)
def test_jsonl_names_file_and_line(tmp_path, items, sequences, message):
    write_jsonl(tmp_path, items, sequences)
    with pytest.raises(InputError, match=message):
        load("jsonl", path=str(tmp_path))


def test_jsonl_names_unreadable_files(tmp_path):
    with pytest.raises(InputError, match=r"source_args\.path: cannot read .*items\.jsonl"):
        load("jsonl", path=str(tmp_path))
    write_jsonl(tmp_path)
    (tmp_path / "sequences.jsonl").write_bytes(b'{"user": "u", "items": [7]}\n{"user": "\xff"}\n')
    with pytest.raises(InputError, match=r"sequences\.jsonl:2: is not UTF-8"):
        load("jsonl", path=str(tmp_path))


def test_minionerec_counts_only_transitions_into_targets(tmp_path):
    data = load("minionerec", path=str(write_minionerec(tmp_path)))
    interactions = data.interactions
    assert interactions.train_counts(3).tolist() == [0, 1, 0]
    assert interactions.histories("train").targets_C.tolist() == [1]
    assert interactions.histories("valid").history(0).tolist() == [0, 1]
    assert interactions.histories("test").targets_C.tolist() == [0]
    assert data.notes["csv_files_not_read"] == ["train/rows_with_source.csv"]


def test_minionerec_takes_sids_and_texts_over(tmp_path):
    data = load("minionerec", path=str(write_minionerec(tmp_path)))
    assert data.semantic_ids.level_sizes == (8, 4)
    assert [data.semantic_ids.spell(n) for n in range(3)] == ["<a_3><b_0>", "<a_5><b_1>", "<a_3><b_2>"]
    assert data.catalog.row(1)["description"] == "one it's two" and data.catalog.row(1)["categories"] == [
        "K",
        "L",
    ]
    assert data.catalog.row(0)["description"] == "It's 5\" wide not closed"
    assert data.notes["descriptions_with_broken_quotes"] == 1
    wider = load("minionerec", path=str(tmp_path), codes_per_level=256)
    assert wider.semantic_ids.level_sizes == (256, 256)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "U1,['a'],b,[0],9,['<a_3><b_0>'],<a_5><b_1>",
            r"train/Toys_5_2016\.csv:2: item '9' is not in item\.json",
        ),
        (
            "U1,['a'],b,[0; 1],1,['<a_3><b_0>'],<a_5><b_1>",
            r"Toys_5_2016\.csv:2: history_item_id is '\[0; 1\]'",
        ),
        (
            "U1,['a'],b,[],1,[],<a_5><b_1>",
            r"Toys_5_2016\.csv:2: history_item_id is '\[\]'; expected a list of at least",
        ),
        (
            "U1,['a'],b,[0],1,['<a_3><b_1>'],<a_5><b_1>",
            r"Toys_5_2016\.csv:2: its SIDs differ from index\.json's",
        ),
        ("U1,['a']", r"Toys_5_2016\.csv:2: history_item_id is 'None'"),
        (
            "U1,['a'],b,[0, 1],1,['<a_3><b_0>'],<a_5><b_1>",
            r"train/Toys_5_2016\.csv:2: has more cells than the header",
        ),
        ("U1,\rx", r"train/Toys_5_2016\.csv:2: new-line character .* repair the line"),
        (
            "U1,['a'],b,__import__('os').getcwd(),1,['<a_3><b_0>'],<a_5><b_1>",
            r"csv:2: history_item_id is .__import__.*; expected a list such as",
        ),
    ],
)
def test_minionerec_names_file_and_line(tmp_path, rows, message):
    write_minionerec(tmp_path, ROWS | {"train": [rows]})
    with pytest.raises(InputError, match=message):
        load("minionerec", path=str(tmp_path))


@pytest.mark.parametrize(
    ("tokens", "args", "message"),
    [
        (TOKENS | {"2": ["<b_3>", "<a_2>"]}, {}, r"item '2' has token '<b_3>'"),
        (
            {"0": TOKENS["0"], "1": TOKENS["1"]},
            {},
            r"item '2' is in only one of Toys\.item\.json and Toys\.index\.json",
        ),
        (TOKENS, {"codes_per_level": 4}, "codes_per_level: 4 is too small .* give at least 6"),
        (
            TOKENS,
            {"category": "Books"},
            r"source_args\.category: 'Books' is not in .*; use one of \['Toys'\]",
        ),
    ],
)
def test_minionerec_names_contradictory_sids(tmp_path, tokens, args, message):
    write_minionerec(tmp_path, tokens=tokens)
    with pytest.raises(InputError, match=message):
        load("minionerec", path=str(tmp_path), **args)


def test_minionerec_names_ambiguous_files(tmp_path):
    with pytest.raises(InputError, match="no category; give the directory that holds index/"):
        load("minionerec", path=str(tmp_path))
    write_minionerec(tmp_path)
    (tmp_path / "train" / "Toys_again.csv").write_text(HEADER + "\n")
    with pytest.raises(InputError, match=r"needs exactly one file Toys\*\.csv, found"):
        load("minionerec", path=str(tmp_path))
    (tmp_path / "index" / "Books.item.json").write_text("{}")
    with pytest.raises(InputError, match=r"\['Books', 'Toys'\]; set source_args\.category"):
        load("minionerec", path=str(tmp_path))


def test_toy_arguments_are_checked():
    with pytest.raises(InputError, match=r"source_args\.items_per_category: 65 is outside 1\.\.64"):
        load("toy", items_per_category=65)
    with pytest.raises(InputError, match=r"source_args\.rule: 0\.9 \+ second_rule 0\.2 is no probability"):
        load("toy", rule=0.9, second_rule=0.2)
