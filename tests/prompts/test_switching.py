"""docs/switching.md: its pack gives the bytes it shows, and the tasks, fields and commands it names exist."""

import ast
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from prompts.intents import Intents
from prompts.pack import PromptPack
from prompts.show import ShowArguments
from prompts.template import PromptTemplate
from serve.evaluate import EvaluateArguments
from sft import TASKS
from sft.arguments import SftArguments, check_weights
from sid_builder.catalog import Catalog
from tests.builders import make_index, make_tokenizer

TEXT = (Path(__file__).parents[2] / "docs" / "switching.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> PromptTemplate:
    index = make_index(np.array([[3, 1, 4], [1, 5, 2], [0, 2, 6]]), (8, 8, 8))
    tokenizer = make_tokenizer(index)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    path = tmp_path_factory.mktemp("pack") / "my_pack.yaml"
    (pack,) = [block for block in blocks("yaml") if "chat_template" in block]
    path.write_text(pack, encoding="utf-8")
    return PromptTemplate(PromptPack.load(path), tokenizer, index)


def test_the_pack_gives_the_bytes_shown(template):
    prompt, answer = blocks("text")[0].strip().splitlines()
    rendered = template.render("seqrec", 2, [0, 1])
    assert template.tokenizer.decode(rendered.prompt_ids) == ast.literal_eval(prompt)
    assert template.tokenizer.decode(rendered.completion_ids) == ast.literal_eval(answer)
    assert template.seqrec_prompt([0, 1]) == rendered.prompt_ids


def test_the_mixtures_are_read_by_sft_train():
    names = {field.name for field in dataclasses.fields(SftArguments)}
    mixtures = [yaml.safe_load(block) for block in blocks("yaml") if "task_weights" in block]
    assert len(mixtures) == 2
    for mixture in mixtures:
        assert set(mixture) <= names
        check_weights(mixture["task_weights"])


def test_every_task_is_named():
    rows = [line.split("|") for line in TEXT.splitlines() if line.startswith("| `")]
    named = {task for row in rows[:13] for task in re.findall(r"`(\w+)`", row[2]) if task != "intents"}
    assert named | {"query2sid"} == set(TASKS) and "`query2sid`" in TEXT


def test_the_intents_are_read(tmp_path):
    (lines,) = blocks("json")
    catalog = Catalog.from_rows([{"item_id": item} for item in sorted(set(re.findall(r"P\d{4}", lines)))])
    path = tmp_path / "intents.jsonl"
    path.write_text(lines, encoding="utf-8")
    kinds = [intent.kind for intent in Intents.load(path, catalog)]
    assert kinds == ["query", "intention", "preference"]


def test_commands_and_pack_fields_exist():
    flags = {"prompts.show": ShowArguments, "serve.evaluate": EvaluateArguments}
    commands = re.findall(r"python -m ([\w.]+) ([^\n#]*)", "\n".join(blocks("bash")))
    for module, arguments in flags.items():
        given = {flag for name, rest in commands if name == module for flag in re.findall(r"--(\w+)", rest)}
        assert given and given <= {field.name for field in dataclasses.fields(arguments)}
    section = TEXT.split("| bytes | go to |")[1].split("Four traps")[0]
    fields = {field.name for field in dataclasses.fields(PromptPack)}
    named = set(re.findall(r"`(\w+_\w+)[`:]", section)) - {"token_pattern"}
    assert named <= fields and len(named) > 8
