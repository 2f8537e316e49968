"""The strict parser: YAML sets defaults, flags override, anything else is an error that names the field."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from sid_builder import cli
from sid_builder.errors import InputError


@dataclass
class Inner:
    width: int = 4
    ratio: float = 0.5


@dataclass
class Arguments:
    name: str = field(metadata={"help": "A name."})
    rate: float = 1e-3
    steps: int = 10
    mode: Literal["fast", "exact"] = "fast"
    tags: list[str] = field(default_factory=list)
    limit: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    verbose: bool = False

    def check(self) -> None:
        if self.steps < 0:
            raise InputError(f"steps: {self.steps} is negative; give 0 or more")


def parse(argv, yaml_text=None, tmp_path=None):
    if yaml_text is not None:
        path = tmp_path / "config.yaml"
        path.write_text(yaml_text, encoding="utf-8")
        argv = ["--config", str(path), *argv]
    return cli.parse(Arguments, argv)[0]


def test_yaml_sets_defaults_and_flags_override(tmp_path):
    text = "name: a\nrate: 1e-4\nsteps: 3\ntags: [x, y]\noptions: {deep: {er: 1}}\n"
    args = parse(["--steps", "5", "--verbose", "true"], text, tmp_path)
    assert args == Arguments("a", 1e-4, 5, tags=["x", "y"], options={"deep": {"er": 1}}, verbose=True)


def test_mappings_may_be_given_as_json_flags():
    args = parse(["--name", "a", "--options", '{"k": [1, 2]}'])
    assert args.options == {"k": [1, 2]}


@pytest.mark.parametrize(
    ("yaml_text", "argv", "message"),
    [
        ("name: a\nstps: 3\n", [], "config: stps: unknown key; did you mean 'steps'?"),
        ("name: a\nname: b\n", [], "config: key 'name' appears twice (line 2); keep one of them"),
        ("name: a\nsteps: many\n", [], "steps: 'many' is not of type int"),
        ("name: a\nsteps: 2.5\n", [], "steps: 2.5 is not of type int"),
        ("name: a\nsteps: true\n", [], "steps: True is not of type int"),
        ("name: 3\n", [], "name: 3 is not of type str"),
        ("name: a\nmode: slow\n", [], "mode: 'slow' is not one of ['fast', 'exact']"),
        ("name: a\ntags: x\n", [], "tags: 'x' is not a list"),
        ("name: a\noptions: 3\n", [], "options: 3 is not a mapping"),
        ("- a\n- b\n", [], "holds a list, expected `key: value` lines"),
        ("name: [a\n", [], "is not valid YAML"),
        ("name: a\n", ["--stps", "3"], "--stps: unknown key; did you mean 'steps'?"),
        ("name: a\n", ["--steps", "x"], "argument --steps: invalid int value: 'x'"),
        ("name: a\n", ["--mode", "slow"], "argument --mode: invalid choice: 'slow'"),
        ("name: a\n", ["--steps", "-1"], "steps: -1 is negative"),
        ("{}\n", [], "the following arguments are required: --name"),
    ],
)
def test_what_is_wrong_is_named(yaml_text, argv, message, tmp_path):
    with pytest.raises(InputError) as caught:
        parse(argv, yaml_text, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_config_is_named(tmp_path):
    with pytest.raises(InputError, match=r"config: cannot read .*absent\.yaml.*give the path of a YAML file"):
        cli.parse(Arguments, ["--config", str(tmp_path / "absent.yaml")])
    with pytest.raises(InputError, match="--config: given twice"):
        cli.parse(Arguments, ["--config", "a", "--config=b"])


def test_dataclass_options_are_checked_key_by_key():
    assert cli.build_dataclass(Inner, {"ratio": "1e-2"}, "inner") == Inner(4, 0.01)
    with pytest.raises(InputError, match=r"inner\.widht: unknown key; did you mean 'width'\?"):
        cli.build_dataclass(Inner, {"widht": 3}, "inner")
    with pytest.raises(InputError, match=r"inner\.width: '3' is not of type int"):
        cli.build_dataclass(Inner, {"width": "3"}, "inner")


def test_the_process_border_prints_one_line_and_exits_non_zero(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["command", "--steps", "x"])
    with pytest.raises(SystemExit) as caught:
        cli.run(parse)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: argument --steps: invalid int value: 'x'; see --help\n"


def test_help_lists_every_field(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0 and "A name." in shown and "--config FILE" in shown


def test_help_shows_the_description_as_written(capsys):
    from sft import merge

    with pytest.raises(SystemExit) as ended:
        merge.main(["--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert "python -m sft.merge --adapter out/toy/sft --output_dir out/toy/model\n" in printed
    assert "model directory to write" in printed
