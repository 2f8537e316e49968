"""Rows in chunks of one shape: how the k-means family walks over matrices larger than memory.

The last bits of a matrix product depend on its shape (with MKL, three rows alone differ from the same rows
among 1,024), and a product over several threads may be cut up differently. So every chunk has the same number
of rows, the last one padded with zeros, and one thread computes it; threads share out chunks. What comes out
for a row then depends on the row alone: not on its neighbours, the number of threads, or which process has it
(on processors of one kind; between kinds, and between CPU and CUDA, a near-tie may fall the other way).

Beside the matrix, a thread holds one chunk and its scores: CHUNK_ROWS x (D + K) x 4 bytes.

Legend: N rows, D dimensions, C rows of a chunk, K codes of a codebook, L levels.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import local
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from sid_builder.errors import InputError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]

CHUNK_ROWS = 1024  # the scores of a chunk stay in a core's cache between the product and the search
CUDA_CHUNK_ROWS = 16384
_SMALLEST_CHUNK = 64


def pick_device(name: Device) -> "torch.device":
    """CUDA where there is one for `auto`; a process of a launcher gets the one of its own.

    Raises:
        InputError: if CUDA was asked for and is not there.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("quantizer_args.device: 'cuda' is not available here; use 'auto' or 'cpu'")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def rows_per_chunk(device: "torch.device", num_rows: int | None = None) -> int:
    """C; of a matrix that always has `num_rows` (points to fit on), no more than it needs."""
    full = CHUNK_ROWS if device.type == "cpu" else CUDA_CHUNK_ROWS
    if num_rows is None:
        return full
    return min(full, max(_SMALLEST_CHUNK, 1 << (num_rows - 1).bit_length()))


def ranges(num_rows: int, step: int) -> list[tuple[int, int]]:
    """[low, high) of consecutive parts of `step` rows, the last one shorter."""
    return [(low, min(low + step, num_rows)) for low in range(0, num_rows, step)]


def in_order(function: Callable[[Any], Any], tasks: Sequence[Any], device: "torch.device") -> Iterator[Any]:
    """`function(task)` of every task, in their order; on CPU as many at a time as torch has threads.

    Each call runs its torch operations on one thread; torch's setting is put back at the end.
    """
    import torch

    threads = min(torch.get_num_threads(), len(tasks)) if device.type == "cpu" else 1
    with _one_thread_per_operation():
        if threads <= 1:
            yield from map(function, tasks)
        else:
            with ThreadPoolExecutor(threads) as pool:
                yield from pool.map(function, tasks)


class Buffers(local):
    """Tensors of each thread that are kept from chunk to chunk: fresh memory costs a third of the time."""

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}

    def get(self, name: str, shape: tuple[int, int], device: "torch.device") -> "torch.Tensor":
        """Float32 of this shape; what it held the last time is still in it."""
        import torch

        found = self._tensors.get(name)
        if found is None or found.shape != shape:
            found = self._tensors[name] = torch.empty(shape, device=device)
        return found


def read_chunk(
    rows_ND: Any, low: int, high: int, step: int, device: "torch.device", buffers: Buffers | None = None
) -> "torch.Tensor":
    """Rows [low, high) as float32 [step, D] on `device`, zeros below; from an array, a memory map or a
    tensor. With `buffers` this thread's next call overwrites it.
    """
    import torch

    on_device = isinstance(rows_ND, torch.Tensor)
    buffer_device = device if on_device else torch.device("cpu")
    chunk_CD = (buffers or Buffers()).get("chunk", (step, rows_ND.shape[1]), buffer_device)
    chunk_CD[high - low :] = 0
    if on_device:
        chunk_CD[: high - low] = rows_ND[low:high]
        return chunk_CD
    chunk_CD.numpy()[: high - low] = rows_ND[low:high]  # reads a memory map, converts float16 and float64
    return chunk_CD.to(device)


def read_rows(
    embeddings_ND: np.ndarray, prepare: Callable[["torch.Tensor"], "torch.Tensor"], device: "torch.device"
) -> "torch.Tensor":
    """All rows through `prepare` (chunk -> chunk, perhaps the same) as one float32 tensor on `device`."""
    import torch

    check_matrix(embeddings_ND)
    step = rows_per_chunk(device)
    out_ND = torch.empty(embeddings_ND.shape, dtype=torch.float32, device=device)
    buffers = Buffers()

    def read(part: tuple[int, int]) -> None:
        low, high = part
        chunk_CD = read_chunk(embeddings_ND, low, high, step, device, buffers)
        out_ND[low:high] = prepare(chunk_CD)[: high - low]

    for _ in in_order(read, ranges(len(embeddings_ND), step), device):
        pass
    return out_ND


def encode_rows(
    embeddings_ND: np.ndarray,
    num_levels: int,
    encode_chunk: Callable[["torch.Tensor"], "torch.Tensor"],
    device: "torch.device",
    step: int | None = None,
) -> np.ndarray:
    """Codes int32 [N, L] by `encode_chunk` (float32 [C, D] -> integers [C, L]).

    Several threads call it at a time, and it may overwrite what it is given. Reads `step` rows at a time,
    `rows_per_chunk` by default.

    Raises:
        InputError: on NaN or infinite values; the first such row is named.
    """
    step = step or rows_per_chunk(device)
    codes_NL = np.empty((len(embeddings_ND), num_levels), dtype=np.int32)
    buffers = Buffers()

    def encode(part: tuple[int, int]) -> None:
        low, high = part
        chunk_CD = read_chunk(embeddings_ND, low, high, step, device, buffers)
        check_finite(chunk_CD, low)
        codes_NL[low:high] = encode_chunk(chunk_CD)[: high - low].cpu().numpy()

    parts = ranges(len(embeddings_ND), step)
    with tqdm(total=len(embeddings_ND), desc="encoding", unit="row", disable=len(parts) < 100) as bar:
        for (low, high), _ in zip(parts, in_order(encode, parts, device), strict=True):
            bar.update(high - low)
    return codes_NL


def unit_rows(chunk_CD: "torch.Tensor") -> "torch.Tensor":
    """Rows divided by their length; a zero row (an item that is its centroid, or has no text) stays zero."""
    return unit_rows_(chunk_CD.clone())


def unit_rows_(chunk_CD: "torch.Tensor") -> "torch.Tensor":
    """`unit_rows` in place."""
    length_C1 = chunk_CD.norm(dim=1, keepdim=True)
    return chunk_CD.div_(length_C1.masked_fill_(length_C1 <= 1e-12, 1.0))


def check_matrix(embeddings_ND: np.ndarray, num_dims: int | None = None) -> None:
    """Raise InputError unless the vectors are floats [N, D], with the D a quantizer was fitted on."""
    if embeddings_ND.ndim != 2 or embeddings_ND.shape[1] == 0 or embeddings_ND.dtype.kind != "f":
        raise InputError(
            f"embeddings: shape {embeddings_ND.shape} {embeddings_ND.dtype}; expected floats [items, dims]"
        )
    if num_dims is not None and embeddings_ND.shape[1] != num_dims:
        raise InputError(
            f"embeddings: {embeddings_ND.shape[1]} dimensions, but the quantizer was fitted on {num_dims}; "
            "use the embedder of the build"
        )


def check_all_finite(embeddings_ND: np.ndarray) -> None:
    """`check_finite` of the whole matrix, a part at a time."""
    for low, high in ranges(len(embeddings_ND), CUDA_CHUNK_ROWS):
        check_finite(embeddings_ND[low:high], low)


def check_finite(rows_ND: "np.ndarray | torch.Tensor", low: int) -> None:
    """Raise InputError naming the first row that is not finite; `low` is the number of row 0."""
    import torch

    values_ND = rows_ND if isinstance(rows_ND, torch.Tensor) else torch.from_numpy(np.array(rows_ND))
    if not all(bound.isfinite() for bound in values_ND.aminmax()):  # NaN comes through aminmax
        row = low + int(values_ND.isfinite().all(dim=1).int().argmin())
        raise InputError(
            f"embeddings: row {row} holds NaN or infinite values; embed that item again or drop it"
        )


@contextlib.contextmanager
def _one_thread_per_operation() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
