"""The k-means core and the quantizers made of it, against faiss and against what their names promise."""

import numpy as np
import pytest
import torch

from sid_builder.quantizers import balanced
from sid_builder.quantizers.codebook import Codebook
from sid_builder.quantizers.hierarchical_kmeans import HierarchicalKMeans, HierarchicalKMeansConfig
from sid_builder.quantizers.kmeans import assign, kmeans
from sid_builder.quantizers.opq import OPQ, OPQConfig
from sid_builder.quantizers.random_codes import RandomCodes, RandomCodesConfig
from sid_builder.quantizers.row_chunks import CHUNK_ROWS, in_order
from sid_builder.quantizers.row_hash import num_distinct, row_hashes
from sid_builder.quantizers.rq_kmeans import RQKMeans, RQKMeansConfig
from sid_builder.quantizers.rq_opq import RQOPQ, RQOPQConfig
from sid_builder.report import gini

faiss = pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def points_MD():
    """Like embedded titles: unit vectors in clusters of very different sizes, with a decaying spectrum."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(60, 32)) / np.arange(1, 33) ** 0.5
    sizes = 1 / np.arange(1, 61)
    points = centres[rng.choice(60, 5000, p=sizes / sizes.sum())]
    points = points + 0.5 * rng.normal(size=(5000, 32)) / np.arange(1, 33) ** 0.5
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_inertia_is_no_higher_than_faiss(points_MD):
    ours, theirs = [], []
    for seed in range(4):
        found = kmeans(torch.from_numpy(points_MD), 64, seed=seed)
        nearest_M = ((points_MD[:, None] - found.centroids_KD[None]) ** 2).sum(axis=2).min(axis=1)
        assert found.inertia == pytest.approx(nearest_M.sum(), rel=1e-4)
        ours.append(found.inertia)
        peer = faiss.Kmeans(32, 64, niter=25, seed=seed, max_points_per_centroid=1 << 30)
        peer.train(points_MD)
        theirs.append(faiss.knn(points_MD, peer.centroids, 1)[0].sum())
    assert np.mean(ours) < 1.002 * np.mean(theirs)


@pytest.mark.parametrize("balance", [False, True])
def test_threads_change_no_bit(points_MD, threads, balance):
    """With so many points that torch's own sums are cut up by threads."""
    points = torch.from_numpy(np.tile(points_MD[:, :6], (7, 1)))
    points += 0.01 * torch.randn(points.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(kmeans(points, 6, iterations=1, balanced=balance))
        assert torch.get_num_threads() == count
    for other in found[1:]:
        np.testing.assert_array_equal(other.centroids_KD, found[0].centroids_KD)
        np.testing.assert_array_equal(other.codes_M, found[0].codes_M)
        assert other.inertia == found[0].inertia


def test_a_chunk_is_computed_by_one_thread(threads):
    threads(2)
    seen = list(in_order(lambda task: (task, torch.get_num_threads()), range(8), torch.device("cpu")))
    assert seen == [(task, 1) for task in range(8)] and torch.get_num_threads() == 2


def test_scores_of_a_row_depend_on_the_row_alone(points_MD):
    """What products of fewer rows do not keep: the reason why chunks are padded."""
    points, device = torch.from_numpy(points_MD), torch.device("cpu")
    codebook = Codebook(points_MD[:100], device)
    _, score_M = assign(points, codebook)
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(5000))
    assert torch.equal(assign(points[shuffled], codebook)[1], score_M[shuffled])
    assert len(points) > 2 * CHUNK_ROWS


def test_as_many_codes_as_distinct_points_are_all_used():
    rng = np.random.default_rng(0)
    distinct = rng.normal(size=(90, 8)).astype(np.float32)
    points = torch.from_numpy(distinct[rng.permutation(np.arange(900) % 90)])
    found = kmeans(points, 90, iterations=3)
    assert len(np.unique(found.codes_M)) == 90
    assert num_distinct(points.numpy()) == 90


def test_codes_beyond_the_distinct_points_stay_unused():
    points = torch.from_numpy(np.repeat(np.eye(3, 8, dtype=np.float32), 20, axis=0))
    found = kmeans(points, 10)
    assert len(np.unique(found.codes_M)) == 3 and found.inertia == pytest.approx(0, abs=1e-6)
    assert np.isfinite(found.centroids_KD).all()


def test_restarts_keep_the_best(points_MD):
    points = torch.from_numpy(points_MD[:1000])
    single = [kmeans(points, 20, iterations=5, restarts=count).inertia for count in (1, 4)]
    assert single[1] < single[0]


def test_balanced_loads(points_MD):
    points = torch.from_numpy(points_MD[:2500])
    plain, even = kmeans(points, 32), kmeans(points, 32, balanced=True)
    plain_K, even_K = (np.bincount(found.codes_M, minlength=32) for found in (plain, even))
    assert gini(plain_K) > 0.2 and gini(even_K) < 0.1
    assert even_K.max() <= balanced.capacity(2500, 32) <= 1.1 * 2500 / 32 < plain_K.max()
    assert even.inertia < 1.25 * plain.inertia  # clusters of very different sizes have to be cut up
    # Prices and centroids are all that new vectors need, and they give the fitted ones their codes again.
    codes_M, _ = assign(points, Codebook(even.centroids_KD, points.device, even.prices_K))
    np.testing.assert_array_equal(codes_M.numpy(), even.codes_M)


def test_balanced_levels_encode_by_price(points_MD, tmp_path):
    quantizer = RQKMeans(RQKMeansConfig(levels=2, codes_per_level=16, balanced=True))
    quantizer.fit(points_MD[:2500])
    quantizer.save(tmp_path)
    codes_NL = RQKMeans.load(tmp_path).encode(points_MD[:2500])
    for level in range(2):
        loads_K = np.bincount(codes_NL[:, level], minlength=16)
        assert loads_K.max() <= balanced.capacity(2500, 16) and gini(loads_K) < 0.1
    fresh_K = np.bincount(quantizer.encode(points_MD[2500:])[:, 0], minlength=16)
    assert gini(fresh_K) < 0.15  # near balance: what is left is sampling noise


def test_identical_points_may_exceed_the_capacity():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(600, 8)).astype(np.float32)
    points[:200] = points[0]  # ten times the capacity of 600 / 30
    found = kmeans(torch.from_numpy(points), 30, balanced=True)
    loads_K = np.bincount(found.codes_M, minlength=30)
    assert len(np.unique(found.codes_M[:200])) == 1
    assert np.delete(loads_K, found.codes_M[0]).max() <= balanced.capacity(600, 30)


def test_loads_that_do_not_fit_in_time_are_reported(points_MD, monkeypatch):
    monkeypatch.setattr(balanced, "_ROUNDS_TO_FINISH", 1)
    monkeypatch.setattr(balanced, "_ROUNDS_WHILE_LEARNING", 0)
    with pytest.warns(UserWarning, match="balanced: a code holds .* points, 82 were wanted"):
        kmeans(torch.from_numpy(points_MD), 64, iterations=2, balanced=True)


def test_hierarchical_nodes_have_their_own_clusters(points_MD):
    quantizer = HierarchicalKMeans(HierarchicalKMeansConfig(depth=2, branching=[8, 16]))
    quantizer.fit(points_MD)
    codes_NL, prepared_ND = quantizer.encode(points_MD), quantizer.prepare(points_MD)
    assert quantizer.level_sizes == (8, 16)
    for code in range(8):
        rows = codes_NL[:, 0] == code
        children = np.unique(codes_NL[rows], axis=0)
        centres_KD = quantizer.reconstruct(children.astype(np.int32))
        nearest = ((prepared_ND[rows][:, None] - centres_KD) ** 2).sum(axis=2).argmin(axis=1)
        np.testing.assert_array_equal(children[nearest], codes_NL[rows])
    first = quantizer.reconstruct(np.array([[0, 3], [1, 3]], dtype=np.int32))
    assert not np.allclose(first[0], first[1])


def test_hierarchical_leaves_that_stop_early_are_prefix_free(points_MD):
    points = np.concatenate([points_MD[:2000], points_MD[:1].repeat(5, axis=0)])
    quantizer = HierarchicalKMeans(HierarchicalKMeansConfig(depth=5, branching=8, leaf_size=3))
    quantizer.fit(points)
    codes_NL = quantizer.encode(points)
    sids = {tuple(code for code in row if code >= 0) for row in codes_NL.tolist()}
    assert len({len(sid) for sid in sids}) > 2
    assert not any(sid[:length] in sids for sid in sids for length in range(1, len(sid)))
    padded = codes_NL < 0
    assert not padded[:, 0].any() and not (padded[:, :-1] & ~padded[:, 1:]).any()
    short_NL, counts = np.unique(codes_NL[padded[:, -1]], axis=0, return_counts=True)
    assert sorted(set(counts) - {6}) == [1, 2, 3] and len(short_NL) > 100  # or the six copies of one
    fresh_NL = quantizer.encode(points_MD[2000:])
    assert {tuple(code for code in row if code >= 0) for row in fresh_NL.tolist()} <= sids


def test_hierarchical_codes_without_a_child_stand_for_their_node():
    points = np.eye(6, 8, dtype=np.float32)
    quantizer = HierarchicalKMeans(HierarchicalKMeansConfig(depth=2, branching=[2, 8]))
    quantizer.fit(points)
    codes_NL = quantizer.encode(points)
    node_ND = quantizer.reconstruct(codes_NL, 1)
    spare_NL = np.column_stack([codes_NL[:, 0], np.full(6, 7, dtype=np.int32)])
    np.testing.assert_array_equal(quantizer.reconstruct(spare_NL), node_ND)
    distance_NK = quantizer.last_level_distances(points, codes_NL)
    np.testing.assert_allclose(distance_NK[:, 7], ((points - node_ND) ** 2).sum(axis=1), rtol=1e-5)


def test_hierarchical_balanced_splits_evenly(points_MD):
    quantizer = HierarchicalKMeans(HierarchicalKMeansConfig(depth=1, branching=20, balanced=True))
    quantizer.fit(points_MD[:2000])
    assert np.bincount(quantizer.encode(points_MD[:2000])[:, 0], minlength=20).max() <= 105


def relative_error(quantizer, vectors_ND):
    prepared_ND = quantizer.prepare(vectors_ND)
    rest_ND = prepared_ND - quantizer.reconstruct(quantizer.encode(vectors_ND))
    return (rest_ND**2).sum() / ((prepared_ND - prepared_ND.mean(axis=0)) ** 2).sum()


def test_opq_is_as_good_as_faiss_and_its_rotation_helps(points_MD):
    matrix, peer = faiss.OPQMatrix(32, 4), faiss.IndexPQ(32, 4, 4)
    index = faiss.IndexPreTransform(matrix, peer)
    matrix.pq = peer.pq
    centred_MD = points_MD - points_MD.mean(axis=0)
    index.train(centred_MD)
    rest = centred_MD - index.sa_decode(index.sa_encode(centred_MD))
    theirs = (rest**2).sum() / (centred_MD**2).sum()
    errors = []
    for rotations in (0, 10):
        quantizer = OPQ(OPQConfig(levels=4, codes_per_level=16, rotations=rotations))
        quantizer.fit(points_MD)
        rotation_DD = quantizer.rotation_DD
        np.testing.assert_allclose(rotation_DD @ rotation_DD.T, np.eye(32), atol=1e-5)
        errors.append(relative_error(quantizer, points_MD))
    assert errors[1] < errors[0] and errors[1] < 1.02 * theirs


def test_opq_shares_columns_that_do_not_divide(points_MD):
    quantizer = OPQ(OPQConfig(levels=3, codes_per_level=8, rotations=1))
    quantizer.fit(points_MD)
    assert [table.shape for table in quantizer.centroids] == [(8, 10), (8, 11), (8, 11)]


def test_the_tail_of_rq_opq_ends_most_collisions(points_MD):
    head = RQKMeans(RQKMeansConfig(levels=3, codes_per_level=16))
    whole = RQOPQ(RQOPQConfig(levels=3, codes_per_level=16, tail_codes=32, rotations=2))
    head.fit(points_MD)
    whole.fit(points_MD)
    head_NL, whole_NL = head.encode(points_MD), whole.encode(points_MD)
    np.testing.assert_array_equal(whole_NL[:, :3], head_NL)
    shared = [5000 - len(np.unique(codes, axis=0)) for codes in (head_NL, whole_NL)]
    assert shared[1] < 0.1 * shared[0]
    assert relative_error(whole, points_MD) < 0.8 * relative_error(head, points_MD)


def test_random_codes_are_uniform_and_blind(points_MD):
    quantizer = RandomCodes(RandomCodesConfig(codes_per_level=[50, 50, 30]))
    quantizer.fit(points_MD)
    codes_NL = quantizer.encode(points_MD)
    for level, size in enumerate(quantizer.level_sizes):
        loads_K, mean = np.bincount(codes_NL[:, level], minlength=size), 5000 / size
        # Chi-squared has mean size - 1 and variance 2 (size - 1).
        assert abs(((loads_K - mean) ** 2 / mean).sum() - size) < 5 * (2 * size) ** 0.5
    pairs = len(np.unique(codes_NL[:, 0] * 50 + codes_NL[:, 1]))
    assert abs(pairs - 2500 * (1 - np.exp(-2))) < 120  # independent levels fill a grid like balls do boxes
    near = points_MD + np.float32(1e-6)
    assert (quantizer.encode(near)[:, 0] == codes_NL[:, 0]).mean() < 0.1


def test_hashes_of_rows():
    rows = np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    hashes = row_hashes(rows)
    assert hashes[0] == hashes[1] != hashes[2] and (row_hashes(rows, seed=1) != hashes).all()
    np.testing.assert_array_equal(row_hashes(rows.astype(np.float16)), hashes)
