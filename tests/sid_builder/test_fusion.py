"""Fusion: shares of the parts, PCA and whitening by their definitions, and what parametric whitening does."""

import dataclasses

import numpy as np
import pytest

from sid_builder import EMBEDDERS, cli
from sid_builder.catalog import Catalog
from sid_builder.embedders import ItemData, fusion, parametric_whitening
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.registry import options_class, resolve

N = 400


@pytest.fixture(scope="module")
def items():
    catalog = Catalog.from_rows([{"item_id": i, "title": f"{i % 7}th thing{i % 11}"} for i in range(N)])
    rng = np.random.default_rng(0)
    return ItemData(catalog, Interactions.leave_one_out(["u"], [rng.permutation(N)]))


@pytest.fixture
def part(tmp_path):
    """A part that is a given matrix."""

    def write(matrix, weight=1.0):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npy"
        np.save(path, matrix.astype(np.float32))
        return {"embedder": "precomputed", "args": {"file": str(path)}, "weight": weight}

    return write


def make(parts, seed=0, **options):
    made = resolve(EMBEDDERS, "fusion", "embedder")
    values = {"parts": parts} | options
    return made(cli.build_dataclass(options_class(made), values, "embedder_args"), seed)


def correlated(seed, dim, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    return (scale * rng.normal(size=(N, dim)) @ rng.normal(size=(dim, dim)) + shift).astype(np.float32)


def covariance(vectors_ND):
    return np.cov(vectors_ND.astype(np.float64).T, bias=True)


# Putting together


def test_standardised_parts_have_their_weights_share(items, part):
    first, second = correlated(0, 30, scale=100, shift=5), correlated(1, 4, scale=0.01)
    fused_ND = make([part(first), part(second, weight=2.0)], pca=None).encode(items)
    assert fused_ND.shape == (N, 34) and fused_ND.dtype == np.float32
    np.testing.assert_allclose(fused_ND.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(fused_ND[:, :30].var(axis=0), 1 / 30, rtol=1e-4)
    np.testing.assert_allclose(fused_ND[:, 30:].var(axis=0), 4 / 4, rtol=1e-4)
    z_scored = (first - first.mean(axis=0)) / first.std(axis=0)
    np.testing.assert_allclose(fused_ND[:, :30], z_scored / np.sqrt(30), atol=1e-4)


def test_without_standardising_parts_are_weighted_and_no_more(items, part):
    first, second = correlated(0, 3), np.ones((N, 2)) * [1, 2] + np.eye(N, 2)
    embedder = make([part(first, 0.5), part(second)], pca=None, standardize=False)
    wanted = np.hstack([0.5 * first, second.astype(np.float32)])
    np.testing.assert_allclose(embedder.encode(items), wanted, rtol=1e-6)
    assert [told["dim"] for told in embedder.notes["parts"]] == [3, 2]


def test_pca_is_scikit_learns(items, part):
    from sklearn.decomposition import PCA

    matrix = correlated(0, 20, shift=50)
    embedder = make([part(matrix)], pca=6, standardize=False)
    fused_NE = embedder.encode(items)
    theirs = PCA(6, svd_solver="full").fit(matrix.astype(np.float64))
    wanted = theirs.transform(matrix.astype(np.float64))
    signs = np.sign((wanted * fused_NE).sum(axis=0))
    np.testing.assert_allclose(fused_NE, wanted * signs, atol=2e-4)
    assert embedder.notes["explained_variance"] == pytest.approx(theirs.explained_variance_ratio_.sum())


@pytest.mark.parametrize("options", [{"pca": 8, "whiten": "pca"}, {"pca": None, "whiten": "pca"}])
def test_pca_whitening_has_unit_covariance(items, part, options):
    fused_NE = make([part(correlated(0, 12)), part(correlated(1, 5))], **options).encode(items)
    assert fused_NE.shape == (N, options["pca"] or 17)
    np.testing.assert_allclose(covariance(fused_NE), np.eye(fused_NE.shape[1]), atol=1e-4)


def test_zca_whitening_stays_next_to_the_given_axes(items, part):
    """Unit covariance, and of all such maps the one that moves vectors least: cov(x, y) is cov(x)^1/2."""
    matrix = correlated(0, 6)
    fused_ND = make([part(matrix)], pca=None, whiten="zca", standardize=False).encode(items)
    np.testing.assert_allclose(covariance(fused_ND), np.eye(6), atol=1e-4)
    centred = (matrix - matrix.mean(axis=0)).astype(np.float64)
    root = centred.T @ fused_ND / N
    np.testing.assert_allclose(root, root.T, atol=1e-3)
    np.testing.assert_allclose(root @ root, covariance(matrix), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{"pca": 8, "whiten": "pca"}, {"pca": None}])
def test_blocks_change_nothing_and_are_small(items, part, monkeypatch, options):
    parts = [part(correlated(0, 12)), part(correlated(1, 5))]
    whole = make(parts, **options).encode(items)
    monkeypatch.setattr(fusion, "BLOCK_BYTES", 8 * 17 * 33)  # 33 rows
    read, block = set(), fusion._SideBySide._block

    def counted(self, rows):
        read.add(rows.stop - rows.start)
        return block(self, rows)

    monkeypatch.setattr(fusion._SideBySide, "_block", counted)
    np.testing.assert_allclose(make(parts, **options).encode(items), whole, atol=1e-5)
    assert read == {33, N % 33}


def test_parts_see_the_items_and_a_directory_each(items, tmp_path, part):
    seen = []

    class Spy:
        def encode(self, given):
            seen.append(given)
            return correlated(len(seen), 3)

    fused = make([part(correlated(0, 3))] * 2, pca=2)
    fused.parts = [Spy(), Spy()]
    fused.encode(dataclasses.replace(items, work_dir=tmp_path / "work"))
    assert [given.work_dir.name for given in seen] == ["part_0", "part_1"]
    assert all(given.work_dir.is_dir() and given.catalog is items.catalog for given in seen)


def test_text_and_collaborative_vectors_fuse(items):
    options = {"dim": 8, "epochs": 2, "patience": None, "layers": 1, "heads": 1}
    parts = [
        {"embedder": "tfidf_svd", "args": {"dim": 6}},
        {"embedder": "sasrec", "args": options},
        {"embedder": "lightgcn", "args": {"dim": 4, "epochs": 1, "patience": None}},
    ]
    several = Interactions.leave_one_out(["u", "v"], [np.arange(N), np.arange(0, N, 2)])
    embedder = make(parts, pca=12, whiten="pca")
    data = ItemData(items.catalog, several)
    fused_NE = embedder.encode(data)
    assert fused_NE.shape == (N, 12)
    np.testing.assert_allclose(covariance(fused_NE), np.eye(12), atol=1e-4)
    assert embedder.notes["parts"][1]["epochs"] == 2


# Parametric whitening


def anisotropic(num_items=400, dim=32, seed=0):
    """Vectors with a strong common direction; what is bought together shares a taste, a weak signal."""
    rng = np.random.default_rng(seed)
    taste_N = np.arange(num_items) % 8
    weak = rng.normal(size=(8, dim))[taste_N]
    noise = rng.normal(size=(num_items, dim)) * np.linspace(3.0, 0.3, dim)  # louder than taste
    vectors = weak + noise + 25 * rng.normal(size=dim)
    sequences = [rng.choice(np.flatnonzero(taste_N == user % 8), 12, replace=False) for user in range(160)]
    return vectors, Interactions.leave_one_out([f"u{u}" for u in range(160)], sequences)


def cosines(vectors):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def test_parametric_whitening_spreads_vectors_and_draws_pairs_together(items, part):
    matrix, interactions = anisotropic()
    data = ItemData(items.catalog, interactions)
    learnt = {"whiten": "parametric", "parametric": {"steps": 150, "batch_pairs": 256, "learning_rate": 5e-3}}
    vectors = {
        "raw": matrix,
        "pca": make([part(matrix)], pca=24, whiten="pca").encode(data),
        "parametric": make([part(matrix)], pca=24, **learnt).encode(data),
    }
    # Valid's pairs: the map has never seen them together.
    cases = interactions.histories("valid")
    last = np.array([cases.history(case)[-1] for case in range(len(cases))])
    mean, drawn_together = {}, {}
    for name, matrix_ND in vectors.items():
        cosine_NN = cosines(matrix_ND)
        mean[name] = (cosine_NN.sum() - N) / (N * (N - 1))
        drawn_together[name] = cosine_NN[last, cases.targets_C].mean() - mean[name]
    assert mean["raw"] > 0.8 and abs(mean["parametric"]) < 0.05
    assert drawn_together["parametric"] > 2 * drawn_together["pca"] > 2 * drawn_together["raw"]
    again = make([part(matrix)], pca=24, **learnt).encode(data)
    np.testing.assert_array_equal(again, vectors["parametric"])
    other = make([part(matrix)], pca=24, seed=1, **learnt).encode(data)
    assert not np.array_equal(other, vectors["parametric"])


def test_parametric_whitening_learns_from_train_alone(items, part):
    matrix, interactions = anisotropic()
    items_I = interactions.items_I.copy()
    for split in ("valid", "test"):
        cases = interactions.histories(split)
        items_I[interactions.indptr_S1[cases.sequence_C] + cases.position_C] = 0
    changed = dataclasses.replace(interactions, items_I=items_I)
    learnt = {"whiten": "parametric", "parametric": {"steps": 5, "batch_pairs": 64}}
    results = [
        make([part(matrix)], pca=8, **learnt).encode(ItemData(items.catalog, given))
        for given in (interactions, changed)
    ]
    np.testing.assert_array_equal(*results)


def test_an_item_is_no_negative_of_itself():
    """Pairs that share the target are left out of each other's softmax, both ways round."""
    import torch

    generator = torch.Generator().manual_seed(0)
    first_pD, second_pD = (torch.randn(4, 5, generator=generator) for _ in range(2))
    pairs_p2 = torch.tensor([[0, 9], [1, 9], [0, 8], [3, 7]])
    loss = parametric_whitening._info_nce(first_pD, second_pD, pairs_p2, 0.5)
    odds = torch.exp(first_pD @ second_pD.T / 0.5)
    terms = []
    for p in range(4):
        others = [q for q in range(4) if q == p or pairs_p2[q, 1] != pairs_p2[p, 1]]
        terms.append(-torch.log(odds[p, p] / odds[p, others].sum()))
        others = [q for q in range(4) if q == p or pairs_p2[q, 0] != pairs_p2[p, 0]]
        terms.append(-torch.log(odds[p, p] / odds[others, p].sum()))
    torch.testing.assert_close(loss, torch.stack(terms).mean())


# Bad input


def test_dead_dimensions_are_named(items, part):
    matrix = correlated(0, 6)
    matrix[:, [2, 4]] = 0.1
    with pytest.raises(InputError, match=r"parts\[1\]: 2 of 6 dimensions of 'precomputed' .*, first 2;"):
        make([part(correlated(1, 3)), part(matrix)]).encode(items)
    fused_NE = make([part(matrix)], pca=4, standardize=False).encode(items)
    assert np.isfinite(fused_NE).all()
    with pytest.raises(InputError, match=r"precomputed \(parts\[1\]\)' gave the same vector for all 400"):
        make([part(correlated(1, 3)), part(np.full((N, 1), 7.0))]).encode(items)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pca": 9}, r"embedder_args\.pca: needs 9 dimensions, but 400 vectors of size 8 span 6 independent"),
        ({"pca": 7}, r"embedder_args\.pca: needs 7 .* set embedder_args\.pca to at most 6"),
        (
            {"pca": None, "whiten": "pca"},
            r"embedder_args\.whiten: needs 8 .*\.pca to at most 6",
        ),
    ],
)
def test_more_dimensions_than_there_are_is_an_error(items, part, options, message):
    matrix = correlated(0, 8)
    matrix[:, 6:] = matrix[:, :2]
    with pytest.raises(InputError, match=message):
        make([part(matrix)], **options).encode(items)


def test_nan_in_a_part_is_named(items, part):
    matrix = correlated(0, 3)
    matrix[5, 1] = np.nan
    with pytest.raises(InputError, match=r"'precomputed \(parts\[0\]\)' gave NaN .* first for item_index 5"):
        make([part(matrix)], pca=2).encode(items)


def test_parametric_whitening_needs_pairs(items, part):
    alone = Interactions.leave_one_out(["u"], [np.array([1])])
    with pytest.raises(InputError, match=r"embedder_args\.whiten: 'parametric' found no two different items"):
        make([part(correlated(0, 3))], pca=2, whiten="parametric").encode(ItemData(items.catalog, alone))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": []}, r"embedder_args\.parts: is empty"),
        ({"pca": 0}, r"embedder_args\.pca: 0 is below 1"),
        ({"whiten": "zca"}, r"embedder_args\.pca: 256 leaves zca no axes"),
        ({"whiten": "ica"}, r"embedder_args\.whiten: 'ica' is not one of"),
        ({"parametric": {"steps": 5}}, r"embedder_args\.parametric: has no effect with whiten: none"),
        (
            {"whiten": "parametric", "parametric": {"steps": 0}},
            r"embedder_args\.parametric\.steps: 0 is",
        ),
        ({"parts": [{"embedder": "sasrc"}]}, r"embedder_args\.parts\[0\]\.embedder: 'sasrc' is not known"),
        (
            {"parts": [{"embedder": "sasrec", "args": {"dmi": 3}}]},
            r"embedder_args\.parts\[0\]\.args\.dmi: unknown key; did you mean 'dim'",
        ),
        ({"parts": [{"embedder": "sasrec", "weight": 0.0}]}, r"parts\[0\]\.weight: 0.0 is not above 0"),
        ({"parts": [{"args": {}}]}, r"embedder_args\.parts\[0\]\.embedder: is missing"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        make(**({"parts": [{"embedder": "sasrec"}]} | options))
