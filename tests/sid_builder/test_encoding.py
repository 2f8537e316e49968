"""Fit on a sample, encode in shards: the same codes as in one go, resumable, by one process or two."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sid_builder import encoding
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.processes import Processes
from sid_builder.quantizers import FitContext
from sid_builder.quantizers.rq_kmeans import RQKMeans, RQKMeansConfig

ROOT = Path(__file__).parents[2]
ROWS, SHARD = 5000, 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Memory-mapped vectors and a quantizer fitted on a sample of them."""
    folder = tmp_path_factory.mktemp("catalogue")
    rng = np.random.default_rng(0)
    np.save(folder / "embeddings.npy", rng.normal(size=(ROWS, 24)).astype(np.float32))
    quantizer = RQKMeans(RQKMeansConfig(levels=2, codes_per_level=16, iterations=5))
    rows_M = encoding.fit_sample(ROWS, 24, quantizer.level_sizes, points_per_code=100, min_rows=0)
    assert len(rows_M) == 1600
    encoding.fit_and_share(quantizer, mapped(folder), rows_M, folder / "quantizer")
    return folder


def mapped(folder):
    return np.load(folder / "embeddings.npy", mmap_mode="r")


def whole(folder):
    return RQKMeans.load(folder / "quantizer").encode(mapped(folder))


def test_the_sample_is_capped_by_points_and_bytes():
    np.testing.assert_array_equal(encoding.fit_sample(900, 8, (16, 4)), np.arange(900))
    assert len(encoding.fit_sample(10**6, 8, (16, 4))) == 262144
    rows_M = encoding.fit_sample(10**6, 8, (16, 4), min_rows=0)
    assert len(rows_M) == 16 * 256 and (np.diff(rows_M) > 0).all() and rows_M[-1] < 10**6
    np.testing.assert_array_equal(rows_M, encoding.fit_sample(10**6, 8, (16, 4), min_rows=0))
    assert (rows_M != encoding.fit_sample(10**6, 8, (16, 4), seed=1, min_rows=0)).any()
    assert len(encoding.fit_sample(10**6, 8, (16, 4), max_bytes=1000 * 32)) == 1000
    with pytest.warns(UserWarning, match="hold 100 vectors of 8 dimensions .* 16 codes; give 163"):
        encoding.fit_sample(10**6, 8, (16, 4), max_bytes=100 * 32)
    with pytest.raises(InputError, match="hold 10 vectors of 8 dimensions for codebooks of 16 codes"):
        encoding.fit_sample(10**6, 8, (16, 4), max_bytes=10 * 32)


def test_the_context_names_the_rows_of_the_sample(folder, tmp_path):
    class Seen(RQKMeans):
        def fit(self, embeddings_MD, context=None):
            self.seen = context.items_M
            super().fit(embeddings_MD, context)

    catalog = Catalog.from_rows([{"item_id": str(i), "title": "thing"} for i in range(ROWS)])
    interactions = Interactions.leave_one_out(["u"], [np.arange(4)])
    context = FitContext(catalog, interactions, np.arange(ROWS))
    quantizer, rows_M = Seen(RQKMeansConfig(levels=2, codes_per_level=4)), np.arange(0, ROWS, 7)
    encoding.fit_and_share(quantizer, mapped(folder), rows_M, tmp_path / "q", context)
    np.testing.assert_array_equal(quantizer.seen, rows_M)


def test_shards_give_the_codes_of_the_whole(folder, tmp_path):
    codes_NL = encoding.encode_in_shards(folder / "quantizer", mapped(folder), tmp_path, shard_rows=SHARD)
    assert isinstance(codes_NL, np.memmap) and codes_NL.dtype == np.int32
    np.testing.assert_array_equal(codes_NL, whole(folder))


def test_an_interrupted_run_keeps_finished_shards(folder, tmp_path, monkeypatch):
    encoded: list[int] = []
    encode = RQKMeans.encode

    def interrupted(self, embeddings_ND):
        if len(encoded) == 3:
            raise KeyboardInterrupt
        encoded.append(len(embeddings_ND))
        return encode(self, embeddings_ND)

    def counted(self, embeddings_ND):
        encoded.append(len(embeddings_ND))
        return encode(self, embeddings_ND)

    run = (folder / "quantizer", mapped(folder), tmp_path)
    monkeypatch.setattr(RQKMeans, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encoding.encode_in_shards(*run, shard_rows=SHARD)
    monkeypatch.setattr(RQKMeans, "encode", counted)
    codes_NL = encoding.encode_in_shards(*run, shard_rows=SHARD)
    assert encoded == [SHARD] * 7 + [ROWS - 7 * SHARD]  # each shard once over both runs
    monkeypatch.undo()
    np.testing.assert_array_equal(codes_NL, whole(folder))


def test_shards_of_other_vectors_are_not_kept(folder, tmp_path):
    other_ND = np.array(mapped(folder)) * -1
    encoding.encode_in_shards(folder / "quantizer", other_ND, tmp_path, shard_rows=SHARD)
    codes_NL = encoding.encode_in_shards(folder / "quantizer", mapped(folder), tmp_path, shard_rows=SHARD)
    np.testing.assert_array_equal(codes_NL, whole(folder))


def test_a_process_encodes_its_share(folder, tmp_path, monkeypatch):
    """Two processes one after the other, without waiting for each other."""
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    run = (folder / "quantizer", mapped(folder), tmp_path)
    encoding.encode_in_shards(*run, Processes(0, 2), shard_rows=SHARD)
    marks = sorted(path.name for path in tmp_path.glob("*.done"))
    assert marks == [f"shard_{shard:06d}.done" for shard in range(4)]
    codes_NL = encoding.encode_in_shards(*run, Processes(1, 2), shard_rows=SHARD)
    np.testing.assert_array_equal(codes_NL, whole(folder))


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from sid_builder import encoding
from sid_builder.processes import Processes
from sid_builder.quantizers.rq_kmeans import RQKMeans, RQKMeansConfig

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
processes = Processes.current()
assert processes.world_size == 2
embeddings_ND = np.load(folder / "embeddings.npy", mmap_mode="r")
quantizer = RQKMeans(RQKMeansConfig(levels=2, codes_per_level=16, iterations=5))
rows_M = encoding.fit_sample(len(embeddings_ND), 24, quantizer.level_sizes, points_per_code=100, min_rows=0)
encoding.fit_and_share(quantizer, embeddings_ND, rows_M, out / "quantizer")
codes_NL = encoding.encode_in_shards(out / "quantizer", embeddings_ND, out / "codes", shard_rows=700)
np.save(out / f"seen_{processes.rank}.npy", codes_NL)
"""


@pytest.mark.slow
def test_two_processes_give_the_codes_of_one(folder, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / "program.py"), str(folder), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"seen_{rank}.npy"), whole(folder))
