"""The prefix tree over semantic IDs as CSR arrays over sorted codes.

Level l keeps `tok[l]`, the child codes of all its nodes concatenated, and `indptr[l]`, where each node's
children start. A child's id is `indptr[l][node] + slot`, so there is no next-state array. Nodes of the last
level are leaves; leaf ids are rows in sorted order, so every node owns a contiguous range of leaves and any
filter over leaves is exact at every level.

Variable-length SIDs: a row that ends early continues with the single child `END` down to the last level; it
costs nothing.

Items taken off the shelf (`removed_N`) are not in the tree: no decoder can reach them.

Legend: N items of the catalogue, V of them in the tree, L levels, M leaves (distinct SIDs), n_l nodes of
level l (n_0 = 1, the root).
"""

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sid_builder.artifact import write_json
from sid_builder.errors import InputError

END = 0xFFFF


@dataclass(frozen=True)
class SidTrie:
    """Immutable; arrays may be memory-mapped.

    Attributes:
        tok: per level uint16 [n_{l+1}], codes of the children, ascending within a node (`END` for a finished
            SID).
        indptr: per level uint32 [n_l + 1].
        leaf_items_V: int32, items in leaf order; within a leaf the most frequent in train first, then
            item_index.
        extra_X: int32 [V - M], sorted: a leaf of m items stands here m - 1 times, so its items start at
            `leaf + searchsorted(extra_X, leaf)`. Costs 4 bytes per collided item instead of 4 per leaf.
        num_items: N, removed items included.
    """

    tok: tuple[np.ndarray, ...]
    indptr: tuple[np.ndarray, ...]
    leaf_items_V: np.ndarray
    extra_X: np.ndarray
    num_items: int

    @staticmethod
    def build(
        codes_NL: np.ndarray,
        train_counts_N: np.ndarray | None = None,
        removed_N: np.ndarray | None = None,
    ) -> "SidTrie":
        """Build from int32 codes [N, L] (-1 pads the end of short rows).

        Args:
            train_counts_N: orders the items of a collided SID, most frequent first; item_index decides ties.
            removed_N: bool; items left out.

        Raises:
            InputError: if there are no items, or one SID is a prefix of another (decoding could not tell them
                apart).
        """
        if removed_N is not None and removed_N.any():
            live_V = np.flatnonzero(~removed_N)
            counts_V = None if train_counts_N is None else train_counts_N[live_V]
            trie = SidTrie.build(codes_NL[live_V], counts_V)
            items_V = live_V[trie.leaf_items_V].astype(np.int32)
            return dataclasses.replace(trie, leaf_items_V=items_V, num_items=len(codes_NL))
        num_items, depth = codes_NL.shape
        if num_items == 0:
            raise InputError("codes: no items; a trie needs at least one")
        if codes_NL.max() >= END:
            raise InputError(f"codes: {codes_NL.max()} is too large; a level holds at most {END} codes")
        order = _sort_rows(codes_NL, train_counts_N)
        codes = codes_NL[order]
        new = np.zeros(num_items, dtype=bool)
        new[0] = True
        tok, indptr = [], []
        parents = np.zeros(1, dtype=np.int64)
        for level in range(depth):
            column = codes[:, level]
            new[1:] |= column[1:] != column[:-1]
            starts = np.flatnonzero(new)
            tok.append(column[starts].astype(np.uint16))
            indptr.append(np.append(np.searchsorted(starts, parents), len(starts)).astype(np.uint32))
            parents = starts
        for level in range(1, depth):
            _check_prefix_free(tok[level], indptr[level], level)
        extra = (np.cumsum(new) - 1)[~new].astype(np.int32)
        return SidTrie(tuple(tok), tuple(indptr), order.astype(np.int32), extra, num_items)

    @property
    def depth(self) -> int:
        return len(self.tok)

    @property
    def num_leaves(self) -> int:
        return len(self.tok[-1])

    @property
    def num_live(self) -> int:
        """V, the items that are in the tree."""
        return len(self.leaf_items_V)

    @property
    def nbytes(self) -> int:
        """Bytes of the tree itself, without the leaf-to-item map."""
        return sum(array.nbytes for array in (*self.tok, *self.indptr))

    @property
    def nbytes_with_items(self) -> int:
        return self.nbytes + self.leaf_items_V.nbytes + self.extra_X.nbytes

    def leaf_ranges(self, nodes: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Leaves [low, high) below nodes of `level` (0: the root, L: the leaves); int64 arrays."""
        low, high = np.asarray(nodes, dtype=np.int64), np.asarray(nodes, dtype=np.int64) + 1
        for indptr in self.indptr[level:]:
            low, high = indptr[low].astype(np.int64), indptr[high].astype(np.int64)
        return low, high

    def children(self, node: int, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes and node ids of the children of one node of `level`; `END`: the SID is already complete."""
        first, last = int(self.indptr[level][node]), int(self.indptr[level][node + 1])
        return self.tok[level][first:last], np.arange(first, last)

    def node_of(self, codes: list[int] | tuple[int, ...]) -> int | None:
        """Node reached from the root by `codes` (its level is `len(codes)`), or None if no SID begins so."""
        node = 0
        for level, code in enumerate(codes):
            if level >= self.depth:
                return None
            row, children = self.children(node, level)
            slot = int(np.searchsorted(row, code))
            if slot == len(row) or row[slot] != code:
                return None
            node = int(children[slot])
        return node

    def leaf_of(self, codes: list[int] | tuple[int, ...]) -> int | None:
        """Leaf of the SID that is exactly `codes`, or None if it is no item's."""
        node = self.node_of(codes)
        for level in range(len(codes), self.depth):
            if node is None:
                break
            row, children = self.children(node, level)
            node = int(children[0]) if row[0] == END else None
        return node

    def items_of_leaf(self, leaf: int) -> np.ndarray:
        """Item indices of a leaf, most frequent in train first."""
        first = leaf + int(np.searchsorted(self.extra_X, leaf))
        last = leaf + 1 + int(np.searchsorted(self.extra_X, leaf, side="right"))
        return self.leaf_items_V[first:last]

    def leaves_of(self, codes_RL: np.ndarray) -> np.ndarray:
        """Leaves of many SIDs at once (-1 after the end of a short one), int64 [R]; -1: no item's SID."""
        node_R = np.zeros(len(codes_RL), dtype=np.int64)
        found_R = np.ones(len(codes_RL), dtype=bool)
        for level in range(self.depth):
            code_R = np.where(codes_RL[:, level] < 0, END, codes_RL[:, level])
            low_R, last_R = (self.indptr[level][node_R + side].astype(np.int64) for side in (0, 1))
            high_R = last_R
            for _ in range(int((last_R - low_R).max(initial=0)).bit_length()):  # bisect all rows together
                middle_R = (low_R + high_R) // 2
                before_R = self.tok[level][np.minimum(middle_R, last_R - 1)] < code_R
                open_R = low_R < high_R
                low_R = np.where(open_R & before_R, middle_R + 1, low_R)
                high_R = np.where(open_R & ~before_R, middle_R, high_R)
            node_R = np.minimum(low_R, last_R - 1)
            found_R &= (low_R < last_R) & (self.tok[level][node_R] == code_R)
        return np.where(found_R, node_R, -1)

    def items_of_leaves(self, leaves_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Items of many leaves, int64: which entry of `leaves_R` each belongs to (ascending), and its index.

        Within a leaf the most frequent in train comes first.
        """
        sizes_R = self.leaf_size_M[leaves_R]
        row_P = np.repeat(np.arange(len(leaves_R)), sizes_R)
        place_P = np.arange(len(row_P)) - np.repeat(np.cumsum(sizes_R) - sizes_R, sizes_R)
        first_R = leaves_R + np.searchsorted(self.extra_X, leaves_R)
        return row_P, self.leaf_items_V[first_R[row_P] + place_P].astype(np.int64)

    @cached_property
    def leaf_size_M(self) -> np.ndarray:
        """How many items share each leaf, int64."""
        return 1 + np.bincount(self.extra_X, minlength=self.num_leaves)

    @cached_property
    def leaf_of_item_N(self) -> np.ndarray:
        """Leaf id of every item, int32; -1 for a removed one."""
        leaf = np.full(self.num_items, -1, dtype=np.int32)
        leaf[self.leaf_items_V] = np.repeat(np.arange(self.num_leaves, dtype=np.int32), self.leaf_size_M)
        return leaf

    @cached_property
    def codes_ML(self) -> np.ndarray:
        """Codes of every leaf in leaf order, int32, -1 after the end of a short SID."""
        columns = []
        for level in range(self.depth):
            low, high = self.leaf_ranges(np.arange(len(self.tok[level])), level + 1)
            columns.append(np.repeat(self.tok[level].astype(np.int32), high - low))
        codes = np.stack(columns, axis=1)
        codes[codes == END] = -1
        return codes

    def save(self, directory: Path) -> None:
        """Write the arrays as little-endian npy into a new directory."""
        directory.mkdir()
        for level in range(self.depth):
            np.save(directory / f"tok_{level}.npy", self.tok[level])
            np.save(directory / f"indptr_{level}.npy", self.indptr[level])
        np.save(directory / "leaf_items.npy", self.leaf_items_V)
        np.save(directory / "extra.npy", self.extra_X)
        write_json(directory / "trie.json", {"depth": self.depth, "num_items": self.num_items})

    @staticmethod
    def load(directory: Path) -> "SidTrie":
        """Open memory-mapped: instantaneous, pages shared by processes."""
        shape = json.loads((directory / "trie.json").read_text(encoding="utf-8"))
        levels = range(shape["depth"])

        def mapped(name: str) -> np.ndarray:
            return np.load(directory / name, mmap_mode="r", allow_pickle=False)

        leaf_items_V = mapped("leaf_items.npy")
        return SidTrie(
            tok=tuple(mapped(f"tok_{level}.npy") for level in levels),
            indptr=tuple(mapped(f"indptr_{level}.npy") for level in levels),
            leaf_items_V=leaf_items_V,
            extra_X=mapped("extra.npy"),
            num_items=shape.get("num_items", len(leaf_items_V)),  # format 1 knew no removed items
        )


def _sort_rows(codes_NL: np.ndarray, counts_N: np.ndarray | None) -> np.ndarray:
    """Order of rows by codes; equal rows by train count descending, then index."""
    num_items, depth = codes_NL.shape
    base = codes_NL.max(axis=0).astype(np.int64) + 2  # one more for -1
    bits = [int(size - 1).bit_length() for size in base]
    if counts_N is None:
        first = np.arange(num_items)
    else:
        first = np.argsort(-np.asarray(counts_N, dtype=np.int64), kind="stable")
    if sum(bits) <= 64:
        keys = np.zeros(num_items, dtype=np.uint64)
        for level in range(depth):
            keys = keys << np.uint64(bits[level]) | (codes_NL[:, level] + 1).astype(np.uint64)
        keys = keys if counts_N is None else keys[first]
        place_bits = int(num_items - 1).bit_length()
        if sum(bits) + place_bits <= 64:  # sorting values with their places in the low bits beats any argsort
            places = np.uint64((1 << place_bits) - 1)
            keys = np.sort(keys << np.uint64(place_bits) | np.arange(num_items, dtype=np.uint64))
            return first[(keys & places).astype(np.int64)]
        return first[np.argsort(keys, kind="stable")]
    return first[np.lexsort(codes_NL[first].T[::-1])]


def _check_prefix_free(tok: np.ndarray, indptr: np.ndarray, level: int) -> None:
    ends = np.flatnonzero(tok == END)
    if len(ends) == 0:
        return
    nodes = np.searchsorted(indptr, ends, side="right") - 1
    if (np.diff(indptr.astype(np.int64))[nodes] != 1).any():
        raise InputError(
            f"codes: an SID of {level} levels is the prefix of a longer one; append a token to every item"
        )
