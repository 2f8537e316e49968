"""How the embeddings of new SID tokens begin (`new_tokens.init`).

Each way fills the new rows of the input embedding, and of the head where it is a matrix of its own, from that
matrix's old rows w_v, with mean m and covariance S. For code c of level l, whose items are i:

    mean      w = m + e, e ~ N(0, 1e-9 S). transformers' `mean_resizing`, after J. Hewitt, "Initializing New
              Word Embeddings for Pretrained Language Models" (2021).
    text      w = mean over i of t_i, where t_i is the mean of w_v over the tokens v of i's title.
    codebook  w = m + q(|o A|) o A / |o A|. o is the code's centroid: the mean over i of x_i less the
              centroids of i's codes at the levels before, where x_i is i's vector in embeddings.npy; at the
              first level, its distance from the mean of all x. A maps item vectors into the embedding space
              by ridge regression of t_i on x_i, both centred. q keeps the order of a level's lengths and
              gives them the distribution of the old rows' |w_v - m|.

A code without a (titled) item, or with o A = 0, begins as with `mean`.

Legend: V old rows of an embedding, d its width, N items, D dimensions of an item's vector, L levels, C codes
of all levels, K those of one, B items of a batch, T those of them that have a title.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from sid_builder.errors import InputError
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex

MEAN_RESIZING_SCALE = 1e-9  # transformers' factor on the covariance
RIDGE = 0.01  # of the mean variance of the vectors' dimensions
_BATCH = 4096
_REGRESSION_ITEMS = 65_536  # evenly spaced: plenty for a map of a few thousand dimensions


def load_vectors(sid_dir: str | Path, num_items: int) -> np.ndarray:
    """Item vectors float32 [N, D] of a SID directory, memory-mapped.

    Raises:
        InputError: when the directory has none, or none for this many items.
    """
    path = Path(sid_dir) / "embeddings.npy"
    if not path.is_file():
        raise InputError(
            f"new_tokens.init: 'codebook' needs item vectors, and {sid_dir} has no embeddings.npy; build the "
            "SIDs with an embedder, or use init: text"
        )
    vectors_ND = np.load(path, mmap_mode="r", allow_pickle=False)
    if vectors_ND.ndim != 2 or len(vectors_ND) != num_items:
        raise InputError(
            f"new_tokens.init: {path} has shape {vectors_ND.shape}, and the index has {num_items} items; "
            "build the SIDs again, or use init: text"
        )
    return vectors_ND


@dataclass(frozen=True)
class RowSource:
    """What new rows are made from: titles, and for `codebook` the items' vectors."""

    index: SidIndex
    tokenizer: Any
    init: Literal["mean", "text", "codebook"]
    vectors_ND: np.ndarray | None = None

    @property
    def sids(self) -> SemanticIds:
        return self.index.semantic_ids

    @cached_property
    def offsets_L(self) -> list[int]:
        """Number of a level's first code when the codes of all levels are counted through."""
        return [sum(self.sids.level_sizes[:level]) for level in range(self.sids.depth)]

    def rows(self, old_Vd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [C, d] made from an embedding's old rows, and which codes have one, bool [C]."""
        if self.init == "codebook":
            return self._from_centroids(old_Vd)
        if self.init == "text":
            return self._from_titles(old_Vd)
        num_codes = sum(self.sids.level_sizes)
        return torch.zeros(num_codes, old_Vd.shape[1]), torch.zeros(num_codes, dtype=torch.bool)

    def _title_means(
        self, old_Vd: torch.Tensor, items: np.ndarray, why: str
    ) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        """In batches: t_i of the items that have a title, float32 [T, d], and which they are, int64 [T].

        Raises:
            InputError: at the end, when there was none.
        """
        found = 0
        for batch in _batches(items, why):
            titles = [self.index.catalog.titles[item] for item in batch.tolist()]
            token_lists = self.tokenizer(titles, add_special_tokens=False)["input_ids"]
            lengths_B = np.array([len(tokens) for tokens in token_lists])
            titled = batch[lengths_B > 0]
            if not len(titled):
                continue
            ids = torch.tensor([token for tokens in token_lists for token in tokens])
            # Only the rows that occur are widened: the matrix may be 150,000 rows of bfloat16.
            words, position = torch.unique(ids, return_inverse=True)
            starts = torch.from_numpy((np.cumsum(lengths_B) - lengths_B)[lengths_B > 0])
            yield (
                torch.nn.functional.embedding_bag(position, old_Vd[words].float(), starts, mode="mean"),
                titled,
            )
            found += len(titled)
        if not found:
            raise InputError(
                f"new_tokens.init: {self.init!r} needs titles, and no item has one; use init: mean"
            )

    def _codes(self, items: np.ndarray, level: int) -> torch.Tensor:
        """Codes of items at a level, int64, -1 where an SID has ended."""
        return torch.from_numpy(self.sids.codes_NL[items, level].astype(np.int64))

    def _from_titles(self, old_Vd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        num_codes = sum(self.sids.level_sizes)
        sums_Cd, counts_C = torch.zeros(num_codes, old_Vd.shape[1]), torch.zeros(num_codes)
        for means_Td, items in self._title_means(old_Vd, np.arange(self.sids.num_items), "words of codes"):
            for level, offset in enumerate(self.offsets_L):
                codes_T = self._codes(items, level)
                _add(sums_Cd[offset:], counts_C[offset:], codes_T, means_Td)
        return sums_Cd / counts_C.clamp(min=1)[:, None], counts_C > 0

    def _from_centroids(self, old_Vd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mapping_Dd = self._regression(old_Vd)
        mean_d = _mean(old_Vd)
        spread_V = torch.cat([(rows.float() - mean_d).norm(dim=1) for rows in old_Vd.split(_BATCH)])
        rows, known = [], []
        for centroids_KD in self._centroids:
            mapped_Kd = centroids_KD @ mapping_Dd
            length_K = mapped_Kd.norm(dim=1)
            has_K = length_K > 0
            share = (torch.arange(int(has_K.sum())) + 0.5) / int(has_K.sum())
            wanted_K = torch.zeros_like(length_K)
            by_length = torch.argsort(length_K, stable=True)
            wanted_K[by_length[has_K[by_length]]] = torch.from_numpy(
                np.quantile(spread_V.numpy(), share.numpy()).astype(np.float32)
            )
            rows.append(mean_d + mapped_Kd * (wanted_K / length_K.clamp(min=1e-30))[:, None])
            known.append(has_K)
        return torch.cat(rows), torch.cat(known)

    @cached_property
    def _centroids(self) -> list[torch.Tensor]:
        """o of every code by level, float32 [K, D]; zero where a code has no item."""
        assert self.vectors_ND is not None
        centroids: list[torch.Tensor] = []
        width = self.vectors_ND.shape[1]
        for level, size in enumerate(self.sids.level_sizes):
            sums_KD, counts_K = torch.zeros(size, width), torch.zeros(size)
            for items in _batches(np.arange(self.sids.num_items), f"centroids of level {level + 1}"):
                residual_BD = torch.from_numpy(self.vectors_ND[items].astype(np.float32))
                for before, centroids_KD in enumerate(centroids):
                    codes_B = self._codes(items, before)
                    residual_BD -= centroids_KD[codes_B.clamp(min=0)] * (codes_B >= 0)[:, None]
                _add(sums_KD, counts_K, self._codes(items, level), residual_BD)
            centroids.append(sums_KD / counts_K.clamp(min=1)[:, None])
            if not level:
                used_K, mean_D = counts_K > 0, sums_KD.sum(dim=0) / counts_K.sum()
        # Relative to the mean only now: the residuals above are of the vectors themselves.
        return [(centroids[0] - mean_D) * used_K[:, None], *centroids[1:]]

    def _regression(self, old_Vd: torch.Tensor) -> torch.Tensor:
        """A, float32 [D, d]: ridge regression of t_i on x_i over items that have a title."""
        assert self.vectors_ND is not None
        num_items = self.sids.num_items
        sample = np.unique(np.linspace(0, num_items - 1, min(num_items, _REGRESSION_ITEMS)).astype(np.int64))
        count = 0
        moments: tuple[torch.Tensor, ...] | None = None
        for means_Td, items in self._title_means(old_Vd, sample, "words beside vectors"):
            x_TD = torch.from_numpy(self.vectors_ND[items].astype(np.float64))
            t_Td = means_Td.double()
            parts = (x_TD.sum(0), t_Td.sum(0), x_TD.T @ x_TD, x_TD.T @ t_Td)
            moments = parts if moments is None else tuple(map(torch.add, moments, parts))
            count += len(items)
        assert moments is not None
        x_D, t_d, xx_DD, xt_Dd = (moment / count for moment in moments)
        variance_DD = xx_DD - torch.outer(x_D, x_D)
        ridge = RIDGE * variance_DD.diagonal().mean().clamp(min=1e-30) * torch.eye(len(x_D))
        return torch.linalg.solve(variance_DD + ridge, xt_Dd - torch.outer(x_D, t_d)).float()


def init_rows(model: Any, source: RowSource, token_ids: list[int], rows_before: int, seed: int) -> None:
    """Fill the rows of new tokens in place, and rows the matrix was padded by beyond them, as with `mean`.

    Args:
        token_ids: ids of all codes, level by level in code order, behind those of every old token.
        rows_before: rows of the embedding before it was extended for them.
        seed: the result depends on it and on the inputs alone.
    """
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    padding = range(max(rows_before, max(token_ids) + 1), len(embedding))
    at = torch.tensor([*token_ids, *padding])
    for number, weight in enumerate([embedding] if head is embedding else [embedding, head]):
        old_Vd = weight.data[: min(token_ids)]
        rows = around_mean(old_Vd, len(at), torch.Generator().manual_seed(seed + number))
        made_Cd, known_C = source.rows(old_Vd)
        rows[: len(token_ids)][known_C] = made_Cd[known_C]
        weight.data[at] = rows.to(weight.dtype)


def around_mean(old_Vd: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """float32 [count, d] drawn around the mean of the old rows.

    A sum of the centred rows weighed by independent standard normals, over sqrt(V), has exactly their
    covariance: no factorisation, and no condition on their rank.
    """
    mean_d = _mean(old_Vd)
    noise = torch.zeros(count, old_Vd.shape[1])
    for rows in old_Vd.split(_BATCH):
        noise += torch.randn(count, len(rows), generator=generator) @ (rows.float() - mean_d)
    return mean_d + noise * (MEAN_RESIZING_SCALE / len(old_Vd)) ** 0.5


def _mean(old_Vd: torch.Tensor) -> torch.Tensor:
    return old_Vd.mean(dim=0, dtype=torch.float32)


def _add(
    sums_KD: torch.Tensor, counts_K: torch.Tensor, codes_B: torch.Tensor, values_BD: torch.Tensor
) -> None:
    """Add every row to the sum of its code; rows whose code is -1 are left out."""
    has = codes_B >= 0
    sums_KD.index_add_(0, codes_B[has], values_BD[has])
    counts_K.index_add_(0, codes_B[has], torch.ones(int(has.sum())))


def _batches(items: np.ndarray, why: str) -> tqdm:
    """Batches of items, with a progress bar where there are many."""
    batches = [items[low : low + _BATCH] for low in range(0, len(items), _BATCH)]
    return tqdm(batches, desc=why, unit=f"{_BATCH} items", leave=False, disable=len(batches) < 10)
