"""Event logs: what is kept, in which order, and which split asks for what, against plain enumerations."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from sid_builder import cli
from sid_builder.errors import InputError
from sid_builder.event_log import EventLog, LogBuilder
from sid_builder.events import EventOptions, k_core, narrow, prepare, seconds_of
from sid_builder.interactions import SPLITS

SEEDS = range(8)


def make_log(rows: list[tuple], batches: int = 1) -> EventLog:
    """A log of (user, item, timestamp, rating) rows, added in so many batches."""
    builder = LogBuilder()
    for part in np.array_split(np.arange(len(rows)), batches):
        users, items, stamps, ratings = zip(*(rows[i] for i in part), strict=True)
        builder.add(pa.array(users), pa.array(items), np.array(stamps), {"rating": np.array(ratings)})
    return builder.finish()


def random_rows(seed: int, num_rows: int = 300) -> list[tuple]:
    """Skewed users and items, few distinct times: many ties and repeats."""
    rng = np.random.default_rng(seed)
    return [
        (f"u{min(rng.geometric(0.08), 40)}", f"i{min(rng.geometric(0.1), 30)}", int(rng.integers(60)), r)
        for r in rng.integers(1, 6, num_rows)
    ]


def sequences_of(prepared) -> dict[str, list[tuple[str, int]]]:
    """User -> [(item id, timestamp)] in order."""
    interactions, ids = prepared.interactions, prepared.item_ids.to_pylist()
    pairs = [
        (ids[item], int(stamp))
        for item, stamp in zip(interactions.items_I, interactions.timestamps_I, strict=True)
    ]
    bounds = pairwise(interactions.indptr_S1.tolist())
    return {user: pairs[a:b] for user, (a, b) in zip(interactions.users.to_pylist(), bounds, strict=True)}


def test_builder_keeps_order_and_codes_over_batches():
    rows = random_rows(0)
    whole, parts = make_log(rows), make_log(rows, batches=7)
    assert whole.users.to_pylist() == list(dict.fromkeys(row[0] for row in rows))
    assert whole.users.equals(parts.users) and whole.items.equals(parts.items)
    names = whole.users.to_pylist(), whole.items.to_pylist()
    for log in (whole, parts):
        assert [names[0][u] for u in log.user_I] == [row[0] for row in rows]
        assert [names[1][i] for i in log.item_I] == [row[1] for row in rows]
        assert log.timestamps_I.tolist() == [row[2] for row in rows]
        assert log.user_I.dtype == log.item_I.dtype == np.int32
        assert log.features_I["rating"].dtype == np.float32


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("user_core", "item_core"), [(2, 2), (5, 3), (3, 8), (1, 4)])
def test_k_core_equals_one_removal_at_a_time(seed, user_core, item_core):
    log = make_log(random_rows(seed))
    left = set(range(len(log)))
    while True:
        users = Counter(log.user_I[i] for i in left)
        items = Counter(log.item_I[i] for i in left)
        weak = [i for i in left if users[log.user_I[i]] < user_core or items[log.item_I[i]] < item_core]
        if not weak:
            break
        # One user or item at a time, not all at once: the core does not depend on the order of removal.
        row = min(weak)
        if users[log.user_I[row]] < user_core:
            left -= {i for i in left if log.user_I[i] == log.user_I[row]}
        else:
            left -= {i for i in left if log.item_I[i] == log.item_I[row]}
    kept = k_core(log.user_I, log.item_I, user_core, item_core)
    assert np.flatnonzero(kept).tolist() == sorted(left)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("repeats", ["keep", "first", "last"])
def test_pipeline_equals_plain_python(seed, repeats):
    rows = random_rows(seed)
    catalogue = [f"i{n}" for n in range(29, 0, -1) if n != 3]
    options = EventOptions(since=10, until=50, min_rating=2, repeats=repeats, user_core=3, item_core=2)
    # An earlier narrowing without the catalogue changes nothing but who counts a row as dropped.
    narrowed, dropped = narrow(make_log(rows), options)
    once = prepare(make_log(rows), pa.array(catalogue), options)
    twice = prepare(narrowed, pa.array(catalogue), options, dropped)

    kept = [r for r in rows if r[1] in catalogue and 10 <= r[2] < 50 and r[3] >= 2]
    ordered = sorted(kept, key=lambda row: row[2])
    if repeats != "keep":
        seen: dict[tuple, tuple] = {}
        for row in ordered if repeats == "last" else reversed(ordered):
            seen[row[:2]] = row
        ordered = [row for row in ordered if row is seen[row[:2]]]
    while True:
        users, items = Counter(r[0] for r in ordered), Counter(r[1] for r in ordered)
        core = [r for r in ordered if users[r[0]] >= 3 and items[r[1]] >= 2]
        if len(core) == len(ordered):
            break
        ordered = core
    expected: dict[str, list] = {}
    for row in ordered:
        expected.setdefault(row[0], []).append((row[1], row[2]))
    left = {row[1] for row in ordered}
    for prepared in (once, twice):
        assert sequences_of(prepared) == expected
        assert prepared.item_ids.to_pylist() == [item for item in catalogue if item in left]
        assert [catalogue[row] for row in prepared.item_rows_N] == prepared.item_ids.to_pylist()
        assert prepared.notes["rows_read"] == len(rows)
        assert prepared.notes["rows_dropped"] == len(rows) - len(ordered)
        assert sum(prepared.notes["rows_dropped_by"].values()) == len(rows) - len(ordered)
    assert once.notes["users_dropped"] == len({row[0] for row in rows}) - len(expected)
    assert (once.interactions.features_I["rating"] >= 2).all()


def test_features_stay_with_their_interaction():
    rows = [("u", "a", 9, 1), ("v", "b", 3, 2), ("u", "b", 4, 3), ("u", "c", 4, 4), ("v", "a", 1, 5)]
    interactions = prepare(make_log(rows), None, EventOptions()).interactions
    assert interactions.users.to_pylist() == ["u", "v"]
    assert interactions.features_I["rating"].tolist() == [3, 4, 1, 5, 2]
    assert interactions.timestamps_I.tolist() == [4, 4, 9, 1, 3]


def test_items_without_metadata_or_interactions():
    rows = [("u", "a", 1, 5), ("u", "x", 2, 5), ("u", "b", 3, 5), ("v", "y", 4, 5)]
    known = pa.array(["b", "unused", "a"])
    prepared = prepare(make_log(rows), known, EventOptions())
    assert prepared.item_ids.to_pylist() == ["b", "a"] and prepared.item_rows_N.tolist() == [0, 2]
    assert prepared.notes["rows_dropped_by"] == {"item_without_metadata": 2}
    assert prepared.notes["items_without_metadata"] == 2
    assert prepared.notes["items_without_interactions"] == 1 and prepared.notes["users_dropped"] == 1
    kept = EventOptions(items_without_metadata="keep", items_without_interactions="keep")
    prepared = prepare(make_log(rows), known, kept)
    assert prepared.item_ids.to_pylist() == ["b", "unused", "a", "x", "y"]
    assert prepared.item_rows_N.tolist() == [0, 1, 2, -1, -1]
    assert prepared.interactions.items_I.tolist() == [2, 3, 0, 4] and prepared.notes["rows_dropped"] == 0
    with pytest.raises(InputError, match=r"item 'x' is not in the items file \(nor are 1 more\)"):
        prepare(make_log(rows), known, EventOptions(items_without_metadata="error"))
    with pytest.raises(InputError, match="none of their 4 items is in the items file, not even 'a'"):
        prepare(make_log(rows), pa.array(["other"]), EventOptions())


@pytest.mark.parametrize("seed", SEEDS)
def test_global_temporal_cuts_windows_by_time(seed):
    rows = random_rows(seed, num_rows=80 + 31 * seed)
    interactions = prepare(make_log(rows), None, EventOptions(split="global_temporal")).interactions
    stamps, asked, times = interactions.timestamps_I, [], {}
    for split in SPLITS:
        cases = interactions.histories(split)
        rows_C = interactions.indptr_S1[cases.sequence_C] + cases.position_C
        asked += list(zip(cases.sequence_C.tolist(), cases.position_C.tolist(), strict=True))
        times[split] = stamps[rows_C]
    assert times["train"].max() <= times["valid"].min()
    assert times["valid"].max() <= times["test"].min()
    lengths = np.diff(interactions.indptr_S1)
    windows = [(s, p) for s, length in enumerate(lengths) for p in range(1, length)]
    assert sorted(asked) == windows  # each position with a history in exactly one split
    shares = [len(times[split]) for split in SPLITS]
    assert abs(shares[0] - 0.8 * len(windows)) < 1 and abs(shares[1] - 0.1 * len(windows)) < 1
    # First positions: train learns of an item's popularity only what came before the cut.
    counted = interactions.train_counts(31).sum() - shares[0]
    assert counted == sum(interactions.train_hi_S > 0)
    first_times = stamps[interactions.indptr_S1[:-1]]
    assert (first_times[interactions.train_hi_S > 0] <= times["valid"].min()).all()
    assert (first_times[interactions.train_hi_S == 0] >= times["train"].max()).all()


@pytest.mark.parametrize("split", ["leave_one_out", "global_temporal"])
@pytest.mark.parametrize("max_history", [1, 4, None])
def test_histories_are_the_sliding_windows(split, max_history):
    prepared = prepare(make_log(random_rows(5)), None, EventOptions(split=split))
    interactions = prepared.interactions
    windows = {}
    for name in SPLITS:
        cases = interactions.histories(name)
        for case in range(len(cases)):
            key = int(cases.sequence_C[case]), int(cases.position_C[case])
            windows[key] = cases.history(case, max_history).tolist(), int(cases.targets_C[case])
    expected = {}
    for s, (start, end) in enumerate(pairwise(interactions.indptr_S1.tolist())):
        items = interactions.items_I[start:end].tolist()
        for position in range(1, len(items)):
            history = items[:position] if max_history is None else items[:position][-max_history:]
            expected[s, position] = history, items[position]
    assert windows == expected


def test_moments():
    assert seconds_of("2016-10-01", "since") == 1475280000 == seconds_of(1475280000, "since")
    assert seconds_of("2016-10-01T02:00:00+02:00", "since") == 1475280000
    assert seconds_of("2016-10-01T00:00:00Z", "since") == 1475280000


def test_yaml_dates_stay_text(tmp_path):
    (tmp_path / "c.yaml").write_text("since: 2016-10-01\nuntil: 1500000000\n")
    options = cli.build_dataclass(EventOptions, cli.load_yaml(tmp_path / "c.yaml"), "source_args")
    assert (options.since, options.until) == ("2016-10-01", 1500000000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"since": "soon"}, "since: 'soon' is no ISO date"),
        ({"since": "2017-01-01", "until": "2016-01-01"}, "until: 2016-01-01 is not after since"),
        ({"user_core": 0}, "user_core: 0; give at least 1"),
        ({"split_shares": [9, 1]}, r"split_shares: \[9.*three positive numbers"),
        ({"split_shares": [7, 2, 1]}, r"split_shares: .* has no effect on leave_one_out"),
        ({"repeats": "both"}, "repeats: 'both' is not one of"),
        ({"item_core": 99}, r"none are left \(dropped: k_core 2\)"),
        ({"since": 100}, r"none are left \(dropped: outside_time_window 2\)"),
    ],
)
def test_options_are_checked(options, message):
    log = make_log([("u", "a", 1, 5), ("u", "b", 2, 5)])
    with pytest.raises(InputError, match=message):
        prepare(log, None, cli.build_dataclass(EventOptions, options, "source_args"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": 5}, "until: the data has no timestamps"),
        ({"min_rating": 3}, "min_rating: the data has no ratings"),
        ({"split": "global_temporal"}, "split: global_temporal needs timestamps"),
    ],
)
def test_options_need_their_column(options, message):
    builder = LogBuilder()
    builder.add(pa.array(["u", "u"]), pa.array(["a", "b"]))
    with pytest.raises(InputError, match=message):
        prepare(builder.finish(), None, EventOptions(**options))


def test_without_timestamps_the_file_order_counts():
    builder = LogBuilder()
    builder.add(pa.array(["u", "v", "u", "u"]), pa.array(["b", "a", "a", "b"]))
    log = builder.finish()
    assert prepare(log, None, EventOptions()).interactions.items_I.tolist() == [0, 1, 0, 1]
    assert prepare(log, None, EventOptions(repeats="first")).interactions.items_I.tolist() == [0, 1, 1]
    assert prepare(log, None, EventOptions(repeats="last")).interactions.items_I.tolist() == [1, 0, 1]


def test_an_empty_log_is_an_error():
    with pytest.raises(InputError, match="interactions: there are none that can be used"):
        prepare(LogBuilder().finish(), None, EventOptions())
