"""The shared data sets read as their README says; skipped where they are absent."""

from pathlib import Path

import pytest

from sid_builder import build
from sid_builder.artifact import open_artifact
from sid_builder.sources import jsonl, minionerec

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [pytest.mark.data, pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")]


def test_beauty_has_the_published_size():
    data = jsonl.load(jsonl.JsonlArgs(path=str(DATA / "amazon14_beauty")))
    interactions = data.interactions
    assert (data.catalog.num_items, interactions.num_sequences, interactions.num_interactions) == (
        12101,
        22363,
        198502,
    )
    assert data.notes["items_without_title"] == 7 and not interactions.has_repeats
    assert len(interactions.histories("test")) == len(interactions.histories("valid")) == 22363
    unseen = interactions.train_counts(12101)[interactions.histories("test").targets_C] == 0
    assert unseen.sum() == 138


def test_minionerec_reads_every_row():
    data = minionerec.load(minionerec.MiniOneRecArgs(path=str(DATA / "minionerec_industrial")))
    assert data.catalog.num_items == 3686 and data.notes["category"] == "Industrial_and_Scientific"
    assert [data.notes[f"{split}_cases"] for split in ("train", "valid", "test")] == [29695, 4532, 4533]
    assert data.interactions.train_counts(3686).sum() == 29695
    assert data.notes["descriptions_with_broken_quotes"] == 16 and data.interactions.has_repeats
    assert data.notes["csv_files_not_read"] == ["train/rows_with_source.csv"]
    assert not any(text.startswith("[") for text in data.catalog.table.column("description").to_pylist())


def test_published_sids_are_taken_over(tmp_path):
    config = Path(__file__).parents[2] / "configs" / "sid" / "minionerec_industrial_given.yaml"
    path = str(DATA / "minionerec_industrial")
    index = build.main(["--config", str(config), "--data_path", path, "--output_dir", str(tmp_path / "sids")])
    assert index.semantic_ids.level_sizes == (256, 256, 256)
    assert index.semantic_ids.spell(0) == "<a_236><b_231><c_226>"
    summary = open_artifact(tmp_path / "sids", "sids").summary
    assert summary["collision_rate"] == pytest.approx(0.0043, abs=5e-5) and summary["level_1_used"] == 48
    assert not (tmp_path / "sids" / "embeddings.npy").exists()
    group_sizes = [len(group) for group in index.semantic_ids.collision_groups()]
    assert sum(group_sizes) / 3686 == pytest.approx(summary["items_sharing"]) and max(group_sizes) == 3
