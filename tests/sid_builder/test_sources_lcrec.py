"""The LC-Rec source: what it reads, what may be absent, and what is malformed, named by entry or line."""

import json
from pathlib import Path

import numpy as np
import pytest

from sid_builder.errors import InputError
from sid_builder.sources.lcrec import LcRecArgs, load

DATA = Path(__file__).parents[3] / "shared" / "data"
INTER = {"0": [0, 1, 2, 1], "1": [2, 0, 1], "2": [1]}
ITEMS = {
    "0": {"title": "Drum sticks", "description": "hickory", "brand": "B", "categories": "Drums,Arts, Crafts"},
    "1": {"title": "Reed", "description": "['two', 'parts']", "brand": "", "categories": "", "price": 3},
    "2": {"title": "Strings", "description": "[New]", "brand": "", "categories": "['K']", "asin": "A2"},
}
INDEX = {"0": ["<a_1>", "<b_0>"], "1": ["<a_1>", "<b_2>"], "2": ["<a_3>", "<b_0>"]}
USERS = {
    "user_explicit_preference": {"0": ["likes drums", "and reeds"]},
    "user_vague_intention": {
        "train": {"0": {"item": 1, "inters": [0], "querys": ["wants one", "it is good"]}},
        "test": {"0": {"item": 1, "inters": [0, 1, 2], "querys": ["wants one", "it is good"]}},
    },
}
FILES = {
    "inter.json": INTER,
    "item.json": ITEMS,
    "index.json": INDEX,
    "user.json": USERS,
    "item2id": "X0\t0\nX1\t1\nX2\t2\n",
    "user2id": "ann\t0\nbob\t1\ncid\t2\n",
}


def write(directory: Path, **changes) -> Path:
    """The whole data set; a change to a file (its name with _ for .) is its new content, None: no file."""
    for name, content in FILES.items():
        content = changes.pop(name.replace(".", "_"), content)
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (directory / f"Toys.{name}").write_text(text, encoding="utf-8")
    assert not changes
    return directory


def read(directory: Path, **args):
    return load(LcRecArgs(path=str(directory), **args))


def test_everything_is_read(tmp_path):
    (write(tmp_path) / "Toys.review.json").write_text("{}")
    data = read(tmp_path)
    assert data.catalog.item_ids == ["X0", "X1", "X2"] and data.interactions.users.to_pylist()[0] == "ann"
    rows = data.catalog.table.to_pylist()
    assert [row["description"] for row in rows] == ["hickory", "two parts", "[New]"]
    assert [row["categories"] for row in rows] == [["Drums", "Arts, Crafts"], [], ["K"]]
    assert rows[1]["price"] == 3 and [row["asin"] for row in rows] == [None, None, "A2"]
    assert data.semantic_ids.codes_NL.tolist() == [[1, 0], [1, 2], [3, 0]]
    assert data.semantic_ids.level_sizes == (4, 4)
    assert data.interactions.histories("test").history(0).tolist() == [0, 1, 2]
    assert data.interactions.histories("test").targets_C.tolist() == [1, 1]
    assert data.interactions.train_counts(3).tolist() == [1, 2, 1]  # the third user's only item is train's
    assert data.files["user_texts"].name == "Toys.user.json" and data.notes["files_not_read"] == [
        "Toys.review.json"
    ]
    assert data.notes["user_texts"] == {
        "users_with_preferences": 1,
        "users_with_intention_train": 1,
        "users_with_intention_test": 1,
    }


def test_only_interactions_and_a_list_of_items_are_needed(tmp_path):
    write(tmp_path, item_json=None, user_json=None, user2id=None, index_json=None)
    data = read(tmp_path)
    assert data.catalog.item_ids == ["X0", "X1", "X2"] and data.notes["items_without_title"] == 3
    assert data.interactions.users.to_pylist() == ["0", "1", "2"]
    assert data.semantic_ids is None and data.notes["user_texts"] is None
    (tmp_path / "Toys.item2id").rename(tmp_path / "Toys.index.json")
    write(tmp_path, item_json=None, user_json=None, user2id=None, item2id=None)
    assert read(tmp_path).catalog.item_ids == ["0", "1", "2"]


def test_sids_of_several_lengths(tmp_path):
    mixed = INDEX | {"0": ["<a_1>", "<b_0>", "<c_7>"]}
    data = read(write(tmp_path, index_json=mixed), codes_per_level=[256, 256, 8])
    assert data.semantic_ids.codes_NL.tolist() == [[1, 0, 7], [1, 2, -1], [3, 0, -1]]
    assert data.semantic_ids.level_sizes == (256, 256, 8)
    with pytest.raises(InputError, match="codes_per_level: 4 is too small .* give at least 8"):
        read(tmp_path, codes_per_level=4)
    with pytest.raises(InputError, match=r"\[9, 9, 7\] is too small .* give at least \[4, 3, 8\]"):
        read(tmp_path, codes_per_level=[9, 9, 7])
    with pytest.raises(InputError, match=r"codes_per_level: \[4, 4\] has 2 sizes, .* of 3 levels"):
        read(tmp_path, codes_per_level=[4, 4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inter_json": '{"0": [0],\n "1": [1,}'}, r"Toys\.inter\.json:2: is not valid JSON"),
        ({"inter_json": "[1]"}, r"Toys\.inter\.json: holds a list"),
        ({"inter_json": '{"0": [0], "0": [1]}'}, r"Toys\.inter\.json: key '0' is there twice"),
        ({"inter_json": INTER | {"1": []}}, r"Toys\.inter\.json: user '1' has \[\]; expected a list"),
        ({"inter_json": INTER | {"1": [0, 9]}}, r"Toys\.inter\.json: user '1': item 9 is not among the 3"),
        ({"inter_json": INTER | {"1": [0.0]}}, r"Toys\.inter\.json: user '1': item 0\.0 is not among"),
        ({"inter_json": {}, "user_json": None, "user2id": None}, "interactions: there are none"),
        ({"item_json": {}}, r"Toys\.item2id: item '0' is in only one of"),
        ({"item_json": ITEMS | {"1": "Reed"}}, r"Toys\.item\.json: item '1' is 'Reed'"),
        ({"item_json": ITEMS | {"1": {"title": ["Reed"]}}}, r"item '1': title is \['Reed'\]; expected text"),
        ({"index_json": {key: INDEX[key] for key in "01"}}, r"Toys\.index\.json: item '2' is in only one of"),
        ({"index_json": INDEX | {"3": ["<a_0>"]}}, r"Toys\.index\.json: item '3' is in only one of"),
        ({"index_json": INDEX | {"1": []}}, r"Toys\.index\.json: item '1' has SID \[\]"),
        ({"index_json": INDEX | {"1": ["<b_1>", "<a_2>"]}}, r"item '1' has token '<b_1>' as number 1"),
        ({"index_json": INDEX | {"1": [5, 6]}}, r"item '1' has token 5 as number 1"),
        ({"index_json": INDEX | {"2": ["<a_1>"]}}, "the SID of item '2' is the beginning of item '0'"),
        ({"item2id": "X0\t0\nX1 1\nX2\t2\n"}, r"Toys\.item2id:2: 'X1 1' is not `key <tab> id`"),
        ({"item2id": "X0\t0\nX0\t1\nX2\t2\n"}, r"Toys\.item2id:2: 'X0\\t1' repeats a key or an id"),
        ({"user2id": "ann\t0\nbob\t1\n"}, r"Toys\.user2id: user '2' is in only one of Toys\.inter\.json and"),
        ({"item_json": None, "item2id": None, "index_json": None}, r"has none of Toys\.item\.json"),
    ],
)
def test_malformed_files_are_named(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def changed_users(**entry):
    return USERS | {
        "user_vague_intention": {
            "train": {"0": USERS["user_vague_intention"]["train"]["0"] | entry},
            "test": {},
        }
    }


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ({}, "user_explicit_preference is None; expected an object"),
        (USERS | {"user_vague_intention": {"train": {}}}, "test is None; expected an object"),
        (USERS | {"user_explicit_preference": {"7": ["x"]}}, "user '7': this user has no interactions"),
        (USERS | {"user_explicit_preference": {"0": "drums"}}, "user '0': 'drums'; expected a list of one"),
        (changed_users(querys=["one"]), r"train of user '0': querys: \['one'\]; expected a list of 2 texts"),
        (changed_users(item=9), "train of user '0': item 9 is not among the 3 items"),
        (changed_users(inters=[0, "9"]), "train of user '0': item '9' is not among the 3 items"),
        (changed_users(inters=4), "train of user '0': inters is 4; expected a list of items"),
    ],
)
def test_malformed_user_texts_are_named(tmp_path, users, message):
    write(tmp_path, user_json=users)
    with pytest.raises(InputError, match=r"Toys\.user\.json: .*" + message):
        read(tmp_path)


def test_options_without_effect_and_ambiguous_directories(tmp_path):
    with pytest.raises(InputError, match="no category; give the directory that holds NAME"):
        read(tmp_path)
    write(tmp_path, index_json=None)
    with pytest.raises(InputError, match=r"codes_per_level: 4 has no effect without Toys\.index\.json"):
        read(tmp_path, codes_per_level=4)
    (tmp_path / "Books.inter.json").write_text("{}")
    with pytest.raises(InputError, match=r"\['Books', 'Toys'\]; set source_args\.category"):
        read(tmp_path)
    assert read(tmp_path, category="Toys").catalog.num_items == 3
    with pytest.raises(InputError, match=r"category: 'Games' is not in .*; use one of \['Books', 'Toys'\]"):
        read(tmp_path, category="Games")


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
def test_instruments_have_the_published_size():
    data = read(DATA / "lcrec_instruments")
    assert (data.catalog.num_items, data.interactions.num_sequences) == (9922, 24772)
    assert data.interactions.num_interactions == 206153 and not data.interactions.has_repeats
    assert data.catalog.item_ids[0] == "B000FFWZKI" and data.semantic_ids.level_sizes == (256,) * 4
    assert data.semantic_ids.num_distinct == 9897
    lengths = np.diff(data.interactions.indptr_S1)
    assert lengths.min() == 5 and len(data.interactions.histories("train")) == (lengths - 3).sum()
