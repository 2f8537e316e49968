"""Hierarchical k-means: every node's items are clustered among themselves (EAGER, ColaRec, GRAM).

A code says which child of its node an item belongs to, so the same code means something else under another
prefix. With `leaf_size`, nodes with few items are not split any further: their SIDs are shorter, padded with
-1, and no SID is the prefix of another, because such a node has no children.

Legend: N items, M items fitted on, D dimensions, B rows of a block, L levels, T nodes of the tree (the root
is node 0; children of a node are consecutive), K codes of the last level.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from tqdm import tqdm

from sid_builder.errors import InputError
from sid_builder.quantizers import FitContext
from sid_builder.quantizers.chunked import ChunkedQuantizer, check_enough, shape_of
from sid_builder.quantizers.codebook import squared_distances
from sid_builder.quantizers.kmeans import column_means, kmeans
from sid_builder.quantizers.row_chunks import Device, pick_device, read_rows, unit_rows_
from sid_builder.quantizers.row_hash import row_hashes

if TYPE_CHECKING:
    import torch

_BLOCK_ROWS = 16384  # encoded at a time, so that the nodes of a level find several rows each
_TILE_ROWS = 64  # of one node, padded: a product's last bits depend on its shape (see row_chunks)


@dataclass(frozen=True)
class HierarchicalKMeansConfig:
    """Shape of the tree and how it is learnt."""

    depth: int = field(default=3, metadata={"help": "Levels of the tree, codes per SID at most."})
    branching: int | list[int] = field(
        default=32, metadata={"help": "Children of a node at most, one number or one per level."}
    )
    leaf_size: int | None = field(
        default=None,
        metadata={"help": "Do not split nodes of so few items: shorter SIDs. None: all have full depth."},
    )
    normalize: Literal["input", "none"] = field(
        default="input", metadata={"help": "L2-normalise the embeddings or take them as they are."}
    )
    balanced: bool = field(
        default=False,
        metadata={"help": "Let no child hold more than 1.05 times the mean of its siblings (ColaRec)."},
    )
    iterations: int = field(default=25, metadata={"help": "Lloyd iterations per node."})
    device: Device = field(
        default="auto", metadata={"help": "Where distances are computed; auto: CUDA if there is one."}
    )


class HierarchicalKMeans(ChunkedQuantizer):
    """A tree of centroids; deterministic by seed, independent of the thread count (on CPU)."""

    type_name = "hierarchical_kmeans"

    def __init__(self, config: HierarchicalKMeansConfig, seed: int = 0) -> None:
        self.level_sizes = shape_of(config.depth, config.branching, "branching", "depth")
        if config.iterations < 1:
            raise InputError(f"quantizer_args.iterations: {config.iterations}; give at least 1")
        if config.leaf_size is not None and config.leaf_size < 1:
            raise InputError(f"quantizer_args.leaf_size: {config.leaf_size}; give at least 1, or drop it")
        self.config = config
        self.seed = seed
        self.centroids_TD = np.zeros((0, 0), dtype=np.float32)
        self.first_child_T = np.zeros(0, dtype=np.int64)
        self.num_children_T = np.zeros(0, dtype=np.int64)
        self.prices_T = np.zeros(0, dtype=np.float32)  # added to squared distances, zero unless balanced

    def fit(self, embeddings_MD: np.ndarray, context: FitContext | None = None) -> None:
        """Grow the tree from [M, D], level by level; holds one float32 copy of it and one of a node's rows.

        Raises:
            InputError: if there are fewer distinct vectors than children of the root, or a value is not
            finite.
        """
        check_enough(embeddings_MD, self.level_sizes[0], "branching")
        points_MD = read_rows(embeddings_MD, self._first, pick_device(self.config.device))
        hashes_M = row_hashes(points_MD.cpu().numpy())
        centroids = [column_means(points_MD)[None]]
        prices, first_child, num_children = [np.zeros(1, dtype=np.float32)], [0], [0]
        frontier = [(0, np.arange(len(points_MD)))]
        for level, branching in enumerate(self.level_sizes):
            children: list[tuple[int, np.ndarray]] = []
            for node, rows in tqdm(frontier, desc=f"k-means, level {level + 1}", unit="node"):
                if self._is_leaf(level, hashes_M[rows]):
                    continue
                centroids_KD, prices_K, codes = self._split(points_MD, hashes_M, rows, branching, node)
                first_child[node], num_children[node] = len(first_child), len(centroids_KD)
                starts = np.cumsum(np.bincount(codes))[:-1]
                parts = np.split(rows[np.argsort(codes, kind="stable")], starts)
                children += [(len(first_child) + code, part) for code, part in enumerate(parts)]
                centroids.append(centroids_KD)
                prices.append(prices_K)
                first_child += [0] * len(centroids_KD)
                num_children += [0] * len(centroids_KD)
            frontier = children
        self.centroids_TD, self.prices_T = np.concatenate(centroids), np.concatenate(prices)
        self.first_child_T = np.array(first_child, dtype=np.int64)
        self.num_children_T = np.array(num_children, dtype=np.int64)

    def prepare(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """Vectors as they are clustered: L2-normalised unless `normalize` is none."""
        return read_rows(embeddings_ND, self._first, pick_device("cpu")).numpy()

    @property
    def num_dims(self) -> int:
        return self.centroids_TD.shape[1]

    def rows_at_a_time(self, num_rows: int, device: "torch.device") -> int:
        return min(_BLOCK_ROWS, max(1, num_rows))  # products are of tiles

    def chunk_encoder(self, device: "torch.device") -> Callable[["torch.Tensor"], "torch.Tensor"]:
        import torch

        centroids_TD = torch.tensor(self.centroids_TD, device=device)
        wide_TD = self.centroids_TD.astype(np.float64)
        half_T = (np.einsum("td,td->t", wide_TD, wide_TD) + self.prices_T) / 2
        bias_T = torch.tensor(half_T, dtype=torch.float32, device=device)

        def nearest_child(rows_RD: "torch.Tensor", node: int) -> "torch.Tensor":
            first, end = self.first_child_T[node], self.first_child_T[node] + self.num_children_T[node]
            codes = torch.empty(len(rows_RD), dtype=torch.int64, device=device)
            for low in range(0, len(rows_RD), _TILE_ROWS):
                part = rows_RD[low : low + _TILE_ROWS]
                tile = torch.zeros(_TILE_ROWS, part.shape[1], device=device)
                tile[: len(part)] = part
                scores = torch.mm(tile, centroids_TD[first:end].T).sub_(bias_T[first:end])
                codes[low : low + _TILE_ROWS] = scores.max(dim=1)[1][: len(part)]
            return codes

        def walk(block_BD: "torch.Tensor") -> "torch.Tensor":
            block_BD = self._first(block_BD)
            node_B = np.zeros(len(block_BD), dtype=np.int64)
            codes_BL = torch.full((len(block_BD), len(self.level_sizes)), -1, device=device)
            for level in range(len(self.level_sizes)):
                order = np.argsort(node_B, kind="stable")
                nodes, starts = np.unique(node_B[order], return_index=True)
                for node, rows in zip(nodes, np.split(order, starts[1:]), strict=True):
                    if self.num_children_T[node] == 0:
                        continue
                    at = torch.from_numpy(rows).to(device)
                    codes = nearest_child(block_BD[at], int(node))
                    codes_BL[at, level] = codes
                    node_B[rows] = self.first_child_T[node] + codes.cpu().numpy()
            return codes_BL

        return walk

    def reconstruct(self, codes_NL: np.ndarray, levels: int | None = None) -> np.ndarray:
        """Centroids float32 [N, D] of the nodes the first `levels` codes lead to; codes without a child of
        their own (-1 among them) stay at the node above.
        """
        return self.centroids_TD[self._nodes(codes_NL[:, :levels])]

    def last_level_distances(self, embeddings_ND: np.ndarray, codes_NL: np.ndarray) -> np.ndarray:
        """Squared distance to what every last code stands for under a row's prefix, float32 [N, K]; a code
        without a child stands for the node itself.
        """
        prepared_ND = self.prepare(embeddings_ND)
        parent_N = self._nodes(codes_NL[:, :-1])
        distance_NK = np.empty((len(codes_NL), self.level_sizes[-1]), dtype=np.float32)
        for parent in np.unique(parent_N):
            rows = np.flatnonzero(parent_N == parent)
            first, count = self.first_child_T[parent], self.num_children_T[parent]
            distance_NK[rows] = squared_distances(prepared_ND[rows], self.centroids_TD[[parent]])
            if count:
                children = self.centroids_TD[first : first + count]
                distance_NK[rows, :count] = squared_distances(prepared_ND[rows], children)
        return distance_NK

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "centroids": self.centroids_TD,
            "prices": self.prices_T,
            "first_child": self.first_child_T,
            "num_children": self.num_children_T,
        }

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.centroids_TD, self.prices_T = arrays["centroids"], arrays["prices"]
        self.first_child_T = arrays["first_child"]
        self.num_children_T = arrays["num_children"]

    def _first(self, chunk_CD: "torch.Tensor") -> "torch.Tensor":
        return unit_rows_(chunk_CD) if self.config.normalize == "input" else chunk_CD

    def _is_leaf(self, level: int, hashes: np.ndarray) -> bool:
        """A node that ends early; identical vectors cannot be told apart by more codes."""
        if self.config.leaf_size is None or level == 0:
            return False
        return len(hashes) <= self.config.leaf_size or len(np.unique(hashes)) == 1

    def _split(
        self, points_MD: "torch.Tensor", hashes_M: np.ndarray, rows: np.ndarray, branching: int, node: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(centroids float32 [children, D], their prices, code of each row); every child has rows."""
        import torch

        _, first, same = np.unique(hashes_M[rows], return_index=True, return_inverse=True)
        if len(first) <= branching:  # a child for every distinct vector, in order of appearance
            rank = np.argsort(np.argsort(first))
            centroids_KD = points_MD[torch.from_numpy(rows[np.sort(first)])].cpu().numpy()
            return centroids_KD, np.zeros(len(first), dtype=np.float32), rank[same]
        at = torch.from_numpy(rows).to(points_MD.device)
        points_RD = points_MD if node == 0 else points_MD[at]
        seed = self.seed + node
        found = kmeans(points_RD, branching, self.config.iterations, seed=seed, balanced=self.config.balanced)
        used, codes = np.unique(found.codes_M, return_inverse=True)
        prices_K = np.zeros(branching, dtype=np.float32) if found.prices_K is None else found.prices_K
        return found.centroids_KD[used], prices_K[used], codes

    def _nodes(self, codes_Nl: np.ndarray) -> np.ndarray:
        """Node int64 [N] that codes int [N, l] lead to, as far as there are children."""
        node_N = np.zeros(len(codes_Nl), dtype=np.int64)
        going_N = np.ones(len(codes_Nl), dtype=bool)
        for codes_N in codes_Nl.T:
            going_N &= (codes_N >= 0) & (codes_N < self.num_children_T[node_N])
            node_N = np.where(going_N, self.first_child_T[node_N] + codes_N, node_N)
        return node_N
