"""Vectors models have made, kept by content, so that nothing is encoded twice.

    CACHE/embeddings/causal_lm-3f2a90c1d2e4b5a6/   one per model and options that change its vectors
        identity.json                              what the directory's name is a hash of
        shard-9c1d....safetensors                  keys uint8 [n, 32] (sha256), vectors float32 [n, d]

CACHE is the embedder's `cache_dir`, else $SIDEREAL_CACHE, else ~/.cache/sidereal. Directories may be
deleted at any time; they cost the encoding.

What is not there yet is cut into blocks of `BLOCK` contents, longest first. A block is the unit of
everything: one shard, renamed into place when whole, so an interruption costs one block per process; what
processes share out; and the only rows that ever meet in one batch. The vectors of a run are therefore the
same bytes in one process or many, interrupted or not (with the same batch size, on like machines with like
thread counts; a row encoded in other company, as new items of a grown catalogue are, may differ in the last
bits).

Legend: N items, U distinct contents, P of them still to encode, d dimensions.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from sid_builder.artifact import write_json
from sid_builder.errors import InputError
from sid_builder.processes import Processes

CACHE_VARIABLE = "SIDEREAL_CACHE"
DEFAULT_CACHE = "~/.cache/sidereal"
NO_CACHE = "none"
CACHE_HELP = (
    f"Directory that keeps the vectors for later builds, or {NO_CACHE!r}; default: ${CACHE_VARIABLE}, "
    f"else {DEFAULT_CACHE}."
)
BLOCK = 512


@dataclass(frozen=True)
class Contents:
    """What is encoded, one row per item: `values[i]`, its sha256 in `keys_N` (dtype S32) and its size, in any
    unit that grows with the work, in `sizes_N` (int64).
    """

    values: Sequence[Any]
    keys_N: np.ndarray
    sizes_N: np.ndarray

    @staticmethod
    def of_texts(texts: Sequence[str]) -> "Contents":
        keys_N = np.array([content_key(text.encode()) for text in texts], dtype="S32")
        return Contents(texts, keys_N, np.array([len(text) for text in texts], dtype=np.int64))


def content_key(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


class StoredEncoder(Protocol):
    """What the store needs of a model; nothing is loaded before `encode_batches` is first called."""

    def identity(self) -> dict[str, Any]:
        """All that the vectors depend on, JSON values: `embedder` (its name), the weights, the options."""

    def encode_batches(self, values: Sequence[Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every value once, in batches: (rows int64 [b] of `values`, vectors float32 [b, d]).

        `values` are at most `BLOCK`, longest first.
        """


def encode_stored(
    encoder: StoredEncoder, contents: Contents, cache_dir: str | None, work_dir: Path | None
) -> tuple[np.ndarray, dict[str, int]]:
    """Vectors of all items; only contents the store has not seen are encoded, each once.

    Every process of a launch calls this with the same contents, encodes its share and gets the same
    matrix. With a `work_dir` the matrix is a read-only memory map of a file there, named by its content
    and used again when it is there already. Without one it is an array in each process's memory.

    Memory, beside the model and a mapped matrix (whose pages the system drops when it needs to):
    contents, 200 bytes per item for keys and places, one block of vectors (4 * BLOCK * d bytes).

    Returns:
        float32 [N, d], and {"distinct_contents": U, "encoded": P}.

    Raises:
        InputError: for NaN or infinite vectors (nothing of their block is kept), a damaged shard, a full
        disk.
    """
    processes = Processes.current()
    keys_U, first_U, of_item_N = np.unique(contents.keys_N, return_index=True, return_inverse=True)
    identity = encoder.identity()
    with _open_store(identity, cache_dir, work_dir, processes) as store:
        pending_P = np.flatnonzero(store.locate(keys_U).shard_U < 0)
        processes.wait()  # everybody has looked before anybody writes
        # keys_U is sorted, so equal sizes follow their keys and the order of items plays no part
        longest_first = pending_P[np.argsort(-contents.sizes_N[first_U[pending_P]], kind="stable")]
        blocks = [longest_first[low : low + BLOCK] for low in range(0, len(longest_first), BLOCK)]
        mine = blocks[processes.rank :: processes.world_size]  # in turns: the first blocks are the longest
        rows = sum(map(len, mine))
        title = "encode" if processes.world_size == 1 else f"encode 1 of {processes.world_size} shares"
        hidden = not (processes.is_main and rows)
        with tqdm(total=rows, desc=title, unit="item", disable=hidden) as progress:
            for block in mine:
                vectors = _encode_block(encoder, contents, first_U[block], identity["embedder"], progress)
                store.write_shard(keys_U[block], vectors)
        processes.wait()
        places = store.locate(keys_U)
        if (places.shard_U < 0).any():
            raise InputError(
                f"cache_dir: {store.directory} lacks {int((places.shard_U < 0).sum())} vectors just encoded; "
                "give a directory that all processes share, and run again"
            )
        matrix_ND = store.assemble(places, of_item_N, contents.keys_N, work_dir, processes)
    return matrix_ND, {"distinct_contents": len(keys_U), "encoded": len(pending_P)}


def _encode_block(
    encoder: StoredEncoder, contents: Contents, items: np.ndarray, embedder: str, progress: tqdm
) -> np.ndarray:
    vectors: np.ndarray | None = None
    done = np.zeros(len(items), dtype=bool)
    for rows, batch in encoder.encode_batches([contents.values[item] for item in items]):
        if vectors is None:
            vectors = np.empty((len(items), batch.shape[1]), dtype=np.float32)
        vectors[rows] = batch
        done[rows] = True
        progress.update(len(rows))
    assert vectors is not None and done.all(), "encode_batches left rows out"
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise InputError(
            f"embedder: {embedder!r} gave NaN or infinite values for {int(bad.sum())} items so far, first "
            f"for item_index {int(items[bad].min())}; check that item and the model's dtype"
        )
    return vectors


@dataclass(frozen=True)
class Places:
    """Where contents lie: row `row_U` of shard number `shard_U` (-1: nowhere) of `shards`."""

    shards: list[Path]
    shard_U: np.ndarray
    row_U: np.ndarray


class EmbeddingStore:
    """The shards in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def locate(self, keys_U: np.ndarray) -> Places:
        """Places of sorted, distinct keys (dtype S32); of a key in several shards, the first by name."""
        shards = sorted(self.directory.glob("shard-*.safetensors"))
        shard_U = np.full(len(keys_U), -1, dtype=np.int32)
        row_U = np.zeros(len(keys_U), dtype=np.int32)
        for number, path in enumerate(shards):
            keys = _read_tensor(path, "keys").reshape(-1).view("S32")
            at = np.searchsorted(keys_U, keys)
            rows = np.flatnonzero(keys_U[np.minimum(at, len(keys_U) - 1)] == keys)
            rows = rows[shard_U[at[rows]] < 0]
            shard_U[at[rows]], row_U[at[rows]] = number, rows
        return Places(shards, shard_U, row_U)

    def write_shard(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        from safetensors.numpy import save

        keys = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), 32)
        path = self.directory / f"shard-{hashlib.sha256(keys.tobytes()).hexdigest()[:16]}.safetensors"
        _write_whole(path, save({"keys": keys, "vectors": vectors}))

    def assemble(
        self,
        places: Places,
        of_item_N: np.ndarray,
        keys_N: np.ndarray,
        work_dir: Path | None,
        processes: Processes,
    ) -> np.ndarray:
        """Vectors float32 [N, d] in the order of items (`of_item_N`: item -> distinct content), in memory or
        as a map of a file in `work_dir`.
        """
        dim = _read_tensor(places.shards[places.shard_U[0]], "vectors").shape[1]
        shape = (len(of_item_N), dim)
        if work_dir is None:
            matrix_ND = np.empty(shape, dtype=np.float32)
            _scatter(places, of_item_N, matrix_ND)
            return matrix_ND
        name = hashlib.sha256(self.directory.name.encode() + keys_N.tobytes()).hexdigest()[:16]
        path = work_dir / f"embeddings-{name}.npy"
        if processes.is_main and not path.exists():
            _check_space(work_dir, 4 * shape[0] * dim)
            partial = path.with_suffix(".partial")
            matrix_ND = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
            _scatter(places, of_item_N, matrix_ND)
            matrix_ND.flush()
            partial.replace(path)
        processes.wait()
        return np.load(path, mmap_mode="r")


def _scatter(places: Places, of_item_N: np.ndarray, matrix_ND: np.ndarray) -> None:
    """Write every item's vector, one shard in memory at a time."""
    shard_N, row_N = places.shard_U[of_item_N], places.row_U[of_item_N]
    order_N = np.argsort(shard_N, kind="stable")
    ends = np.searchsorted(shard_N[order_N], np.arange(len(places.shards)), side="right")
    for path, items in zip(places.shards, np.split(order_N, ends[:-1]), strict=True):
        if len(items):
            matrix_ND[items] = _read_tensor(path, "vectors")[row_N[items]]


@contextlib.contextmanager
def _open_store(
    identity: dict[str, Any], cache_dir: str | None, work_dir: Path | None, processes: Processes
) -> Iterator[EmbeddingStore]:
    """The store of a model: in the cache, or without one in `work_dir`, or in a temporary directory."""
    name = f"{identity['embedder']}-{content_key(json.dumps(identity, sort_keys=True).encode()).hex()[:16]}"
    root = cache_dir or os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE
    if work_dir is not None:
        work_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if root != NO_CACHE:
            parent = Path(root).expanduser() / "embeddings"
        elif work_dir is not None:
            parent = work_dir
        elif processes.world_size == 1:
            parent = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidereal-")))
        else:
            raise InputError(
                f"cache_dir: {NO_CACHE!r} leaves {processes.world_size} processes no place to share vectors; "
                "give a directory"
            )
        directory = parent / name
        directory.mkdir(parents=True, exist_ok=True)
        if processes.is_main:
            write_json(directory / "identity.json", identity)
        yield EmbeddingStore(directory)


def _read_tensor(path: Path, name: str) -> np.ndarray:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as tensors:
            return tensors.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise InputError(f"cache_dir: {path} is damaged ({error}); delete it and run again") from error


def _write_whole(path: Path, content: bytes) -> None:
    """The file appears complete or not at all, whoever else writes the same one."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with open(partial, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)


def _check_space(directory: Path, needed: int) -> None:
    """A memory map on a full disk dies of SIGBUS, so this is asked before."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise InputError(
            f"output_dir: the embeddings need {needed / 1e9:.1f} GB in {directory}, "
            f"{free / 1e9:.1f} GB are free; make room or choose another place"
        )


def save_matrix(matrix_ND: np.ndarray, path: Path, work_dir: Path) -> None:
    """Write an .npy file; a map of a whole file in `work_dir` is moved there instead, so it stays valid."""
    mapped = Path(matrix_ND.filename) if isinstance(matrix_ND, np.memmap) and matrix_ND.filename else None
    if mapped is not None and mapped.resolve().parent == work_dir.resolve():
        mapped.rename(path)
    else:
        np.save(path, matrix_ND)
