"""Every recipe under configs/recipes/ is planned, on a checkpoint of its model's shape without weights."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from prompts.pack import PromptPack
from rl import train_dpo, train_grpo
from sft import train
from sft.arguments import SftArguments
from sft.model_directory import save_parts
from sft.models.scratch import ScratchConfig, build_model, train_tokenizer
from sft.plan_model import config_model, on_meta
from sft.start import start_tokenizer
from sft.vocabulary import extend_model
from sid_builder import cli
from sid_builder.artifact import writing
from tests.builders import make_index
from tests.published_shapes import PUBLISHED, write_shape
from tests.sft.builders import CHATML, make_interactions, write_sids

ROOT = Path(__file__).parents[1]
RECIPES = [path for path in sorted((ROOT / "configs" / "recipes").iterdir()) if path.is_dir()]
STAGES = {"grpo": train_grpo.main, "dpo": train_dpo.main}
SHAPES = {name.lower(): shape for name, (shape, _) in PUBLISHED.items()}
# What the folder's name says it is for.
MACHINES = {"1x24gb": "L4 24 GB", "1x80gb": "H100 80 GB", "8xa100": "A100 80 GB", "cpu": "this CPU"}


@pytest.fixture(scope="module")
def index():
    rng = np.random.default_rng(5)
    return make_index(rng.permutation(np.unique(rng.integers(0, 8, (120, 3)), axis=0))[:80], (8, 8, 8))


@pytest.fixture(scope="module")
def interactions():
    return make_interactions(80, num_users=200)


@pytest.fixture(scope="module")
def sids(index, interactions, tmp_path_factory):
    return write_sids(tmp_path_factory.mktemp("sids") / "sids", index, interactions)


def write_checkpoint(path, index, shape):
    """config.json and a small tokenizer."""
    write_shape(path, *shape)
    tokenizer = train_tokenizer(index.catalog.titles * 3, 500)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(path)
    return path


def launch_of(path):
    """The launch file that the head of a recipe's file names; nothing where it names none."""
    named = re.search(r"configs/accelerate/\w+[.]yaml", path.read_text(encoding="utf-8"))
    return str(ROOT / named.group()) if named else ""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_planned_and_fits_its_machine(
    recipe, index, interactions, sids, tmp_path, capsys, monkeypatch
):
    model, _, machine = recipe.name.rpartition("_")

    def plan(main, stage, *flags):
        monkeypatch.setenv("ACCELERATE_CONFIG_FILE", launch_of(recipe / f"{stage}.yaml"))
        common = f"--config {recipe}/{stage}.yaml --output_dir {tmp_path / 'out'} --plan true"
        main([*common.split(), *map(str, flags)])
        figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        (hours,) = (value for name, value in figures["hours"].items() if name.startswith(MACHINES[machine]))
        assert hours is not None, f"{stage} takes {figures['peak_gib']} GiB"
        assert figures["processes"] == (8 if machine.startswith("8x") else 1)
        assert figures["steps"] >= 1
        return figures

    checkpoint = write_checkpoint(tmp_path / "start", index, SHAPES[model]) if model in SHAPES else None
    start = ["--model_name_or_path", checkpoint] if checkpoint else []
    sft = plan(train.main, "sft", "--sid_dir", sids, *start)
    values = cli.load_yaml(recipe / "sft.yaml")
    merged = write_merged(tmp_path / "merged", values, checkpoint, index, interactions)
    for stage, main in STAGES.items():
        figures = plan(main, stage, "--model_name_or_path", merged)
        assert figures["parameters"] == pytest.approx(sft["parameters"], rel=0.06)


def write_merged(path, values, checkpoint, index, interactions):
    """What SFT and merging would leave, without the weights."""
    args = SftArguments(
        sid_dir="",
        model_name_or_path=checkpoint and str(checkpoint),
        from_scratch=None if checkpoint else ScratchConfig(**values["from_scratch"]),
        training=values["training"],
    )
    pack = PromptPack.load(values["prompt_pack"])
    tokenizer, template, _ = start_tokenizer(args, pack, index)
    with on_meta():
        if checkpoint:
            model = config_model(str(checkpoint), None)
            extend_model(model, tokenizer)
        else:
            ends = template.end_id, tokenizer.pad_token_id
            model = build_model(args.from_scratch, len(tokenizer), *ends, seed=0)
    with writing(path, "model") as artifact:
        save_parts(artifact.path, tokenizer, pack, index, interactions)
        model.config.save_pretrained(artifact.path)
    return path
