"""The store of vectors: nothing twice, nothing lost, the same bytes however the work was cut up."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sid_builder import embedding_store
from sid_builder.embedding_store import Contents, encode_stored
from sid_builder.errors import InputError

ROOT = Path(__file__).parents[2]


class CountingEncoder:
    """Vectors made of a text's bytes and of the company it is encoded in, as a model's last bits are."""

    def __init__(self, options="a", fail_after=None, bad=None):
        self.options, self.fail_after, self.bad = options, fail_after, bad
        self.encoded = []

    def identity(self):
        return {"embedder": "counting", "options": self.options}

    def encode_batches(self, values):
        assert [len(value) for value in values] == sorted(map(len, values), reverse=True)
        for low in range(0, len(values), 3):
            if self.fail_after is not None and len(self.encoded) >= self.fail_after:
                raise KeyboardInterrupt
            batch = list(values[low : low + 3])
            self.encoded += batch
            sums = [sum(value.encode()) + 1e-3 * len("".join(batch)) for value in batch]
            vectors = np.array([[total, len(value)] for total, value in zip(sums, batch, strict=True)])
            if self.bad in batch:
                vectors[batch.index(self.bad), 1] = np.nan
            yield np.arange(low, low + len(batch)), vectors.astype(np.float32)


@pytest.fixture(autouse=True)
def blocks_of_ten(monkeypatch, tmp_path):
    monkeypatch.setattr(embedding_store, "BLOCK", 10)
    monkeypatch.setenv(embedding_store.CACHE_VARIABLE, str(tmp_path / "cache"))


def texts(number, start=0):
    return [f"{'word ' * (i * 7 % 11)}{i}" for i in range(start, start + number)]


def encode(encoder, given, work_dir=None, cache_dir=None):
    return encode_stored(encoder, Contents.of_texts(given), cache_dir, work_dir)


def test_only_what_is_new_is_encoded(tmp_path):
    first = CountingEncoder()
    vectors_ND, notes = encode(first, texts(45))
    assert sorted(first.encoded) == sorted(texts(45)) and notes == {"distinct_contents": 45, "encoded": 45}
    again = CountingEncoder()
    again_ND, notes = encode(again, texts(45)[::-1])
    assert not again.encoded and notes["encoded"] == 0
    np.testing.assert_array_equal(again_ND[::-1], vectors_ND)
    grown = CountingEncoder()
    grown_ND, notes = encode(grown, texts(52))
    assert sorted(grown.encoded) == sorted(texts(7, start=45)) and notes["encoded"] == 7
    np.testing.assert_array_equal(grown_ND[:45], vectors_ND)
    other = CountingEncoder("other options")
    encode(other, texts(45))
    assert len(other.encoded) == 45


def test_equal_texts_are_encoded_once():
    encoder = CountingEncoder()
    vectors_ND, notes = encode(encoder, ["a", "b", "a", "", "b", ""])
    assert sorted(encoder.encoded) == ["", "a", "b"] and notes == {"distinct_contents": 3, "encoded": 3}
    np.testing.assert_array_equal(vectors_ND[[0, 1, 3]], vectors_ND[[2, 4, 5]])


@pytest.mark.parametrize("fail_after", [0, 4, 10, 34])
def test_an_interrupted_run_goes_on_with_the_same_bytes(fail_after, tmp_path):
    expected_ND, _ = encode(CountingEncoder(), texts(45), cache_dir=str(tmp_path / "elsewhere"))
    broken = CountingEncoder(fail_after=fail_after)
    with pytest.raises(KeyboardInterrupt):
        encode(broken, texts(45))
    whole_blocks = len(broken.encoded) // 10 * 10
    resumed = CountingEncoder()
    vectors_ND, notes = encode(resumed, texts(45))
    assert len(resumed.encoded) == notes["encoded"] == 45 - whole_blocks
    assert not set(resumed.encoded) & set(broken.encoded[:whole_blocks])
    np.testing.assert_array_equal(vectors_ND, expected_ND)


def test_the_order_of_items_plays_no_part(tmp_path):
    expected_ND, _ = encode(CountingEncoder(), texts(45), cache_dir=str(tmp_path / "one"))
    order = np.random.default_rng(0).permutation(45)
    shuffled_ND, _ = encode(CountingEncoder(), [texts(45)[i] for i in order], cache_dir=str(tmp_path / "two"))
    np.testing.assert_array_equal(shuffled_ND, expected_ND[order])


def test_a_work_dir_holds_the_matrix_as_a_map(tmp_path):
    plain_ND, _ = encode(CountingEncoder(), texts(45))
    assert not isinstance(plain_ND, np.memmap)
    mapped_ND, _ = encode(CountingEncoder(), texts(45), tmp_path / "work")
    assert isinstance(mapped_ND, np.memmap) and mapped_ND.dtype == np.float32 and mapped_ND.flags.c_contiguous
    np.testing.assert_array_equal(mapped_ND, plain_ND)
    (file,) = (tmp_path / "work").iterdir()
    written = file.stat().st_mtime_ns
    encode(CountingEncoder(), texts(45), tmp_path / "work")
    assert file.stat().st_mtime_ns == written  # used again
    encode(CountingEncoder(), texts(45)[::-1], tmp_path / "work")
    assert len(list((tmp_path / "work").iterdir())) == 2


def test_a_full_disk_is_named_before_the_map_is_made(tmp_path, monkeypatch):
    almost_full = SimpleNamespace(free=100)
    monkeypatch.setattr(embedding_store.shutil, "disk_usage", lambda path: almost_full)
    with pytest.raises(InputError, match=r"output_dir: the embeddings need 0\.0 GB in .*make room"):
        encode(CountingEncoder(), texts(45), tmp_path / "work")


def test_vectors_that_are_not_finite_are_named_and_not_kept():
    with pytest.raises(
        InputError, match="'counting' gave NaN .* for 1 items so far, first for item_index 17"
    ):
        encode(CountingEncoder(bad=texts(45)[17]), texts(45))
    healed = CountingEncoder()
    vectors_ND, _ = encode(healed, texts(45))
    assert texts(45)[17] in healed.encoded and np.isfinite(vectors_ND).all()


def test_a_damaged_shard_is_named(tmp_path):
    encode(CountingEncoder(), texts(45))
    shard = sorted((tmp_path / "cache").rglob("shard-*"))[2]
    content = shard.read_bytes()
    shard.write_bytes(content[:-9])
    with pytest.raises(InputError, match=rf"cache_dir: .*{shard.name} is damaged .*; delete it"):
        encode(CountingEncoder(), texts(45))
    shard.unlink()
    again = CountingEncoder()
    encode(again, texts(45))
    assert len(again.encoded) in (5, 10)  # what the shard held


def test_without_a_cache_nothing_stays_but_in_the_work_dir(tmp_path, monkeypatch):
    monkeypatch.setenv(embedding_store.CACHE_VARIABLE, embedding_store.NO_CACHE)
    monkeypatch.setattr(embedding_store.tempfile, "tempdir", str(tmp_path))
    for _ in range(2):
        encoder = CountingEncoder()
        encode(encoder, texts(15))
        assert len(encoder.encoded) == 15
    assert not list(tmp_path.iterdir())
    encode(CountingEncoder(), texts(15), tmp_path / "work")
    encoder = CountingEncoder()
    encode(encoder, texts(16), tmp_path / "work")
    assert encoder.encoded == texts(1, start=15)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="cache_dir: 'none' leaves 2 processes no place to share vectors"):
        encode(CountingEncoder(), texts(15))


def test_the_default_place_is_below_home(tmp_path, monkeypatch):
    monkeypatch.delenv(embedding_store.CACHE_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    encode(CountingEncoder(), texts(3))
    (directory,) = (tmp_path / ".cache" / "sidereal" / "embeddings").iterdir()
    assert directory.name.startswith("counting-") and (directory / "identity.json").is_file()


WORKER = """
import sys
from pathlib import Path
import numpy as np
from sid_builder import embedding_store
from sid_builder.embedders.causal_lm import CausalLmConfig, CausalLmEmbedder
from sid_builder.processes import Processes
from tests.sid_builder.model_directories import item_data, random_texts

embedding_store.BLOCK = 16
out, processes = Path(sys.argv[1]), Processes.current()
embedder = CausalLmEmbedder(CausalLmConfig(model=sys.argv[2], tokens_per_batch=256, device="cpu"))
made = []
batches = embedder.encode_batches
embedder.encode_batches = lambda values: made.extend(values) or batches(values)
mapped = embedder.encode(item_data(random_texts(100, 30), work_dir=out / "work"))
np.save(out / f"seen-{processes.rank}-of-{processes.world_size}.npy", mapped)
(out / f"encoded-{processes.rank}-of-{processes.world_size}").write_text(str(len(made)))
"""


@pytest.mark.slow
def test_two_processes_make_the_bytes_of_one(tmp_path):
    from tests.sid_builder.model_directories import save_causal_lm

    model = save_causal_lm(tmp_path / "model")
    (tmp_path / "worker.py").write_text(WORKER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, command in (("one", [sys.executable]), ("two", launcher)):
        (tmp_path / name).mkdir()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            embedding_store.CACHE_VARIABLE: str(tmp_path / name / "cache"),
        }
        subprocess.run(
            [*command, str(tmp_path / "worker.py"), str(tmp_path / name), str(model)],
            check=True,
            env=environment,
            timeout=240,
        )
    one_ND = np.load(tmp_path / "one" / "seen-0-of-1.npy")
    shares = [int((tmp_path / "two" / f"encoded-{rank}-of-2").read_text()) for rank in range(2)]
    assert one_ND.shape == (100, 32) and sum(shares) == 100 and min(shares) >= 32
    for rank in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / "two" / f"seen-{rank}-of-2.npy"), one_ND)
