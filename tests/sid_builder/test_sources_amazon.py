"""Amazon files of three releases: the same data, the same result; what is malformed is named or counted."""

import gzip
import json

import numpy as np
import pytest

from sid_builder import SOURCES, cli
from sid_builder.errors import InputError
from sid_builder.registry import options_class, resolve
from sid_builder.sources.amazon_metadata import parse_json_or_literal

# (user, item, seconds, rating, verified)
REVIEWS = [
    ("A1", "B1", 1400000300, 5.0, True),
    ("A2", "B2", 1400000000, 3.0, False),
    ("A1", "B2", 1400000100, 4.0, True),
    ("A1", "B3", 1400000200, 1.0, True),
    ("A2", "B1", 1400000900, 2.0, True),
    ("A3", "B9", 1400000900, 2.0, True),  # an item without metadata
]
ITEMS = [
    ("B3", "It's a 5\" comb", ["Long & fine."], "Cairn", ["Beauty", "Hair Care"], 12.99),
    ("B1", "Soap", ["Smells", "of pine"], "", ["Beauty"], None),
    ("B7", "Never reviewed", [], "Ember", ["Beauty"], 3.0),
    ("B2", "Kamm für Locken", [], "Ember", ["Beauty", "Hair Care", "Combs"], 1299.0),
]


def review_line(release, user, item, seconds, rating, verified) -> str:
    if release == 2023:
        row = {
            "rating": rating,
            "title": "t",
            "text": "x<br />y",
            "images": [{"small": "u"}],
            "asin": "other",
        }
        row |= {"parent_asin": item, "user_id": user, "timestamp": 1000 * seconds + 123, "helpful_vote": 0}
        return json.dumps(row | {"verified_purchase": verified})
    row = {"reviewerID": user, "asin": item, "reviewerName": "n", "overall": rating, "helpful": [0, 0]}
    row |= {"reviewText": "line one\nline two", "unixReviewTime": seconds, "reviewTime": "05 3, 2014"}
    return json.dumps(row | ({"verified": verified, "style": {"Size:": " L"}} if release == 2018 else {}))


def item_line(release, item, title, description, brand, categories, price) -> str:
    if release == 2014:
        row = {"asin": item, "title": title, "categories": [categories], "imUrl": f"http://i/{item}.jpg"}
        row |= {"related": {"also_bought": ["B1"]}, "salesRank": {"Beauty": 7}}
        row |= {"description": " ".join(description)} if description else {}
        row |= {"brand": brand} if brand else {}
        return repr(row | ({"price": price} if price is not None else {}))
    if release == 2018:
        row = {"asin": item, "title": title.replace("&", "&amp;"), "description": description, "brand": brand}
        row |= {"category": categories, "price": "" if price is None else f"${price:,.2f}", "rank": ["7"]}
        return json.dumps(row | {"imageURLHighRes": [f"http://i/{item}.jpg"], "feature": [], "tech1": ""})
    row = {"parent_asin": item, "title": title, "description": description, "store": brand or None}
    row |= {"main_category": "All Beauty", "categories": categories, "price": price, "features": []}
    return json.dumps(row | {"images": [{"hi_res": None, "large": f"http://i/{item}.jpg"}], "details": {}})


def write(path, lines, compressed=True):
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if compressed else data)
    return path


def write_release(directory, release, compressed=True, reviews=None, items=None):
    directory.mkdir(exist_ok=True)
    ending = (".jsonl" if release == 2023 else ".json") + (".gz" if compressed else "")
    stem = "reviews_Beauty" if release == 2014 else "All_Beauty"
    reviews = reviews or [review_line(release, *review) for review in REVIEWS]
    write(directory / f"{stem}{ending}", reviews, compressed)
    items = items or [item_line(release, *item) for item in ITEMS]
    write(directory / f"meta_Beauty{ending}", items, compressed)
    return directory


def load(path, **args):
    function = resolve(SOURCES, "amazon", "source")
    return function(cli.build_dataclass(options_class(function), {"path": str(path)} | args, "source_args"))


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("release", [2014, 2018, 2023])
def test_three_releases_say_the_same(tmp_path, release, compressed):
    data = load(write_release(tmp_path / "a", release, compressed), repeats="last")
    assert data.notes["release"] == release
    assert data.catalog.item_ids == ["B3", "B1", "B2"]
    assert data.catalog.row(0) == {
        "item_id": "B3",
        "title": "It's a 5\" comb",
        "description": "Long & fine.",
        "brand": "Cairn",
        "categories": ["Beauty", "Hair Care"],
        "price": 12.99,
        "domain": "",
        "features": None,
        "image_url": "http://i/B3.jpg",
    }
    assert data.catalog.titles[2] == "Kamm für Locken"
    assert data.catalog.table.column("description").to_pylist()[1:] == ["Smells of pine", ""]
    assert data.catalog.table.column("price").to_pylist()[1:] == [None, 1299.0]
    interactions = data.interactions
    assert interactions.users.to_pylist() == ["A1", "A2"]
    assert interactions.items_I.tolist() == [2, 0, 1, 2, 1]
    assert interactions.timestamps_I.tolist() == [1400000000 + s for s in (100, 200, 300, 0, 900)]
    assert interactions.features_I["rating"].tolist() == [4, 1, 5, 3, 2]
    if release != 2014:
        assert interactions.features_I["verified"].tolist() == [1, 1, 1, 0, 1]
    assert data.notes["rows_read"] == 6 and data.notes["rows_dropped"] == 1
    assert data.notes["rows_dropped_by"]["item_without_metadata"] == 1
    assert data.notes["items_without_metadata"] == 1 and data.notes["metadata_lines"] == 4
    assert set(data.files) == {"reviews", "metadata"}


def test_options_of_the_log_apply(tmp_path):
    path = write_release(tmp_path, 2018)
    data = load(path, item_core=2, user_core=2, since="2014-05-13", items_without_metadata="keep")
    assert data.catalog.item_ids == ["B1", "B2"] and data.notes["rows_dropped_by"]["k_core"] == 2
    data = load(path, items_without_metadata="keep", split="global_temporal")
    assert data.catalog.item_ids == ["B3", "B1", "B2", "B9"] and data.catalog.titles[3] == ""
    assert data.notes["rows_dropped"] == 0 and data.notes["split"] == "global-temporal 8:1:1"
    assert data.notes["items_without_title"] == 1
    with pytest.raises(InputError, match="item 'B9' is not in the items file"):
        load(path, items_without_metadata="error")


def test_pieces_of_web_pages_are_cleaned_or_counted(tmp_path):
    junk = '<span id="productTitle">var aPageStart = (new Date()).getTime();'
    items = [
        {
            "asin": "B1",
            "title": junk,
            "price": ".a-box-inner{background:#fff}",
            "category": ["A</span>", "</b>"],
        },
        {"asin": "B2", "title": "Tom &amp;amp; <b>Jerry</b> 3 < 4 > 2", "price": "$5.00 - $9.00"},
        {"asin": "B2", "title": "once more"},
        {"asin": "B3", "title": "\ud83d half", "price": "from 7.49", "feature": ["<p>soft", "light"]},
    ]
    path = write_release(tmp_path, 2018, items=[json.dumps(item) for item in items])
    data = load(path)
    assert data.catalog.titles == ["", "Tom & Jerry 3 < 4 > 2", "? half"]
    assert data.catalog.table.column("price").to_pylist() == [None, 5.0, 7.49]
    assert data.catalog.row(0)["categories"] == ["A"] and data.catalog.row(2)["features"] == "soft light"
    assert data.notes["titles_not_readable"] == data.notes["prices_not_readable"] == 1
    assert data.notes["metadata_lines_repeating_an_item"] == 1
    data = load(path, require_title=True)
    assert data.catalog.item_ids == ["B2", "B3"]
    assert data.notes["items_without_readable_title_left_out"] == 1


def test_literals_are_parsed_and_never_run():
    assert parse_json_or_literal("{'asin': 'B', 'price': 1.5}") == {"asin": "B", "price": 1.5}
    for line in ("{'asin': __import__('os').getcwd()}", "{'a': " + "(" * 5000, "{'asin'"):
        with pytest.raises(ValueError, match="neither JSON nor a Python literal"):
            parse_json_or_literal(line)


BAD_REVIEWS = [
    ('{"reviewerID": "A1"', "is not valid JSON"),
    ('{"reviewerID": "A1", "asin": "B1", "overall": 5.0}', "unixReviewTime is None"),
    ('{"reviewerID": 7, "asin": "B1", "overall": 5.0, "unixReviewTime": 1}', "reviewerID is 7"),
    ('{"reviewerID": "", "asin": "B1", "overall": 5.0, "unixReviewTime": 1}', "reviewerID is ''"),
    ('{"reviewerID": "\\ud800", "asin": "B1", "overall": 5.0, "unixReviewTime": 1}', "reviewerID is "),
    ('{"reviewerID": "A1", "asin": "B1", "overall": "5", "unixReviewTime": 1}', "overall is '5'"),
    ('{"reviewerID": "A1", "asin": "B1", "overall": 5, "unixReviewTime": 1e30}', "unixReviewTime is 1e\\+30"),
    ("[1, 2]", "holds a list"),
]


@pytest.mark.parametrize(("line", "message"), BAD_REVIEWS)
def test_a_malformed_review_is_named_or_counted(tmp_path, line, message):
    good = [review_line(2018, *review) for review in REVIEWS]
    write_release(tmp_path, 2018, reviews=[good[0], "", line, *good[1:]])
    with pytest.raises(InputError, match=rf"^All_Beauty\.json\.gz:3: .*{message}"):
        load(tmp_path)
    data = load(tmp_path, bad_lines="skip")
    assert data.interactions.num_interactions == 5
    assert data.notes["rows_dropped_by"]["malformed_line"] == 1 and data.notes["rows_read"] == 7


def test_a_malformed_metadata_line_is_named_or_counted(tmp_path):
    good = [item_line(2014, *item) for item in ITEMS]
    write_release(tmp_path, 2014, items=[good[0], "{'asin': open('x')}", *good[1:], '{"title": "t"}'])
    with pytest.raises(InputError, match=r"^meta_Beauty\.json\.gz:2: .*neither JSON nor"):
        load(tmp_path)
    data = load(tmp_path, bad_lines="skip")
    assert data.notes["malformed_metadata_lines"] == 2 and data.catalog.num_items == 3


def test_text_that_is_no_utf8_is_named(tmp_path):
    write_release(tmp_path, 2018, compressed=False)
    path = tmp_path / "All_Beauty.json"
    path.write_bytes(path.read_bytes().replace(b'"reviewerName": "n"', b'"reviewerName": "\xff"', 2))
    with pytest.raises(InputError, match=r"^All_Beauty\.json:1: is not UTF-8"):
        load(tmp_path)
    assert load(tmp_path, bad_lines="skip").notes["rows_dropped_by"]["malformed_line"] == 2


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("kind", ["truncated", "damaged", "wrong check sum"])
def test_a_broken_gz_names_the_last_good_line(tmp_path, kind, policy):
    rng, number = np.random.default_rng(0), 20_000
    keys = rng.integers(1 << 40, size=number)
    reviews = [review_line(2023, f"A{key}", f"B{key % 999}", 1400000000, 5.0, True) for key in keys]
    write_release(tmp_path, 2023, reviews=reviews)
    path = tmp_path / "All_Beauty.jsonl.gz"
    whole = path.read_bytes()
    half = len(whole) // 2
    broken = {
        "truncated": whole[:half],
        "damaged": whole[:half] + b"\xff" * 64 + whole[half + 64 :],
        "wrong check sum": whole[:-8] + b"\x00" * 8,
    }
    path.write_bytes(broken[kind])
    with pytest.raises(InputError) as caught:
        load(tmp_path, bad_lines=policy)
    name, line, message = str(caught.value).split(":", 2)
    assert name == "All_Beauty.jsonl.gz"
    # Damage may be decompressed into nonsense lines first, which stop the reading where they may.
    assert "the gz stream is broken" in message or (kind, policy) == ("damaged", "error")
    if kind == "wrong check sum":
        assert int(line) == number
    elif "gz stream" not in message or kind == "truncated":
        assert 0.95 * number / 2 < int(line) < 1.05 * number / 2


def test_files_are_found_or_named(tmp_path):
    with pytest.raises(
        InputError, match=r"needs one reviews file .*found none; set source_args\.reviews_file"
    ):
        load(tmp_path)
    write_release(tmp_path, 2018)
    write_release(tmp_path, 2023)
    with pytest.raises(InputError, match=r"needs one reviews file .*found \['All_Beauty\.json\.gz', 'All_"):
        load(tmp_path)
    names = {"reviews_file": "All_Beauty.jsonl.gz", "metadata_file": "meta_Beauty.jsonl.gz"}
    assert load(tmp_path, **names).notes["release"] == 2023
    with pytest.raises(InputError, match=r"All_Beauty\.jsonl\.gz:1: has no .'reviewerID', 'asin'"[:40]):
        load(tmp_path, **names, release=2018)
    with pytest.raises(InputError, match=r"source_args\.path: cannot read .*nowhere\.gz"):
        load(tmp_path, **names | {"reviews_file": "nowhere.gz"})
    write(tmp_path / "All_Beauty.jsonl.gz", ["", ""])
    with pytest.raises(InputError, match=r"All_Beauty\.jsonl\.gz: has no reviews"):
        load(tmp_path, **names)
