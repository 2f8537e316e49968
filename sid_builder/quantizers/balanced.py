"""Balanced clusters: a price per centroid, added to the squared distance, keeps every load under a capacity.

This is the ascending auction for the transportation problem (Bertsekas and Castanon 1989): a centroid with
too many points raises its price until the surplus, those points that lose least, prefers another one. The
rule "least squared distance plus price" alone then gives the balanced clusters. It encodes new vectors too,
so the points of the fit get their codes again, and loads of other points differ from balance by sampling
noise.

Identical points always share a code: those beyond the capacity are left out of the count.

Legend: M points, D dimensions, K centroids, C points of a chunk, R rows that may move.
"""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from sid_builder.quantizers.codebook import Codebook
from sid_builder.quantizers.row_chunks import Buffers, in_order, ranges, read_chunk, rows_per_chunk
from sid_builder.quantizers.row_hash import row_hashes

if TYPE_CHECKING:
    import torch

_SLACK = 1.05  # the largest load over the mean; without room, outbidding takes very long to end
# A raise is at least this share of the mean squared distance, half of it every 30 rounds later: large steps
# come near balance fast, small ones do not drive clusters to and fro. After ten halvings it starts again:
# centroids that outbid each other in small steps would take thousands of rounds.
_LEAST_RAISE = 0.03
_ROUNDS_PER_HALVING, _HALVINGS = 30, 10
_ROUNDS_WHILE_LEARNING = 100  # centroids still move, so loads need not be exact yet
_ROUNDS_TO_FINISH = 2000


def capacity(num_points: int, num_codes: int) -> int:
    """Points a centroid may hold: M // K + 1 (MiniOneRec's limit), or 5 % above M / K where that is more."""
    return max(num_points // num_codes + 1, int(_SLACK * num_points / num_codes))


class Balancer:
    """Searches centroids under prices that it raises until every load fits; keeps the prices in between."""

    def __init__(self, points_MD: "torch.Tensor", square_M: "torch.Tensor", num_codes: int) -> None:
        self.prices_K = np.zeros(num_codes, dtype=np.float32)
        self.capacity = capacity(len(points_MD), num_codes)
        self._points_MD, self._square_M = points_MD, square_M
        self._counted_M = _rank_among_identical(points_MD.cpu().numpy()) < self.capacity

    def search(self, centroids_KD: np.ndarray, finish: bool) -> tuple["torch.Tensor", "torch.Tensor"]:
        """(codes int64 [M], squared distances without prices float32 [M]).

        Unless `finish`, fewer rounds must do, and old prices start at half: a round only ever raises them, so
        those that are no longer needed could not fall otherwise.
        """
        import torch

        device = self._points_MD.device
        if not finish:
            self.prices_K /= 2
        codes_M, score_M, margin_M = self._two_nearest(Codebook(centroids_KD, device, self.prices_K), None)
        # By numpy: torch's sums depend on the number of threads.
        mean = max(float(self._distances(codes_M, score_M).cpu().numpy().mean(dtype=np.float64)), 1e-12)
        for round_ in range(_ROUNDS_TO_FINISH if finish else _ROUNDS_WHILE_LEARNING):
            loads_K = self._loads(codes_M)
            over_K = loads_K > self.capacity
            if not over_K.any():
                break
            least = mean * _LEAST_RAISE * 0.5 ** (round_ / _ROUNDS_PER_HALVING % _HALVINGS)
            self.prices_K[over_K] += self._raises(codes_M, margin_M, loads_K)[over_K] + np.float32(least)
            # Who is elsewhere stays: what it has not chosen became dearer. Its margin may be larger by now
            # than the one kept, which makes a raise too small and never too large.
            rows_R = torch.from_numpy(over_K).to(device)[codes_M].nonzero()[:, 0]
            moved = self._two_nearest(Codebook(centroids_KD, device, self.prices_K), rows_R)
            codes_M[rows_R], score_M[rows_R], margin_M[rows_R] = moved
        else:
            largest = int(self._loads(codes_M).max())
            if finish and largest > self.capacity:
                warnings.warn(
                    f"balanced: a code holds {largest} points, {self.capacity} were wanted; give more points "
                    "per code or fewer codes_per_level",
                    stacklevel=2,
                )
        return codes_M, self._distances(codes_M, score_M)

    def _distances(self, codes_M: "torch.Tensor", score_M: "torch.Tensor") -> "torch.Tensor":
        import torch

        prices_K = torch.from_numpy(self.prices_K).to(codes_M.device)
        return (self._square_M - 2 * score_M - prices_K[codes_M]).clamp_(min=0)

    def _loads(self, codes_M: "torch.Tensor") -> np.ndarray:
        return np.bincount(codes_M.cpu().numpy()[self._counted_M], minlength=len(self.prices_K))

    def _raises(self, codes_M: "torch.Tensor", margin_M: "torch.Tensor", loads_K: np.ndarray) -> np.ndarray:
        """What a centroid's points above its capacity lose at most by going elsewhere, float32 [K]; 0 for
        those with room.
        """
        rows = np.flatnonzero(self._counted_M & (loads_K > self.capacity)[codes_M.cpu().numpy()])
        codes_R, margin_R = codes_M.cpu().numpy()[rows], margin_M.cpu().numpy()[rows]
        ordered = margin_R[np.lexsort((margin_R, codes_R))]
        over = np.unique(codes_R)
        first = np.searchsorted(np.sort(codes_R), over)
        raises_K = np.zeros(len(loads_K), dtype=np.float32)
        raises_K[over] = ordered[first + loads_K[over] - self.capacity - 1]
        return raises_K

    def _two_nearest(
        self, codebook: Codebook, rows_R: "torch.Tensor | None"
    ) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
        """(codes int64, best scores, how much dearer the second best is) of some rows or all."""
        import torch

        points_MD = self._points_MD
        count = len(points_MD) if rows_R is None else len(rows_R)
        codes = torch.empty(count, dtype=torch.int64, device=points_MD.device)
        best, margin = torch.empty((2, count), device=points_MD.device)
        step, buffers = rows_per_chunk(points_MD.device, count), Buffers()

        def search(part: tuple[int, int]) -> None:
            low, high = part
            rows = points_MD[low:high] if rows_R is None else points_MD[rows_R[low:high]]
            chunk_CD = read_chunk(rows, 0, high - low, step, points_MD.device, buffers)
            scores_CK, codes_C = codebook.nearest(chunk_CD)
            best_C = scores_CK.gather(1, codes_C[:, None])[:, 0]
            second_C = scores_CK.scatter_(1, codes_C[:, None], -torch.inf).amax(dim=1)
            codes[low:high], best[low:high] = codes_C[: high - low], best_C[: high - low]
            margin[low:high] = 2 * (best_C - second_C)[: high - low]

        for _ in in_order(search, ranges(count, step), points_MD.device):
            pass
        return codes, best, margin


def _rank_among_identical(points_MD: np.ndarray) -> np.ndarray:
    """For each point, how many points before it are the same, int64 [M]."""
    _, group_M, counts = np.unique(row_hashes(points_MD), return_inverse=True, return_counts=True)
    order = np.argsort(group_M, kind="stable")
    rank_M = np.empty(len(points_MD), dtype=np.int64)
    rank_M[order] = np.arange(len(points_MD)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank_M
