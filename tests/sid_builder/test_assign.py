"""Living catalogues through the command: joining, leaving and coming back, without touching anybody else."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rl.train_cases import draw_train_cases
from sft import TASKS
from sft.examples import TaskContext
from sid_builder import assign, build
from sid_builder.artifact import open_artifact, sha256_file
from sid_builder.embedding_store import Contents, encode_stored
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.new_items import place
from sid_builder.quantizers import load_quantizer
from sid_builder.quantizers.rq_kmeans import RQKMeans, RQKMeansConfig
from sid_builder.registry import resolve
from sid_builder.repairs import RepairInput, append_token
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex
from sid_builder.trie import SidTrie
from tests.builders import make_recommender

NUM_ITEMS = 24
CONFIG = """
source: jsonl
text_template: "{title}"
embedder: tests.sid_builder.test_assign:LetterCounts
quantizer_args: {levels: 2, codes_per_level: 7}
repair: last_level_assign
seed: 5
"""


@dataclass(frozen=True)
class LetterCountsConfig:
    """There are no options."""


class LetterCounts:
    """An embedder of an item's content alone, as models are: how often each of 26 letters occurs."""

    def __init__(self, config: LetterCountsConfig, seed: int = 0) -> None:
        pass

    def encode(self, items):
        return encode_stored(self, Contents.of_texts(items.texts), "none", None)[0]

    def identity(self) -> dict[str, Any]:
        return {"embedder": "letter_counts"}

    def encode_batches(self, values: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        counts = [[text.count(chr(97 + letter)) for letter in range(26)] for text in values]
        yield np.arange(len(values)), np.array(counts, dtype=np.float32)


def title_of(number: int) -> str:
    rng = np.random.default_rng(number)
    return "".join(chr(97 + letter) for letter in rng.integers(0, 26, 12))


def write_items(path, numbers, **more):
    rows = [{"item_id": f"i{number}", "title": title_of(number), **more} for number in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_ids(path, numbers):
    path.write_text("".join(f"i{number}\n" for number in numbers), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """`built(text, more)`: the artefact of a config, made once."""
    root, made = tmp_path_factory.mktemp("catalogue"), {}
    write_items(root / "items.jsonl", range(NUM_ITEMS), colour="red")
    rng = np.random.default_rng(0)
    sequences = [
        {"user": f"u{u}", "items": [f"i{i}" for i in rng.choice(NUM_ITEMS, 5, replace=False)]}
        for u in range(12)
    ]
    (root / "sequences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sequences))

    def make(text=CONFIG):
        if text not in made:
            (root / f"{len(made)}.yaml").write_text(text, encoding="utf-8")
            out = root / f"sids{len(made)}"
            build.main(
                [
                    "--config",
                    str(root / f"{len(made)}.yaml"),
                    "--data_path",
                    str(root),
                    "--output_dir",
                    str(out),
                ]
            )
            made[text] = out
        return made[text]

    return make


def run(sid_dir, output_dir, **flags) -> SidIndex:
    argv = ["--sid_dir", str(sid_dir), "--output_dir", str(output_dir)]
    for name, value in flags.items():
        argv += [f"--{name}", str(value)]
    return assign.main(argv)


def test_new_items_take_free_sids_and_nothing_else_changes(built, tmp_path):
    parent, out = built(), tmp_path / "v2"
    old = SidIndex.load(parent / "sid_index")
    index = run(parent, out, add=write_items(tmp_path / "new.jsonl", range(100, 110)))
    new = SidIndex.load(out / "sid_index")
    np.testing.assert_array_equal(new.semantic_ids.codes_NL, index.semantic_ids.codes_NL)
    np.testing.assert_array_equal(new.semantic_ids.codes_NL[:NUM_ITEMS], old.semantic_ids.codes_NL)
    assert new.semantic_ids.level_sizes == old.semantic_ids.level_sizes
    assert new.catalog.item_ids == [*old.catalog.item_ids, *(f"i{n}" for n in range(100, 110))]
    assert (
        new.catalog.table.schema == old.catalog.table.schema and new.catalog.row(NUM_ITEMS)["colour"] is None
    )
    assert new.semantic_ids.collision_rate == 0
    np.testing.assert_array_equal(new.train_counts_N, [*old.train_counts_N, *[0] * 10])

    artifact, first = open_artifact(out, "sids"), open_artifact(parent, "sids")
    artifact.verify_hashes()
    for name, entry in first.manifest["files"].items():
        if name.startswith(("interactions/", "quantizer/")):
            assert artifact.manifest["files"][name] == entry
    Interactions.load(out / "interactions").check(NUM_ITEMS + 10)
    embeddings_ND, old_ND = np.load(out / "embeddings.npy"), np.load(parent / "embeddings.npy")
    np.testing.assert_array_equal(embeddings_ND[:NUM_ITEMS], old_ND)
    assert embeddings_ND[NUM_ITEMS].tolist() == [title_of(100).count(chr(97 + n)) for n in range(26)]
    # Whoever's own code was free has it.
    wanted = load_quantizer(out / "quantizer").encode(embeddings_ND[NUM_ITEMS:])
    taken = {tuple(row) for row in old.semantic_ids.codes_NL.tolist()}
    for sid, own in zip(new.semantic_ids.codes_NL[NUM_ITEMS:].tolist(), wanted.tolist(), strict=True):
        assert tuple(sid) == tuple(own) or tuple(own) in taken
        taken.add(tuple(sid))

    assert artifact.summary["version"] == 2 and artifact.summary["num_added"] == 10
    assert artifact.manifest["inputs"]["parent"]["sha256"] == sha256_file(parent / "manifest.json")
    (entry,) = json.loads((out / "versions.json").read_text())
    assert entry["added"] == [f"i{n}" for n in range(100, 110)] and entry["version"] == 2
    assert entry["parent_sha256"] == sha256_file(parent / "manifest.json")
    assert json.loads((out / "report.json").read_text())["summary"]["num_items"] == NUM_ITEMS + 10


def test_ten_rounds_of_comings_and_goings(built, tmp_path):
    """Nobody's SID ever changes, none is given twice, and versions tell what happened."""
    rng = np.random.default_rng(1)
    current, shelf, gone, fresh = built(), set(range(NUM_ITEMS)), set(), 1000
    first = SidIndex.load(current / "sid_index")
    sid_of = dict(zip(first.catalog.item_ids, map(tuple, first.semantic_ids.codes_NL.tolist()), strict=True))
    for round_number in range(10):
        flags = {}
        joining = list(range(fresh, fresh + int(rng.integers(0, 5))))
        fresh += len(joining)
        leaving = rng.choice(sorted(shelf), int(rng.integers(1, 4)), replace=False).tolist()
        back = rng.choice(sorted(gone), min(len(gone), int(rng.integers(0, 3))), replace=False).tolist()
        if joining:
            flags["add"] = write_items(tmp_path / "add.jsonl", joining)
        if back:
            flags["restore"] = write_ids(tmp_path / "restore.txt", back)
        flags["remove"] = write_ids(tmp_path / "remove.txt", leaving)
        out = tmp_path / f"v{round_number + 2}"
        index = run(current, out, **flags)
        shelf = shelf - set(leaving) | set(back) | set(joining)
        gone = (gone | set(leaving)) - set(back)
        sids = list(map(tuple, index.semantic_ids.codes_NL.tolist()))
        assert len(set(sids)) == len(sids)
        for item_id, sid in zip(index.catalog.item_ids, sids, strict=True):
            assert sid_of.setdefault(item_id, sid) == sid
        live = [item_id for item_id, on in zip(index.catalog.item_ids, index.live_N, strict=True) if on]
        assert set(live) == {f"i{number}" for number in shelf}
        trie = SidIndex.load(out / "sid_index").trie
        assert {index.catalog.item_ids[item] for item in trie.leaf_items_V} == set(live)
        current = out
    history = json.loads((current / "versions.json").read_text())
    assert [entry["version"] for entry in history] == list(range(2, 12))
    assert history[-1]["removed"] == [f"i{number}" for number in leaving]


def test_a_removed_item_is_named_in_histories_and_never_decoded(built, tmp_path):
    index = run(built(), tmp_path / "v2", remove=write_ids(tmp_path / "gone.txt", [3, 7]))
    made = make_recommender(index)
    from serve.decoding.ranking import ItemFilter
    from serve.decoding.tree_beam import decode
    from serve.evaluation.floors import popularity, rank_floor
    from serve.evaluation.model_ranking import rank_targets

    prompt = made.template.seqrec_prompt([3, 5, 7])
    assert made.template.vocabulary.encode(index.semantic_ids.codes_NL[3])[0] in prompt
    filters = [
        None,
        ItemFilter(exclude=np.array([3, 5])),
        ItemFilter(allow=np.array([3, 7])),
        ItemFilter(allow=np.array([3, 8])),
    ]
    every, without, nothing, one = decode(made.model, [prompt] * 4, made.trie, 100, filters)
    assert sorted(every.items_K.tolist()) == [item for item in range(NUM_ITEMS) if item not in (3, 7)]
    assert set(without.items_K.tolist()) == set(every.items_K.tolist()) - {5}
    assert nothing.items_K.tolist() == [] and one.items_K.tolist() == [8]

    histories = Interactions.load(tmp_path / "v2" / "interactions").histories("test")
    reached = index.reachable(histories)
    assert 0 < len(reached) < len(histories) and not np.isin(reached.targets_C, [3, 7]).any()
    lost = np.isin(histories.targets_C, [3, 7])
    counts = popularity(histories.interactions, NUM_ITEMS)
    for ranked in (
        rank_floor(counts, histories, index.trie, exclude_history=False),
        rank_targets(made, histories, num_beams=100, exclude_history=False, progress=False),
    ):
        assert (ranked.item_rank_C[lost] == 0).all() and (ranked.sid_rank_C[lost] == 0).all()
        assert (ranked.item_rank_C[~lost] > 0).all() and ranked.item_rank_C.max() <= NUM_ITEMS - 2
        assert not ranked.covered_N[[3, 7]].any() and ranked.coverage == ranked.covered_N.sum() / (
            NUM_ITEMS - 2
        )


def test_a_removed_item_is_no_answer_to_learn(built, tmp_path):
    index = run(built(), tmp_path / "v2", remove=write_ids(tmp_path / "gone.txt", [3, 7]))
    interactions = Interactions.load(tmp_path / "v2" / "interactions")
    context = TaskContext(index, interactions, make_recommender(index).template)
    every = interactions.histories("train")
    for task in ("seqrec", "title_history2sid", "title2sid", "query2sid"):
        examples = resolve(TASKS, task, "task")(context, np.random.default_rng(0))
        targets = [target for example in examples for target in example.target_items]
        wanted = every.targets_C.tolist() if "2sid" not in task or "history" in task else range(NUM_ITEMS)
        assert sorted(targets) == sorted(target for target in wanted if target not in (3, 7))
    drawn = draw_train_cases(SimpleNamespace(index=index, interactions=interactions), 1000, "all", 0)
    assert sorted(drawn.targets_C.tolist()) == sorted(t for t in every.targets_C.tolist() if t not in (3, 7))


def test_a_restored_item_has_the_sid_it_had(built, tmp_path):
    run(built(), tmp_path / "v2", remove=write_ids(tmp_path / "ids.txt", [3, 7]))
    index = run(tmp_path / "v2", tmp_path / "v3", restore=write_ids(tmp_path / "ids.txt", [7]))
    assert np.flatnonzero(~index.live_N).tolist() == [3]
    first = SidIndex.load(built() / "sid_index")
    assert index.trie.leaf_of(first.semantic_ids.codes_NL[7].tolist()) is not None
    assert index.trie.leaf_of(first.semantic_ids.codes_NL[3].tolist()) is None


def test_a_running_index_goes_on(built, tmp_path):
    """append_token: the next index of the item's own codes, others' codes when those are used up."""
    parent = built(CONFIG.replace("last_level_assign", "append_token"))
    old = SidIndex.load(parent / "sid_index").semantic_ids
    index = run(parent, tmp_path / "v2", add=write_items(tmp_path / "new.jsonl", range(100, 120)))
    sids = index.semantic_ids
    assert old.depth == sids.depth == 3 and sids.collision_rate == 0
    own = load_quantizer(parent / "quantizer").encode(np.load(tmp_path / "v2" / "embeddings.npy")[NUM_ITEMS:])
    used = {(*row[:2],): 0 for row in old.codes_NL.tolist()}
    for row in old.codes_NL.tolist():
        used[(*row[:2],)] += 1
    for sid, wanted in zip(sids.codes_NL[NUM_ITEMS:].tolist(), own.tolist(), strict=True):
        prefix = tuple(sid[:2])
        assert sid[2] == used.get(prefix, 0)
        assert list(prefix) == wanted or used[tuple(wanted)] == sids.level_sizes[2]
        used[prefix] = used.get(prefix, 0) + 1


def test_a_running_index_for_some():
    """only_colliding: a free pair of codes is taken whole, a shared one goes on counting."""
    vectors_ND = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    quantizer = RQKMeans(RQKMeansConfig(levels=2, codes_per_level=4))
    quantizer.fit(vectors_ND)
    codes_NL = quantizer.encode(vectors_ND)
    given = RepairInput(codes_NL[:30], quantizer.level_sizes)
    repaired = append_token.repair(append_token.AppendTokenOptions(True, extra_codes=4), given)
    sids = SemanticIds(repaired.codes_NL, repaired.level_sizes)
    new_AL = place(sids, quantizer, vectors_ND[30:], (0, 1))
    joined = SemanticIds(np.concatenate([sids.codes_NL, new_AL]), sids.level_sizes)
    assert joined.collision_rate == 0
    SidTrie.build(joined.codes_NL)  # prefix-free
    length = (sids.codes_NL >= 0).sum(axis=1)
    assert set(length.tolist()) == {2, 3}
    for sid, wanted in zip(new_AL.tolist(), codes_NL[30:].tolist(), strict=True):
        alone = ((sids.codes_NL[:, :2] == wanted).all(axis=1) & (length == 2)).any()
        assert (sid[:2] == wanted) != alone


def test_a_full_catalogue_says_what_to_do(built, tmp_path):
    parent = built()
    room = 7 * 7 - NUM_ITEMS
    with pytest.raises(
        InputError, match=rf"new item {room + 1} of {room + 2}: levels of \[7, 7\] codes are full"
    ):
        run(parent, tmp_path / "v2", add=write_items(tmp_path / "a.jsonl", range(100, 100 + room + 2)))
    assert not (tmp_path / "v2").exists()
    full = run(parent, tmp_path / "v2", add=write_items(tmp_path / "a.jsonl", range(100, 100 + room)))
    assert full.semantic_ids.num_distinct == 49
    run(tmp_path / "v2", tmp_path / "v3", remove=write_ids(tmp_path / "gone.txt", [1]))
    with pytest.raises(InputError, match="new item 1 of 1: .*a removed item keeps its SID"):
        run(tmp_path / "v3", tmp_path / "v4", add=write_items(tmp_path / "a.jsonl", [999]))


def test_vectors_from_a_file(built, tmp_path):
    """An embedder fitted on its items has no vectors for new ones; they come from elsewhere."""
    parent = built(
        CONFIG.replace(
            "tests.sid_builder.test_assign:LetterCounts", "tfidf_svd\nembedder_args: {dim: 8, min_items: 1}"
        ).replace('"{title}"', '"{title} {colour}"')
    )
    items = write_items(tmp_path / "new.jsonl", [100, 101])
    with pytest.raises(
        InputError, match="embedder: 'tfidf_svd' is fitted on the items .* --embeddings new.npy"
    ):
        run(parent, tmp_path / "v2", add=items)
    vectors_AD = np.load(parent / "embeddings.npy")[:2] + 0.01
    np.save(tmp_path / "new.npy", vectors_AD)
    index = run(parent, tmp_path / "v2", add=items, embeddings=tmp_path / "new.npy")
    assert index.semantic_ids.collision_rate == 0
    np.testing.assert_array_equal(np.load(tmp_path / "v2" / "embeddings.npy")[NUM_ITEMS:], vectors_AD)
    for spoilt, message in (
        (vectors_AD[:1], r"has shape \(1, 8\); 2 new items need \(2, 8\)"),
        (vectors_AD[:, :3], r"has shape \(2, 3\); 2 new items need \(2, 8\)"),
        (np.where(np.arange(8) == 2, np.nan, vectors_AD), "has NaN or infinite values for item_id 'i100'"),
        (np.array(["a", "b"]), "is no matrix of numbers"),
    ):
        np.save(tmp_path / "new.npy", spoilt)
        with pytest.raises(InputError, match=message):
            run(parent, tmp_path / "v3", add=items, embeddings=tmp_path / "new.npy")
    (tmp_path / "new.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match="new.npy is no readable .npy file"):
        run(parent, tmp_path / "v3", add=items, embeddings=tmp_path / "new.npy")


def test_sids_that_were_given_have_no_quantizer(built, tmp_path):
    """Items can leave such a catalogue, not join it."""
    parent = tmp_path / "given"
    shutil.copytree(built(), parent)
    shutil.rmtree(parent / "quantizer")
    (parent / "embeddings.npy").unlink()
    manifest = json.loads((parent / "manifest.json").read_text())
    kept = {n: f for n, f in manifest["files"].items() if not n.startswith(("quantizer/", "embeddings"))}
    config = manifest["config"] | {"embedder": None, "quantizer": "given", "repair": "none"}
    (parent / "manifest.json").write_text(json.dumps(manifest | {"files": kept, "config": config}))
    with pytest.raises(InputError, match="holds no quantizer/, its SIDs were given"):
        run(parent, tmp_path / "v2", add=write_items(tmp_path / "new.jsonl", [100]))
    index = run(parent, tmp_path / "v2", remove=write_ids(tmp_path / "gone.txt", [0]))
    assert index.trie.num_live == NUM_ITEMS - 1 and not (tmp_path / "v2" / "embeddings.npy").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ({}, "add: nothing is to change; give --add, --remove or --restore"),
        ({"add": "absent.jsonl"}, "add: absent.jsonl is no file"),
        ({"remove": "i3\ni99\n"}, r"remove:2: item_id 'i99' is not in the catalogue of 24 items"),
        ({"remove": "i3\n\ni3\n"}, r"remove:3: item_id 'i3' stands on line 1 already"),
        ({"remove": "\n"}, "remove: .* names no item; write one item_id a line"),
        ({"restore": "i3\n"}, "restore: item_id 'i3' is on the shelf; drop the line"),
        ({"remove": "".join(f"i{n}\n" for n in range(24))}, "remove: all 24 items on the shelf are to go"),
        (
            {"add": '{"item_id": "i3", "title": "x"}\n'},
            "add:1: item_id 'i3' is in the catalogue; drop the line",
        ),
        ({"add": '{"item_id": "a"}\n{"item_id": "a"}\n'}, "add:2: item_id 'a' is a duplicate of add:1"),
        (
            {"add": '{"item_id": "a", "size": 4}\n'},
            r"add:1: 'size' is no column of the catalogue; drop it or use",
        ),
        ({"add": '{"item_id": "a"\n'}, "add:1: .* is not valid JSON"),
        ({"add": '{"title": "a"}\n'}, "add:1: item_id is None"),
        ({"add": ""}, "catalogue: it has no items"),
        ({"remove": "i3\n", "embeddings": "x"}, "embeddings: .* has no effect without --add"),
    ],
)
def test_bad_input_leaves_nothing_behind(built, tmp_path, flags, message):
    given = {}
    for name, content in flags.items():
        given[name] = content
        if content != "absent.jsonl":
            (tmp_path / name).write_text(content, encoding="utf-8")
            given[name] = tmp_path / name
    with pytest.raises(InputError, match=message) as caught:
        run(built(), tmp_path / "v2", **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "v2").exists()


def test_an_item_that_left_is_not_added_again(built, tmp_path):
    run(built(), tmp_path / "v2", remove=write_ids(tmp_path / "gone.txt", [3]))
    with pytest.raises(InputError, match="item_id 'i3' was removed; use --restore"):
        run(tmp_path / "v2", tmp_path / "v3", add=write_items(tmp_path / "new.jsonl", [3]))
    with pytest.raises(InputError, match="remove: item_id 'i3' was removed already"):
        run(tmp_path / "v2", tmp_path / "v3", remove=tmp_path / "gone.txt")
    with pytest.raises(InputError, match="output_dir: .* is sid_dir"):
        run(tmp_path / "v2", tmp_path / "v2", restore=tmp_path / "gone.txt", overwrite="true")


def test_a_build_without_embedder_is_named(built, tmp_path):
    parent = tmp_path / "sids"
    shutil.copytree(built(), parent)
    manifest = json.loads((parent / "manifest.json").read_text())
    (parent / "manifest.json").write_text(
        json.dumps(manifest | {"config": manifest["config"] | {"embedder": None}})
    )
    with pytest.raises(InputError, match="embedder: the build had none; .* --embeddings new.npy"):
        run(parent, tmp_path / "v2", add=write_items(tmp_path / "new.jsonl", [100]))


def test_an_index_of_format_1_had_no_removed_items(built, tmp_path):
    shutil.copytree(built() / "sid_index", tmp_path / "old")
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    del manifest["files"]["removed.npy"]
    (tmp_path / "old" / "trie" / "trie.json").write_text('{"depth": 2}\n')
    manifest["files"]["trie/trie.json"]["bytes"] = 13
    (tmp_path / "old" / "removed.npy").unlink()
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    index = SidIndex.load(tmp_path / "old")
    assert index.live_N.all() and index.trie.num_items == NUM_ITEMS
    np.testing.assert_array_equal(index.trie.codes_ML, SidTrie.build(index.semantic_ids.codes_NL).codes_ML)
