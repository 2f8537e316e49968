"""`python -m sid_builder.embed`: its artefact, and the build that takes it over."""

import json

import numpy as np
import pytest

from sid_builder import build, embed
from sid_builder.artifact import open_artifact
from sid_builder.embedding_store import CACHE_VARIABLE
from sid_builder.errors import InputError
from tests.sid_builder.model_directories import random_texts, save_causal_lm

CONFIG = """
source: jsonl
text_template: "{title}"
embedder: causal_lm
embedder_args: {model: MODEL, device: cpu}
quantizer_args: {levels: 2, codes_per_level: 4}
repair: last_level_assign
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Write a shop of these titles; returns the arguments that embed it or build over it."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    model = save_causal_lm(tmp_path / "model")
    (tmp_path / "config.yaml").write_text(CONFIG.replace("MODEL", str(model)))

    def write(titles, name):
        directory = tmp_path / name
        directory.mkdir()
        items = [{"item_id": title, "title": title} for title in titles]
        baskets = [[titles[(user + step) % len(titles)] for step in range(5)] for user in range(6)]
        sequences = [{"user": str(user), "items": basket} for user, basket in enumerate(baskets)]
        for file, rows in (("items", items), ("sequences", sequences)):
            (directory / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ["--config", str(tmp_path / "config.yaml"), "--data_path", str(directory)]

    return write


def test_a_build_takes_embeddings_over(shop, tmp_path, capsys):
    arguments = shop(random_texts(12, 20), "shop")
    out = tmp_path / "out"
    summary = embed.main([*arguments, "--output_dir", str(out / "embeddings")])
    artifact = open_artifact(out / "embeddings", "embeddings")
    artifact.verify_hashes()
    expected = {"num_items": 12, "distinct_contents": 12, "encoded": 12, "dim": 32, "duplicate_vectors": 0}
    assert artifact.summary == summary == expected
    assert [path.name for path in out.iterdir()] == ["embeddings"]  # no working directory stays
    assert f"wrote {out / 'embeddings'}" in capsys.readouterr().out
    given = ["--embedder", "precomputed", "--embedder_args", json.dumps({"file": str(out / "embeddings")})]
    taken = build.main([*arguments, *given, "--output_dir", str(out / "taken")])
    direct = build.main([*arguments, "--output_dir", str(out / "direct")])
    np.testing.assert_array_equal(taken.semantic_ids.codes_NL, direct.semantic_ids.codes_NL)
    np.testing.assert_array_equal(
        np.load(out / "taken" / "embeddings.npy"), np.load(out / "embeddings" / "embeddings.npy")
    )


def test_rows_are_found_by_item_id(shop, tmp_path):
    titles = random_texts(12, 20)
    embed.main([*shop(titles, "all"), "--output_dir", str(tmp_path / "embeddings")])
    stored_ND = np.load(tmp_path / "embeddings" / "embeddings.npy")
    given = ["--embedder", "precomputed", "--embedder_args"]
    given.append(json.dumps({"file": str(tmp_path / "embeddings")}))
    fewer = shop(titles[:3:-1], "fewer")
    build.main([*fewer, *given, "--output_dir", str(tmp_path / "sids")])
    np.testing.assert_array_equal(np.load(tmp_path / "sids" / "embeddings.npy"), stored_ND[:3:-1])
    more = shop([*titles, "one more", "and another"], "more")
    with pytest.raises(
        InputError, match="lacks 2 of 14 items, first item_id 'one more'; run sid_builder.embed"
    ):
        build.main([*more, *given, "--output_dir", str(tmp_path / "more_sids")])
    (tmp_path / "embeddings" / "manifest.json").unlink()
    with pytest.raises(InputError, match="has no manifest.json, so it is incomplete"):
        build.main([*more, *given, "--output_dir", str(tmp_path / "more_sids")])


def test_an_embedder_is_needed(shop, tmp_path):
    (tmp_path / "given.yaml").write_text("source: toy\nquantizer: given\n")
    with pytest.raises(InputError, match="embedder: is not set; use one of"):
        embed.main(["--config", str(tmp_path / "given.yaml"), "--output_dir", str(tmp_path / "out")])
