"""Quantizing a large catalogue: fitted on a sample, encoded in shards, by one process or many.

One process fits and saves; every process loads the quantizer and encodes its share of the shards of a
memory-mapped matrix into one `codes.npy`. A shard that is finished is marked, so an interrupted run, started
again with any number of processes, goes on with the others. A row's codes depend on the row alone, so they do
not depend on shards or processes either.

Memory does not depend on the catalogue's size: a process that fits by k-means holds the sample twice (4.3 GiB
by default), one that encodes a chunk per thread (see `quantizers.row_chunks`). Codes are mapped as well.

Legend: N items, M items fitted on, D dimensions, L levels.
"""

import dataclasses
import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sid_builder.artifact import sha256_file, write_json
from sid_builder.errors import InputError
from sid_builder.processes import Processes
from sid_builder.quantizers import FitContext, Quantizer, load_quantizer
from sid_builder.quantizers.row_hash import row_hashes

POINTS_PER_CODE = 256  # faiss's limit as well: more points change centroids little
SAMPLE_ROWS = 262144  # at least: trees have many nodes, and gradient-trained quantizers see more than k-means
FEWEST_POINTS_PER_CODE = 32
SAMPLE_BYTES = 2 << 30
SHARD_ROWS = 65536
_ROWS_IN_FINGERPRINT = 1024


def fit_sample(
    num_items: int,
    num_dims: int,
    level_sizes: Sequence[int],
    seed: int = 0,
    points_per_code: int = POINTS_PER_CODE,
    min_rows: int = SAMPLE_ROWS,
    max_bytes: int = SAMPLE_BYTES,
) -> np.ndarray:
    """Rows to fit on, int64 [M] ascending, drawn by seed: `points_per_code` for the largest level, `min_rows`
    at least, as far as there are so many and `max_bytes` of float32 hold them.

    Warns when `max_bytes` leaves fewer than 32 points per code.

    Raises:
        InputError: if `max_bytes` does not even hold one point per code.
    """
    largest = max(level_sizes)
    affordable = max_bytes // (4 * num_dims)
    size = min(num_items, max(largest * points_per_code, min_rows), affordable)
    if size == affordable and size < min(num_items, largest * FEWEST_POINTS_PER_CODE):
        enough = 4 * num_dims * largest * FEWEST_POINTS_PER_CODE
        message = (
            f"max_bytes: {max_bytes} bytes hold {affordable} vectors of {num_dims} dimensions for codebooks "
            f"of {largest} codes; give {enough} bytes or fewer codes_per_level"
        )
        if affordable < largest:
            raise InputError(message)
        warnings.warn(message, stacklevel=2)
    if size == num_items:
        return np.arange(num_items)
    return np.sort(np.random.default_rng(seed).choice(num_items, size, replace=False))


def fit_and_share(
    quantizer: Quantizer,
    embeddings_ND: np.ndarray,
    rows_M: np.ndarray,
    directory: Path,
    context: FitContext | None = None,
    processes: Processes | None = None,
) -> Quantizer:
    """Fit on some rows in the main process, save into `directory`, and load from there in every process.

    `directory` is made, and replaced if it exists. `context.items_M` becomes `rows_M`.
    """
    processes = processes or Processes.current()
    if processes.is_main:
        if context is not None:
            context = dataclasses.replace(context, items_M=rows_M)
        everything = len(rows_M) == len(embeddings_ND)
        quantizer.fit(embeddings_ND if everything else embeddings_ND[rows_M], context)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        quantizer.save(directory)
    processes.wait()
    return load_quantizer(directory)


def encode_in_shards(
    quantizer_dir: Path,
    embeddings_ND: np.ndarray,
    work_dir: Path,
    processes: Processes | None = None,
    shard_rows: int = SHARD_ROWS,
) -> np.ndarray:
    """Codes int32 [N, L], a read-only memory map of `work_dir`/codes.npy; all processes get the same.

    Every process calls this with the same arguments. Finished shards that `work_dir` holds of the same
    quantizer and vectors are kept; those of other ones are deleted.
    """
    processes = processes or Processes.current()
    quantizer = load_quantizer(quantizer_dir)
    shards = -(-len(embeddings_ND) // shard_rows)
    if processes.is_main:
        _prepare(work_dir, quantizer_dir, quantizer, embeddings_ND, shard_rows)
    processes.wait()
    codes_NL = np.load(work_dir / "codes.npy", mmap_mode="r+")
    for shard in tqdm(
        range(*processes.share_of(shards)), desc="encoding", unit="shard", disable=not processes.is_main
    ):
        mark = _mark(work_dir, shard)
        if not mark.exists():
            rows = slice(shard * shard_rows, (shard + 1) * shard_rows)
            codes_NL[rows] = quantizer.encode(embeddings_ND[rows])
            codes_NL.flush()
            mark.touch()
    processes.wait()
    return np.load(work_dir / "codes.npy", mmap_mode="r")


def _prepare(
    work_dir: Path, quantizer_dir: Path, quantizer: Quantizer, embeddings_ND: np.ndarray, shard_rows: int
) -> None:
    """Make `work_dir` ready for these inputs, unless it is already."""
    state, inputs = work_dir / "encoding.json", _fingerprint(quantizer_dir, embeddings_ND, shard_rows)
    if state.exists() and json.loads(state.read_text(encoding="utf-8")) == inputs:
        return
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    shape = (len(embeddings_ND), len(quantizer.level_sizes))
    np.lib.format.open_memmap(work_dir / "codes.npy", mode="w+", dtype="<i4", shape=shape).flush()
    write_json(state, inputs)  # last: without it the directory is made anew


def _mark(work_dir: Path, shard: int) -> Path:
    return work_dir / f"shard_{shard:06d}.done"


def _fingerprint(quantizer_dir: Path, embeddings_ND: np.ndarray, shard_rows: int) -> dict[str, Any]:
    """What finished shards depend on; of the vectors some rows spread over the matrix."""
    spread = np.linspace(0, len(embeddings_ND) - 1, min(len(embeddings_ND), _ROWS_IN_FINGERPRINT))
    hashes = row_hashes(embeddings_ND[spread.astype(np.int64)])
    return {
        "quantizer": {path.name: sha256_file(path) for path in sorted(quantizer_dir.iterdir())},
        "shape": list(embeddings_ND.shape),
        "rows": f"{int(np.bitwise_xor.reduce(hashes * np.arange(1, len(hashes) + 1, dtype=np.uint64))):016x}",
        "shard_rows": shard_rows,
    }
