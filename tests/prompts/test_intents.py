"""Intents on disk: JSONL that people write, and the artefact."""

import json

import pytest

from prompts.intents import INTENTS_FILE, KIND, SCHEMA, Intent, Intents, write_parts
from sid_builder.artifact import writing
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError

CATALOG = Catalog.from_rows([{"item_id": f"P{n}", "title": f"tent {n}"} for n in range(5)])
INTENTS = [
    Intent("query", ("a red tent", "cheaper"), 3, (1,), wanted={"max_price": 9.5, "words": ["red"]}),
    Intent("intention", ("dry at night",), 4, history=(0, 2), user="ann", split="valid"),
    Intent("preference", ("red tents",), history=(0, 2), user="ann", split="test"),
]


def test_an_artefact_gives_back_what_was_written(tmp_path):
    with writing(tmp_path / "intents", KIND) as artifact:
        write_parts((Intents.of([intent], CATALOG) for intent in INTENTS), artifact.path)
    loaded = Intents.load(tmp_path / "intents", CATALOG)
    assert list(loaded) == INTENTS and loaded.table.schema.equals(SCHEMA)
    assert list(loaded.select(["intention", "preference"], "valid")) == INTENTS[1:2]
    with writing(tmp_path / "none", KIND) as artifact:
        write_parts([], artifact.path)
    assert not len(Intents.load(tmp_path / "none", CATALOG))
    assert (tmp_path / "none" / INTENTS_FILE).is_file()


def test_items_outlive_their_indices(tmp_path):
    with writing(tmp_path / "intents", KIND) as artifact:
        Intents.of(INTENTS, CATALOG).write(artifact.path)
    longer = Catalog.from_rows([{"item_id": name} for name in ("new", *reversed(CATALOG.item_ids))])
    first = next(iter(Intents.load(tmp_path / "intents", longer)))
    assert longer.item_ids[first.item] == "P3" and longer.item_ids[first.shown[0]] == "P1"


def test_people_may_write_jsonl(tmp_path):
    path = tmp_path / "own.jsonl"
    lines = [
        {"text": "a tent", "item_id": "P1"},
        {"turns": ["a tent", "red"], "shown": ["P1"], "item_id": "P2", "wanted": {"words": ["red"]}},
        {"kind": "preference", "text": "tents", "user": "ann", "split": "test"},
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    assert list(Intents.load(path, CATALOG)) == [
        Intent("query", ("a tent",), 1),
        Intent("query", ("a tent", "red"), 2, (1,), wanted={"words": ["red"]}),
        Intent("preference", ("tents",), user="ann", split="test"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "own.jsonl:2: is not JSON"),
        ("[1]", "own.jsonl:2: is list; write one JSON object a line"),
        ('{"txt": "a", "item_id": "P1"}', "own.jsonl:2: txt: unknown key; did you mean 'text'"),
        ('{"item_id": "P1"}', "own.jsonl:2: give either text or turns"),
        ('{"text": "a", "item_id": "P9"}', "own.jsonl:2: item_id: 'P9' is not in the catalogue"),
        ('{"text": " ", "item_id": "P1"}', "own.jsonl:2: turns is"),
        ('{"text": "a", "item_id": "P1", "kind": "wish"}', "own.jsonl:2: kind is 'wish'"),
        ('{"text": "a", "item_id": "P1", "split": "dev"}', "own.jsonl:2: split is 'dev'"),
        ('{"turns": ["a", "b"], "item_id": "P1"}', "own.jsonl:2: 2 turns with 0 items shown"),
        ('{"text": "a"}', "own.jsonl:2: a preference is about a user"),
        ('{"text": "a", "item_id": "P1", "wanted": {"max_prize": 3}}', "own.jsonl:2: wanted.max_prize: unk"),
        ('{"text": "a", "item_id": "P1", "wanted": {"words": "red"}}', "own.jsonl:2: wanted.words is 'red'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "a tent", "item_id": "P1"}\n' + line, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        Intents.load(path, CATALOG)


def test_an_empty_or_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        Intents.load(tmp_path / "none.jsonl", CATALOG)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        Intents.load(tmp_path / "empty.jsonl", CATALOG)
