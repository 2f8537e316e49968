"""Codes against the embeddings they were made from. Embeddings may be a memory-mapped file of millions of
rows: it is read in blocks, most figures are taken on a seeded sample, and the sample's size stands beside
them.

Legend: N items, R sampled items, D dimensions, L levels, Q queries, B rows of a block.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from sid_builder.quantizers import Quantizer
from sid_builder.quantizers.row_hash import row_hashes

BLOCK = 8192
ERROR_ITEMS = 100_000
CANDIDATES = 50_000
QUERIES = 2_000
CUTOFFS = (10, 100)


def sample_items(num_items: int, limit: int, seed: int = 0) -> np.ndarray:
    """All items, or `limit` of them drawn without replacement; ascending, int64."""
    if num_items <= limit:
        return np.arange(num_items)
    return np.sort(np.random.default_rng(seed).choice(num_items, limit, replace=False))


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Float32 rows divided by their length; a zero row stays zero."""
    vectors_ND = np.asarray(vectors_ND, dtype=np.float32)
    length_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.where(length_N1 > 0, length_N1, 1.0)


def reconstruction_errors(
    quantizer: Quantizer, embeddings_ND: np.ndarray, first_NL: np.ndarray, final_NL: np.ndarray
) -> dict[str, Any]:
    """Squared error over squared length (0 perfect, 1 as bad as the zero vector) after each level, and what
    repair cost, over `items` items (all, or a sample of `ERROR_ITEMS`).

    `first_NL` are the codes before repair, `final_NL` after.
    """
    items = sample_items(len(embeddings_ND), ERROR_ITEMS)
    depth = len(quantizer.level_sizes)
    energy, lost = 0.0, np.zeros(depth + 1)
    for start in range(0, len(items), BLOCK):
        rows = items[start : start + BLOCK]
        target_BD = quantizer.prepare(embeddings_ND[rows])
        energy += float((target_BD.astype(np.float64) ** 2).sum())
        guesses = [quantizer.reconstruct(first_NL[rows], level) for level in range(1, depth + 1)]
        guesses.append(quantizer.reconstruct(without_appended(first_NL[rows], final_NL[rows]), depth))
        lost += [float(((target_BD - guess_BD).astype(np.float64) ** 2).sum()) for guess_BD in guesses]
    *by_level, repaired = (lost / energy).tolist()
    return {
        "items": len(items),
        "error_by_level": by_level,
        "error": by_level[-1],
        "error_after_repair": repaired,
        "repair_cost": repaired / by_level[-1] - 1 if by_level[-1] > 0 else 0.0,
    }


def without_appended(first_NL: np.ndarray, final_NL: np.ndarray) -> np.ndarray:
    """Repaired codes int32 [N, L] with the lengths they had before: a code that repair appended, be it to a
    short SID, is an index that stands for no vector.
    """
    return np.where(first_NL >= 0, final_NL[:, : first_NL.shape[1]], -1)


def neighbour_hit_rate(
    quantizer: Quantizer,
    embeddings_ND: np.ndarray,
    codes_NL: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any] | None:
    """FORGE's embedding hit rate (https://arxiv.org/abs/2509.20904): share of item pairs that users made, one
    right after the other in train, where the second is among the k nearest of the first. Quantized vectors
    beside the embeddings themselves show what of the neighbourhoods the codes keep; `chance` is k over the
    candidates.

    Cosine similarity, at most `QUERIES` pairs among at most about `CANDIDATES` items. Items with the same
    vector tie, and a tie counts with the probability that a blind draw puts it among the k. None without
    pairs.
    """
    before_P, after_P = pairs
    if len(before_P) == 0:
        return None
    drawn = sample_items(len(before_P), QUERIES)
    before_Q, after_Q = before_P[drawn], after_P[drawn]
    sampled = sample_items(len(embeddings_ND), CANDIDATES)
    candidates = np.unique(np.concatenate([sampled, before_Q, after_Q]))

    def embedded(items: np.ndarray) -> np.ndarray:
        return unit(quantizer.prepare(embeddings_ND[items]))

    def quantized(items: np.ndarray) -> np.ndarray:
        return unit(quantizer.reconstruct(codes_NL[items]))

    rates = [_hit_rates(vectors_of, candidates, before_Q, after_Q) for vectors_of in (embedded, quantized)]
    return {
        "pairs": len(drawn),
        "candidates": len(candidates),
        "at": [
            {"k": k, "embeddings": raw, "quantized": coded, "chance": min(k / (len(candidates) - 1), 1.0)}
            for k, raw, coded in zip(CUTOFFS, *rates, strict=True)
        ],
    }


def _hit_rates(
    vectors_of: Callable[[np.ndarray], np.ndarray],
    candidates: np.ndarray,
    before_Q: np.ndarray,
    after_Q: np.ndarray,
) -> list[float]:
    query_QD = vectors_of(before_Q)
    score_Q1 = (query_QD * vectors_of(after_Q)).sum(axis=1, keepdims=True)
    nearer_Q, level_Q = np.zeros(len(before_Q)), np.zeros(len(before_Q))
    tolerance = 1e-6  # of a float32 dot product of unit vectors: equal vectors count as equal
    for start in range(0, len(candidates), BLOCK):
        rows = candidates[start : start + BLOCK]
        score_QB = query_QD @ vectors_of(rows).T
        # The target's own score comes out of another summation here and may differ in the last bits.
        score_QB = np.where(rows == after_Q[:, None], score_Q1, score_QB)
        score_QB[rows == before_Q[:, None]] = -np.inf
        nearer_Q += (score_QB > score_Q1 + tolerance).sum(axis=1)
        level_Q += (np.abs(score_QB - score_Q1) <= tolerance).sum(axis=1)
    return [float(np.clip((k - nearer_Q) / level_Q, 0.0, 1.0).mean()) for k in CUTOFFS]


def same_vectors(embeddings_ND: np.ndarray) -> np.ndarray:
    """Number of each item's embedding, int64 [N]: equal for items whose rows are equal, so that no quantizer
    can tell them apart. Rows are compared by a 64-bit hash, never copied as a whole.
    """
    return np.unique(row_hashes(embeddings_ND), return_inverse=True)[1]


def nearest_to_prefixes(
    embeddings_ND: np.ndarray, members: list[np.ndarray], show: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """For every group of items: those nearest (cosine) to the mean of their unit vectors (of a sample of
    `QUERIES` in a larger group), among a sample of `CANDIDATES` items of the group or not.

    Returns:
        Per group the items, nearest first, and their cosines; and how many items were candidates.
    """
    candidates = sample_items(len(embeddings_ND), CANDIDATES)
    centre_PD = unit(
        np.stack(
            [unit(embeddings_ND[group[sample_items(len(group), QUERIES)]]).mean(axis=0) for group in members]
        )
    )
    cosine_PR = np.concatenate(
        [
            centre_PD @ unit(embeddings_ND[candidates[start : start + BLOCK]]).T
            for start in range(0, len(candidates), BLOCK)
        ],
        axis=1,
    )
    nearest_P = np.argsort(-cosine_PR, axis=1, kind="stable")[:, :show]
    return [
        (candidates[nearest], cosine_R[nearest])
        for nearest, cosine_R in zip(nearest_P, cosine_PR, strict=True)
    ], len(candidates)


def project(embeddings_ND: np.ndarray, items: np.ndarray, method: str) -> tuple[np.ndarray, float | None]:
    """Two coordinates per item for a map, float64 [R, 2], and the share of variance they hold (PCA only).

    Unit vectors of `items`; "pca" or "tsne" (Barnes-Hut, on the first 50 principal components: minutes for
    20,000 items).
    """
    from sklearn.decomposition import PCA

    vectors_RD = unit(embeddings_ND[items])
    components = min(50 if method == "tsne" else 2, *vectors_RD.shape)
    pca = PCA(components, random_state=0)
    axes_RC = pca.fit_transform(vectors_RD)
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(items) - 1) / 3)
        return TSNE(perplexity=perplexity, random_state=0, init="pca").fit_transform(axes_RC), None
    if components == 1:
        axes_RC = np.concatenate([axes_RC, np.zeros_like(axes_RC)], axis=1)
    held = float(pca.explained_variance_ratio_.sum())
    return axes_RC, held if np.isfinite(held) else None
