"""Every YAML under configs/ parses with the arguments of its command; none is left without one."""

import dataclasses
import re
from pathlib import Path

import pytest

from sid_builder import SOURCES, cli
from sid_builder.artifact import writing
from sid_builder.errors import InputError
from sid_builder.registry import options_class, resolve

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
# Folder, or file of a recipe -> the command's own dataclass and the lazy ones it adds.
COMMANDS = {
    "sid": ("sid_builder.build:BuildArguments", ()),
    "sft": ("sft.arguments:SftArguments", ("trl:SFTConfig",)),
    "grpo": ("rl.arguments:GRPOArguments", ("trl:GRPOConfig",)),
    "dpo": ("rl.arguments:DPOArguments", ("trl:DPOConfig",)),
    "preferences": ("rl.preferences:PreferenceArguments", ()),
    "improve": ("rl.improve:ImproveArguments", ("trl:DPOConfig",)),
    "serve": ("serve.launch:LaunchArguments", ()),
}
STAGES = {"sid", "sft", "grpo", "dpo", "serve"}  # of a recipe
OF_COMMANDS = [path for path in CONFIGS if path.relative_to(ROOT / "configs").parts[0] != "accelerate"]


def command_of(path: Path) -> str:
    """Of a recipe the file's name says the command, else the folder."""
    folder = path.relative_to(ROOT / "configs").parts[0]
    return path.stem if folder == "recipes" else folder


def name(path: Path) -> str:
    return path.relative_to(ROOT / "configs").as_posix()


@pytest.fixture
def parse(tmp_path):
    """Parse a YAML as its command does, checks of values included, with inputs that exist."""
    (tmp_path / "sids").mkdir()
    with writing(tmp_path / "model", "model"):
        pass
    out = ["--output_dir", str(tmp_path / "out")]
    flags = {
        "sid": out,
        # --use_cpu: TRL refuses bf16 where it finds no GPU
        "sft": ["--sid_dir", str(tmp_path / "sids"), *out, "--use_cpu", "True"],
        "grpo": ["--model_name_or_path", str(tmp_path / "model"), *out, "--use_cpu", "True"],
        "dpo": ["--model_name_or_path", str(tmp_path / "model"), *out, "--use_cpu", "True"],
        "improve": ["--model_name_or_path", str(tmp_path / "model"), *out, "--use_cpu", "True"],
        "preferences": ["--model", str(tmp_path / "model"), *out],
        "serve": ["--model", str(tmp_path / "model")],
    }

    def parse(folder: str, path: Path) -> tuple:
        own, lazy = COMMANDS[folder]
        source = cli.load_yaml(path).get("source") if folder == "sid" else None
        options = options_class(resolve(SOURCES, source, "source")) if source else None
        needs_data = options is not None and "path" in {item.name for item in dataclasses.fields(options)}
        more = ["--data_path", str(tmp_path)] if needs_data else []
        return cli.parse(resolve({}, own, "command"), ["--config", str(path), *flags[folder], *more], lazy)

    return parse


@pytest.mark.parametrize("path", OF_COMMANDS, ids=name)
def test_config_parses(path, parse):
    own, *lazy = parse(command_of(path), path)
    for key, value in cli.load_yaml(path).items():
        if hasattr(own, key) and isinstance(value, (str, int, float, list)):
            assert getattr(own, key) == value, key
        assert any(hasattr(part, key) for part in (own, *lazy)), key


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.parent.name == "accelerate"], ids=name)
def test_accelerate_config_loads(path):
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(path))
    assert loaded.num_processes >= 1


@pytest.mark.parametrize("folder", sorted(COMMANDS))
def test_a_typo_in_a_config_is_named(folder, parse, tmp_path):
    path = tmp_path / "typo.yaml"
    needed = "source: toy\nquantizer: given\n" if folder == "sid" else ""
    path.write_text(needed + ("from_scratch: {}\ntraining: full\n" if folder == "sft" else "") + "sedd: 1\n")
    with pytest.raises(InputError, match="sedd: unknown key"):
        parse(folder, path)


def test_there_are_configs():
    assert {command_of(path) for path in OF_COMMANDS} == set(COMMANDS)
    recipes = {path.parent: set() for path in CONFIGS if path.parts[-3] == "recipes"}
    for path in CONFIGS:
        if path.parent in recipes:
            recipes[path.parent].add(path.stem)
    assert len(recipes) >= 5 and all(files == STAGES for files in recipes.values())


RECIPES = [path for path in sorted((ROOT / "configs" / "recipes").iterdir()) if path.is_dir()]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_whole_and_explained(recipe):
    """A file for every stage, whose head shows its own command, and values with their reasons beside them."""
    assert {path.name for path in recipe.iterdir()} == {f"{stage}.yaml" for stage in STAGES}
    for path in recipe.iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        own = f"--config {path.relative_to(ROOT).as_posix()} "
        command = next(line for line in lines if line.startswith("#") and own in line)
        launch = re.search(r"configs/accelerate/\w+[.]yaml", command)
        assert launch is None or (ROOT / launch.group()).is_file()
        values = [line for line in lines if line and not line.startswith("#") and not line.endswith(":")]
        assert not [line for line in values if "# " not in line]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_rl_asks_what_sft_left_to_it(recipe):
    assert cli.load_yaml(recipe / "sft.yaml")["hold_out_last"] is True
    assert {cli.load_yaml(recipe / f"{stage}.yaml")["positions"] for stage in ("grpo", "dpo")} == {"last"}
