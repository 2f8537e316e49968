"""K-means: Lloyd's iterations over row chunks, the same by seed whatever the number of threads.

Beside the points (M x D x 4 bytes, which the caller holds) memory goes to about 30 bytes a point, to 512 MiB
of partial sums at most, and to one chunk a thread.

Legend: M points, D dimensions, K centroids, C points of a chunk, S points to draw seeds from.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from sid_builder.quantizers.balanced import Balancer
from sid_builder.quantizers.codebook import Codebook
from sid_builder.quantizers.row_chunks import Buffers, in_order, ranges, read_chunk, rows_per_chunk

if TYPE_CHECKING:
    import torch

_SEEDING_POINTS = 32  # per centroid: seeding then costs less than an iteration
_SEEDING_ROUNDS = 64
_FINISHING_ROUNDS = 10  # of moving centroids that are still without points after the last iteration
_STRIP_BYTES = 512 << 20  # of partial sums held at a time
_MAX_STRIPS = 16
# Squared distances come out of a float32 product: below this share of the squared length they are noise.
_NOISE = 1e-6


@dataclass(frozen=True)
class Clustering:
    """What `kmeans` found: float32 [K, D] and, when balanced, prices float32 [K]; codes int64 [M] of the
    points, `inertia` the sum of their squared distances.
    """

    centroids_KD: np.ndarray
    prices_K: np.ndarray | None
    codes_M: np.ndarray
    inertia: float


def kmeans(
    points_MD: "torch.Tensor",
    num_codes: int,
    iterations: int = 25,
    restarts: int = 1,
    seed: int = 0,
    balanced: bool = False,
    start_KD: np.ndarray | None = None,
    description: str | None = None,
) -> Clustering:
    """The best of `restarts` runs by inertia, on the device the points are on.

    Seeds are drawn by squared distance in 64 batches from 32 points per centroid (k-means++ of Arthur and
    Vassilvitskii 2007, in rounds as in k-means|| of Bahmani et al. 2012). A centroid that loses all its
    points moves to the point farthest from its own. With fewer distinct points than codes the codes left
    over keep a copy of another centroid and are never chosen.

    Args:
        points_MD: float32, on CPU or CUDA; never written to.
        balanced: at most `balanced.capacity(M, K)` points per centroid.
        start_KD: centroids to start from instead of seeding.
        description: what the progress bar says; None: no bar.
    """
    total = restarts * iterations
    best: Clustering | None = None
    with tqdm(total=total, desc=description, unit="iteration", disable=description is None) as bar:
        for restart in range(restarts):
            rng = np.random.default_rng([seed, restart])
            centroids_KD = _seeds(points_MD, num_codes, rng) if start_KD is None else start_KD
            found = _lloyd(points_MD, centroids_KD, iterations, balanced, bar)
            bar.update((restart + 1) * iterations - bar.n)  # a run that came to rest early is finished
            if best is None or found.inertia < best.inertia:
                best = found
    assert best is not None
    return best


def _lloyd(
    points_MD: "torch.Tensor", centroids_KD: np.ndarray, iterations: int, balanced: bool, bar: tqdm
) -> Clustering:
    import torch

    square_M = squared_lengths(points_MD)
    balancer = Balancer(points_MD, square_M, len(centroids_KD)) if balanced else None

    def search(finish: bool) -> tuple["torch.Tensor", "torch.Tensor"]:
        if balancer is not None:
            return balancer.search(centroids_KD, finish)
        codes_M, score_M = assign(points_MD, Codebook(centroids_KD, points_MD.device))
        return codes_M, (square_M - 2 * score_M).clamp_(min=0)

    before_M: torch.Tensor | None = None
    for _ in range(iterations):
        codes_M, distance_M = search(finish=False)
        if before_M is not None and torch.equal(codes_M, before_M):
            break
        before_M = codes_M
        centroids_KD = cluster_means(points_MD, codes_M, centroids_KD)
        _move_empty(points_MD, square_M, codes_M, distance_M, centroids_KD)
        bar.update()
    for _ in range(_FINISHING_ROUNDS):
        codes_M, distance_M = search(finish=True)
        if not _move_empty(points_MD, square_M, codes_M, distance_M, centroids_KD):
            break
    else:
        codes_M, distance_M = search(finish=True)
    prices_K = None if balancer is None else balancer.prices_K
    # By numpy, as elsewhere: torch's sums depend on the number of threads.
    inertia = float(distance_M.cpu().numpy().sum(dtype=np.float64))
    return Clustering(centroids_KD, prices_K, codes_M.cpu().numpy(), inertia)


def _move_empty(
    points_MD: "torch.Tensor",
    square_M: "torch.Tensor",
    codes_M: "torch.Tensor",
    distance_M: "torch.Tensor",
    centroids_KD: np.ndarray,
) -> int:
    """Put centroids without points onto the points farthest from theirs, in place; how many were moved."""
    import torch

    empty = np.flatnonzero((torch.bincount(codes_M, minlength=len(centroids_KD)) == 0).cpu().numpy())
    if len(empty) == 0:
        return 0
    distance_M = torch.where(distance_M > _NOISE * square_M, distance_M, 0.0)
    moved = min(len(empty), int((distance_M > 0).sum()))
    # Stable: of equally far points the first ones, whatever the thread count.
    farthest = torch.sort(distance_M, descending=True, stable=True).indices[:moved]
    centroids_KD[empty[:moved]] = points_MD[farthest].cpu().numpy()
    return moved


def assign(points_MD: "torch.Tensor", codebook: Codebook) -> tuple["torch.Tensor", "torch.Tensor"]:
    """(codes int64 [M], best scores float32 [M]) on the points' device."""
    import torch

    device = points_MD.device
    codes_M = torch.empty(len(points_MD), dtype=torch.int64, device=device)
    score_M = torch.empty(len(points_MD), device=device)
    step, buffers = rows_per_chunk(device, len(points_MD)), Buffers()

    def search(part: tuple[int, int]) -> None:
        low, high = part
        scores_CK, codes_C = codebook.nearest(read_chunk(points_MD, low, high, step, device, buffers))
        best_C = scores_CK.gather(1, codes_C[:, None])[:, 0]
        codes_M[low:high], score_M[low:high] = codes_C[: high - low], best_C[: high - low]

    for _ in in_order(search, ranges(len(points_MD), step), device):
        pass
    return codes_M, score_M


def squared_lengths(points_MD: "torch.Tensor") -> "torch.Tensor":
    """Float32 [M]."""
    import torch

    square_M = torch.empty(len(points_MD), device=points_MD.device)

    def measure(part: tuple[int, int]) -> None:
        low, high = part
        square_M[low:high] = points_MD[low:high].square().sum(dim=1)

    step = rows_per_chunk(points_MD.device, len(points_MD))
    for _ in in_order(measure, ranges(len(points_MD), step), points_MD.device):
        pass
    return square_M


def cluster_means(points_MD: "torch.Tensor", codes_M: "torch.Tensor", centroids_KD: np.ndarray) -> np.ndarray:
    """Mean of every code's points, a new array; a code without points keeps its centroid.

    Points are summed in strips whose number depends on K and D alone, so that threads cannot change a sum.
    """
    import torch

    num_strips = max(1, min(_MAX_STRIPS, _STRIP_BYTES // centroids_KD.nbytes))
    strips = ranges(len(points_MD), -(-len(points_MD) // num_strips))

    def add(part: tuple[int, int]) -> "torch.Tensor":
        low, high = part
        sums_KD = torch.zeros(centroids_KD.shape, device=points_MD.device)
        return sums_KD.index_add_(0, codes_M[low:high], points_MD[low:high])

    sums_KD = np.zeros(centroids_KD.shape, dtype=np.float64)
    for strip_KD in in_order(add, strips, points_MD.device):
        sums_KD += strip_KD.cpu().numpy()
    counts_K1 = torch.bincount(codes_M, minlength=len(centroids_KD)).cpu().numpy()[:, None]
    return np.where(counts_K1 > 0, sums_KD / np.maximum(counts_K1, 1), centroids_KD).astype(np.float32)


def column_means(points_MD: "torch.Tensor") -> np.ndarray:
    """Float32 [D], the same for any number of threads."""
    import torch

    codes_M = torch.zeros(len(points_MD), dtype=torch.int64, device=points_MD.device)
    return cluster_means(points_MD, codes_M, np.zeros((1, points_MD.shape[1]), dtype=np.float32))[0]


def _seeds(points_MD: "torch.Tensor", num_codes: int, rng: np.random.Generator) -> np.ndarray:
    """Float32 [K, D] of different points where there are that many, drawn as `kmeans` says."""
    import torch

    num_drawn = min(len(points_MD), _SEEDING_POINTS * num_codes)
    drawn = np.sort(rng.choice(len(points_MD), num_drawn, replace=False))
    points_SD = points_MD if num_drawn == len(points_MD) else points_MD[torch.from_numpy(drawn)]
    square_S = squared_lengths(points_SD).cpu().numpy().astype(np.float64)
    distance_S = np.full(num_drawn, np.inf)
    chosen = [int(rng.integers(num_drawn))]
    batch = np.array(chosen)
    while len(chosen) < num_codes:
        new = points_SD[torch.from_numpy(batch)].cpu().numpy()
        score_S = assign(points_SD, Codebook(new, points_SD.device))[1].cpu().numpy()
        distance_S = np.minimum(distance_S, square_S - 2.0 * score_S)
        distance_S[distance_S < _NOISE * square_S] = 0.0
        distance_S[batch] = 0.0
        cumulated_S = np.cumsum(distance_S)
        size = min(-(-num_codes // _SEEDING_ROUNDS), num_codes - len(chosen))
        if cumulated_S[-1] == 0:  # every point is a seed already: repeat some
            batch = rng.integers(num_drawn, size=num_codes - len(chosen))
        else:
            batch = np.unique(np.searchsorted(cumulated_S, rng.random(size) * cumulated_S[-1], side="right"))
        chosen.extend(batch.tolist())
    return points_SD[torch.tensor(chosen)].cpu().numpy()
