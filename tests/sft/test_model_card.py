"""The card of a model directory, and what of it goes to the Hub."""

from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub
import numpy as np
import pytest
import yaml

from serve.decoding.recommender import Recommender
from sft import merge, train
from sft.model_card import base_model_of, write_card
from sft.publish import published_manifest
from sid_builder.artifact import open_artifact, writing
from sid_builder.errors import InputError
from tests.builders import make_index
from tests.sft.builders import make_interactions, write_checkpoint, write_sids
from tests.sft.command_line import FROM_SCRATCH, ON_CPU

FLAGS = [*ON_CPU, "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1", "--valid_cases", "12"]
FLAGS += ["--task_weights", '{"seqrec": 1.0, "title2sid": 0.5}', "--learning_rate", "0.0123"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A LoRA run on a local checkpoint and a full one from scratch."""
    root = tmp_path_factory.mktemp("runs")
    codes = np.stack(np.unravel_index(np.arange(40), (8, 8)), axis=1)
    index = make_index(codes, (8, 8))
    sids = write_sids(root / "sids", index, make_interactions(40))
    lora = ["--model_name_or_path", str(write_checkpoint(root / "checkpoint", index))]
    for name, start in (("lora", lora), ("full", FROM_SCRATCH)):
        train.main(["--sid_dir", str(sids), "--output_dir", str(root / name), *FLAGS, *start])
    return root


@pytest.fixture(scope="module")
def models(runs):
    for name in ("lora", "full"):
        merge.main(["--adapter", str(runs / name), "--output_dir", str(runs / f"{name}_model")])
    return runs


def front_matter(card):
    _, front, rest = card.split("---\n", 2)
    return yaml.safe_load(front), rest


@pytest.mark.parametrize("training", ["lora", "full"])
def test_the_card_tells_where_a_model_comes_from(models, training):
    directory = models / f"{training}_model"
    open_artifact(directory, "model").verify_hashes()
    card = (directory / "README.md").read_text(encoding="utf-8")
    front, text = front_matter(card)
    assert front["tags"][:2] == ["sidereal", "generative-recommendation"]
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "text-generation"
    assert "base_model" not in front, "a local checkpoint has no public name"
    outcome = open_artifact(models / training, "sft").summary["valid"]
    interactions = make_interactions(40).num_interactions
    for fact in (
        f"# {training}_model",
        "supervised fine-tuning",
        "| items | 40 on the shelf, 40 known |",
        "| codes per level | 8 x 8 |",
        "| collision rate (1 - distinct SIDs / items) | 0.00% |",
        "| sequences | 30 |",
        f"| interactions | {interactions} |",
        "`seqrec` 1, `title2sid` 0.5",
        f"| training | {training} |",
        "| learning_rate | 0.0123 |",
        f"Best NDCG@10 on a sample of valid: {outcome['best']:.4f} at step {outcome['best_step']} of 2",
        "serve.launch --model",
        "## Limits",
    ):
        assert fact in text, fact
    assert ("| lora | alpha 32" in text) == (training == "lora")
    assert str(models) not in card and str(Path.home()) not in card
    assert "user-" not in card


def test_a_card_holds_only_what_may_be_told(models, tmp_path):
    """Of TRL's settings those that are listed; nothing where nothing is known."""
    directory = models / "full_model"
    with writing(tmp_path / "model", "model") as artifact:
        (artifact.path / "sid_index").symlink_to(directory / "sid_index")
        config = {
            "sft": {"training": "full", "sid_dir": "/home/ann/sids", "task_weights": {"seqrec": 1.0}},
            "trl": {"hub_token": "hf_secret", "output_dir": "/home/ann/run", "learning_rate": 1e-3},
        }
        write_card(artifact.path, "shop", config, {"base_model": "Qwen/Qwen2.5-0.5B", "rows": 1234})
        card = (artifact.path / "README.md").read_text()
        write_card(artifact.path, "bare", {}, {})
        bare = (artifact.path / "README.md").read_text()
        (artifact.path / "sid_index").unlink()
    assert front_matter(card)[0]["base_model"] == "Qwen/Qwen2.5-0.5B"
    assert "hf_secret" not in card and "/home/ann" not in card
    assert "| learning_rate | 0.001 |" in card and "| training rows | 1,234 |" in card
    assert "## Training" not in bare and "## Data" not in bare and "## Figures" not in bare


def test_the_base_model_is_that_of_the_first_training(models, tmp_path):
    assert base_model_of("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert base_model_of(None) is base_model_of(str(models / "checkpoint")) is None
    assert base_model_of("/no/such/place") is None
    with writing(tmp_path / "model", "model") as artifact:
        artifact.summary["base_model"] = "Qwen/Qwen3-0.6B"
    assert base_model_of(str(tmp_path / "model")) == "Qwen/Qwen3-0.6B"


class RecordingHub:
    """HfApi that keeps what it is sent."""

    def __init__(self, public=False, fails=None):
        self.public, self.fails, self.files, self.asked = public, fails, {}, {}

    def create_repo(self, repository, **options):
        self.asked = {"repository": repository, **options}
        return f"https://huggingface.co/{repository}"

    def repo_info(self, repository, **options):
        return SimpleNamespace(private=not self.public)

    def create_commit(self, repository, operations, **options):
        if self.fails:
            raise self.fails
        for operation in operations:
            with operation.as_file() as stream:
                self.files[operation.path_in_repo] = stream.read()


@pytest.fixture
def hub(monkeypatch):
    def use(**options):
        made = RecordingHub(**options)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        return made

    return use


def push(runs, output_dir, *flags, training="lora"):
    merge.main(["--adapter", str(runs / training), "--output_dir", str(output_dir), *flags])


@pytest.mark.parametrize("training", ["lora", "full"])
def test_the_model_is_uploaded_without_the_interactions(runs, tmp_path, hub, training, capsys):
    recorded = hub()
    flags = ["--push_to_hub", "ann/shop", "--private", "true"]
    push(runs, tmp_path / "model", *flags, training=training)
    assert recorded.asked["repository"] == "ann/shop" and recorded.asked["private"] is True
    assert "uploaded to https://huggingface.co/ann/shop, without interactions/" in capsys.readouterr().out
    here = {path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*.*")}
    assert {name for name in here if name.startswith("interactions/")}, "the directory has them"
    assert recorded.files.keys() == {name for name in here if not name.startswith("interactions/")}
    everything = b"".join(recorded.files.values())
    for private in (str(runs).encode(), str(tmp_path).encode(), b"hf_of_a_test", b"user-0"):
        assert private not in everything

    downloaded = tmp_path / "downloaded"
    for name, content in recorded.files.items():
        (downloaded / name).parent.mkdir(parents=True, exist_ok=True)
        (downloaded / name).write_bytes(content)
    open_artifact(downloaded, "model").verify_hashes()
    recommender = Recommender.load(downloaded)
    with pytest.raises(InputError, match="carries no interactions/"):
        _ = recommender.interactions


def test_what_lies_beside_the_model_is_not_sent(models, hub):
    from sft.publish import publish

    recorded, stray = hub(), models / "full_model" / "notes.txt"
    stray.write_text("by hand")
    publish(models / "full_model", "ann/shop", private=False)
    stray.unlink()
    assert "notes.txt" not in recorded.files and "config.json" in recorded.files
    assert recorded.asked["private"] is None


def test_paths_of_a_published_manifest():
    config = {"sft": {"sid_dir": "/home/ann/sids", "layout": ["/a/b", "out/x"]}, "trl": {"lr": 0.1}}
    files = {"interactions/a.parquet": {"bytes": 1}, "config.json": {"bytes": 2}}
    made = published_manifest({"kind": "model", "config": config, "files": files})
    assert made["config"] == {"sft": {"sid_dir": "sids", "layout": ["b", "out/x"]}, "trl": {"lr": 0.1}}
    assert made["files"] == {"config.json": {"bytes": 2}} and made["kind"] == "model"


def test_uploads_that_fail(runs, tmp_path, hub, monkeypatch):
    hub(fails=httpx.ConnectError("no way\nout"))
    with pytest.raises(InputError, match="push_to_hub: ann/shop: no way out; .*is complete"):
        push(runs, tmp_path / "model", "--push_to_hub", "ann/shop")
    open_artifact(tmp_path / "model", "model").verify_hashes()
    recorded = hub(public=True)
    with pytest.raises(InputError, match="ann/shop is there already and is public"):
        push(runs, tmp_path / "other", "--push_to_hub", "ann/shop", "--private", "true")
    assert not recorded.files


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--push_to_hub", "shop"], "push_to_hub: 'shop' is no repository; write it as USER/REPO"),
        (["--push_to_hub", "ann/my shop"], "push_to_hub: 'ann/my shop' is no repository"),
        (["--private", "true"], "private: true goes with --push_to_hub"),
        (["--push_to_hub", "ann/shop"], "push_to_hub: no login for ann/shop; run `hf auth login`"),
    ],
)
def test_pushes_that_are_refused_before_anything_is_merged(runs, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(InputError, match=message):
        push(runs, tmp_path / "model", *flags)
    assert not (tmp_path / "model").exists()
