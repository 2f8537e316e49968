"""How new rows begin, against the formulas written out item by item; and every model shape with each way
through training, merging and decoding.

Legend: as in sft.new_tokens.
"""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prompts.pack import PromptPack
from serve.decoding import tree_beam
from serve.decoding.recommender import Recommender
from sft import merge
from sft.arguments import NewTokenOptions, SftArguments
from sft.new_tokens import MEAN_RESIZING_SCALE, RIDGE, RowSource, around_mean, load_vectors
from sft.start import start_model
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.sid_index import SidIndex
from tests.builders import make_index
from tests.sft.builders import make_interactions, write_checkpoint, write_sids
from tests.sft.command_line import run_sft

INITS = ("mean", "text", "codebook")


@pytest.fixture(scope="module")
def index() -> SidIndex:
    """40 items under 8 x 8 x 10 codes; SIDs of two levels among them, codes without an item, a title that is
    empty.
    """
    rng = np.random.default_rng(5)
    codes = rng.permutation(np.unique(rng.integers(0, 8, (60, 3)), axis=0))[:40]
    codes[codes[:, 0] == 3, 2] = -1
    plain = make_index(codes, (8, 8, 10))
    rows = [plain.catalog.row(item) for item in range(40)]
    for row, words in zip(rows, ("red trail shoes", "a very warm blue jacket", "", "tent"), strict=False):
        row["title"] = words
    return dataclasses.replace(plain, catalog=Catalog.from_rows(rows))


@pytest.fixture(scope="module")
def vectors_ND(index) -> np.ndarray:
    return np.random.default_rng(8).normal(size=(40, 6)).astype(np.float32) + 0.5


@pytest.fixture(scope="module")
def sids(index, vectors_ND, tmp_path_factory):
    path = tmp_path_factory.mktemp("sids") / "sids"
    return write_sids(path, index, make_interactions(40), vectors_ND)


@pytest.fixture(scope="module")
def checkpoint(index, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "untied", index, "llama", tied=False)


def started(sids, checkpoint, index, init, seed=0, **further):
    """Model, tokenizer and SID ids of an extended checkpoint."""
    options = NewTokenOptions(init=init)
    args = SftArguments(sid_dir=str(sids), model_name_or_path=str(checkpoint), new_tokens=options, **further)
    model, tokenizer, _, ids = start_model(args, PromptPack.load("chat"), index, seed)
    return model, tokenizer, ids


def matrices(model) -> list[torch.Tensor]:
    """Input embedding, and the head where it is a matrix of its own."""
    weights = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    return [weight.detach() for weight in (weights[:1] if weights[0] is weights[1] else weights)]


def code_items(index) -> list[np.ndarray]:
    """Items under every code, all levels one after the other."""
    codes_NL = index.semantic_ids.codes_NL
    sizes = index.semantic_ids.level_sizes
    return [
        np.flatnonzero(codes_NL[:, level] == code) for level, size in enumerate(sizes) for code in range(size)
    ]


def title_means(index, tokenizer, weight_Vd) -> dict[int, torch.Tensor]:
    means = {}
    for item, title in enumerate(index.catalog.titles):
        ids = tokenizer.encode(title, add_special_tokens=False)
        if ids:
            means[item] = torch.stack([weight_Vd[i] for i in ids]).mean(dim=0)
    return means


@pytest.mark.parametrize("init", INITS)
def test_old_rows_stay_and_the_seed_decides(sids, checkpoint, index, init):
    before = matrices(AutoModelForCausalLM.from_pretrained(checkpoint))
    old = len(AutoTokenizer.from_pretrained(checkpoint))
    first, again, other = (started(sids, checkpoint, index, init, seed)[0] for seed in (0, 0, 1))
    for old_Vd, one, same, different in zip(before, *map(matrices, (first, again, other)), strict=True):
        assert torch.equal(one[:old], old_Vd[:old]) and torch.equal(one, same)
        assert len(one) == 64 * -(-(old + 26) // 64), "26 codes, padded to a multiple of 64"
        assert not torch.equal(one, different), "codes without items are drawn"
        # The padding behind them is around the mean, too: a random row would take a share of every softmax.
        torch.testing.assert_close(
            one[old + 26 :], old_Vd[:old].mean(dim=0).expand_as(one[old + 26 :]), rtol=0, atol=1e-4
        )


def test_around_mean_has_the_covariance_of_the_old_rows():
    generator = torch.Generator().manual_seed(3)
    old_Vd = torch.randn(1000, 4, generator=generator) @ torch.randn(4, 4, generator=generator) + 2
    drawn = around_mean(old_Vd, 5000, generator)
    torch.testing.assert_close(drawn.mean(dim=0), old_Vd.mean(dim=0), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        torch.cov((drawn - old_Vd.mean(dim=0)).T) / MEAN_RESIZING_SCALE,
        torch.cov(old_Vd.T),
        rtol=0.1,
        atol=0.2,
    )


def test_text_is_the_mean_of_title_words(sids, checkpoint, index):
    model, tokenizer, ids = started(sids, checkpoint, index, "text")
    drawn, _, _ = started(sids, checkpoint, index, "mean")
    for weight, fallback in zip(matrices(model), matrices(drawn), strict=True):
        means = title_means(index, tokenizer, weight)
        assert len(means) == 39, "one item has no title"
        for token, items in zip(ids, code_items(index), strict=True):
            known = [means[item] for item in items.tolist() if item in means]
            wanted = torch.stack(known).mean(dim=0) if known else fallback[token]
            torch.testing.assert_close(weight[token], wanted, rtol=1e-5, atol=1e-6)


def test_codebook_maps_centroids_of_residuals(sids, checkpoint, index, vectors_ND):
    model, tokenizer, ids = started(sids, checkpoint, index, "codebook")
    drawn, _, _ = started(sids, checkpoint, index, "mean")
    codes_NL, sizes = index.semantic_ids.codes_NL, index.semantic_ids.level_sizes
    offsets, residual = [], vectors_ND.astype(np.float64).copy()
    for level, size in enumerate(sizes):
        centroids = np.zeros((size, residual.shape[1]))
        for code in range(size):
            under = codes_NL[:, level] == code
            if under.any():
                centroids[code] = residual[under].mean(axis=0)
                offsets.append(centroids[code] - (vectors_ND.mean(axis=0) if not level else 0))
            else:
                offsets.append(None)
        for item in np.flatnonzero(codes_NL[:, level] >= 0):
            residual[item] -= centroids[codes_NL[item, level]]
    old = min(ids)
    for weight, fallback in zip(matrices(model), matrices(drawn), strict=True):
        means = title_means(index, tokenizer, weight)
        x = vectors_ND[list(means)].astype(np.float64)
        t = torch.stack(list(means.values())).double().numpy()
        x, t = x - x.mean(axis=0), t - t.mean(axis=0)
        gram = x.T @ x / len(x)
        ridge = RIDGE * np.trace(gram) / len(gram)
        mapping = np.linalg.solve(gram + ridge * np.eye(len(gram)), x.T @ t / len(x))
        old_mean = weight[:old].mean(dim=0).numpy()
        spread = np.linalg.norm(weight[:old].numpy() - old_mean, axis=1)
        start = 0
        for size in sizes:
            made = {
                code: offsets[start + code] @ mapping
                for code in range(size)
                if offsets[start + code] is not None
            }
            order = sorted(made, key=lambda code: np.linalg.norm(made[code]))
            for code in range(size):
                row = weight[ids[start + code]].numpy()
                if code not in made:
                    np.testing.assert_array_equal(row, fallback[ids[start + code]].numpy())
                    continue
                length = np.quantile(spread, (order.index(code) + 0.5) / len(order))
                wanted = old_mean + made[code] / np.linalg.norm(made[code]) * length
                np.testing.assert_allclose(row, wanted, rtol=1e-3, atol=1e-5)
            start += size


def test_a_bfloat16_checkpoint_gets_the_rounded_rows(sids, checkpoint, index):
    for init in INITS:
        wide, _, ids = started(sids, checkpoint, index, init)
        narrow, _, _ = started(sids, checkpoint, index, init, dtype="bfloat16")
        for one, other in zip(matrices(wide), matrices(narrow), strict=True):
            assert other.dtype == torch.bfloat16
            torch.testing.assert_close(other[ids].float(), one[ids], rtol=0.02, atol=1e-3)


def test_what_an_init_lacks_is_named(index, vectors_ND, checkpoint, tmp_path):
    bare = write_sids(tmp_path / "bare", index, make_interactions(40))
    with pytest.raises(InputError, match="init: 'codebook' needs item vectors, and .* has no embeddings.npy"):
        started(bare, checkpoint, index, "codebook")
    short = write_sids(tmp_path / "short", index, make_interactions(40), vectors_ND[:7])
    with pytest.raises(InputError, match=r"embeddings.npy has shape \(7, 6\), and the index has 40 items"):
        load_vectors(short, 40)
    untitled = dataclasses.replace(index, catalog=Catalog.bare(index.catalog.table["item_id"]))
    source = RowSource(untitled, AutoTokenizer.from_pretrained(checkpoint), "text")
    with pytest.raises(InputError, match="init: 'text' needs titles, and no item has one"):
        source.rows(torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("architecture", "tied", "padding", "init", "train"),
    [
        ("qwen2", True, 100, "text", "rows"),
        ("qwen2", False, 5, "codebook", "rows"),
        ("qwen3", True, 5, "codebook", "full"),
        ("qwen3", False, 100, "text", "rows"),
        ("llama", True, 100, "mean", "rows"),
        ("llama", False, 5, "text", "full"),
    ],
)
def test_every_shape_trains_merges_and_decodes(
    index, sids, tmp_path, architecture, tied, padding, init, train
):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", index, architecture, tied, padding)
    rows = len(matrices(AutoModelForCausalLM.from_pretrained(checkpoint))[0])
    flags = ["--max_steps", 2, "--save_strategy", "no", "--learning_rate", 0.01]
    options = f'{{"init": "{init}", "train": "{train}"}}'
    run_sft(sids, tmp_path / "sft", "--model_name_or_path", checkpoint, "--new_tokens", options, *flags)
    merge.main(["--adapter", str(tmp_path / "sft"), "--output_dir", str(tmp_path / "model")])
    recommender = Recommender.load(tmp_path / "model")
    before = matrices(AutoModelForCausalLM.from_pretrained(tmp_path / "sft" / "base"))
    after = matrices(recommender.model)
    assert len(before) == len(after) == (1 if tied else 2), "tied stays tied"
    for one, other in zip(before, after, strict=True):
        assert len(one) == len(other) >= rows, "padding beyond the tokenizer is never cut"
        assert padding == 5 or len(other) == rows, "and room that is there is used"
    ids = recommender.template.vocabulary.all_ids
    moved = [(one[ids] != other[ids]).any(dim=1) for one, other in zip(before, after, strict=True)]
    assert moved[-1].all(), "every SID token has a gradient through the head"
    assert moved[0].any()
    prompt = recommender.template.seqrec_prompt([3, 5])
    (ranking,) = tree_beam.decode(recommender.model, [prompt], recommender.trie, 40)
    assert sorted(ranking.items_K) == list(range(40)) and (np.diff(ranking.scores_K) <= 0).all()


@pytest.mark.parametrize("init", ["text", "codebook"])
def test_quantised_weights_start_from_the_same_rows(index, sids, checkpoint, tmp_path, init):
    """The base is extended and saved before it is quantised; its embeddings are never quantised."""
    pytest.importorskip("bitsandbytes")
    flags = ["--max_steps", 1, "--save_strategy", "no", "--load_in_4bit", "true", "--learning_rate", 0.01]
    options = f'{{"init": "{init}"}}'
    run_sft(sids, tmp_path / "sft", "--model_name_or_path", checkpoint, "--new_tokens", options, *flags)
    merge.main(["--adapter", str(tmp_path / "sft"), "--output_dir", str(tmp_path / "model")])
    wanted, _, ids = started(sids, checkpoint, index, init, seed=3)  # run_sft's seed
    base, model = (
        matrices(AutoModelForCausalLM.from_pretrained(tmp_path / path)) for path in ("sft/base", "model")
    )
    for rows, kept, learnt in zip(matrices(wanted), base, model, strict=True):
        assert torch.equal(rows, kept)
        moved = (learnt[ids] - rows[ids]).abs().max()
        assert 0 < moved < 0.05, "one step away from where they began"


def test_options_without_effect_are_refused(sids, tmp_path):
    scratch = ["--from_scratch", '{"num_layers": 1}', "--training", "full"]
    for options, message in (
        ('{"init": "text"}', "new_tokens.init: 'text' has no trained embeddings"),
        ('{"warmup_steps": 3}', "new_tokens.warmup_steps: 3 would teach rows to random weights"),
    ):
        with pytest.raises(InputError, match=message):
            run_sft(sids, tmp_path / "out", *scratch, "--new_tokens", options)
