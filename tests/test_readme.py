"""README.md: its chain is what `make demo` runs, and all that it and its siblings name exists."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def _commands(text: str) -> list[str]:
    """Every `-m package.module --flags` call in a text, continuation lines joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    return re.findall(r"(?:-m|\$\(RUN\)|\$\(LAUNCH\)) ((?:sid_builder|sft|rl|serve)\.\w+[^\n#>|&]*)", joined)


def _modules(text: str) -> list[str]:
    return [command.split()[0] for command in _commands(text)]


def test_the_chain_is_the_demo():
    chain = README.split("## The chain")[1].split("```bash")[1].split("```")[0]
    demo = MAKEFILE.split("\ndemo:")[1].split("\n\ntest:")[0]
    assert _modules(chain) == _modules(demo)
    assert {"sid_builder.build", "sft.train", "rl.train_grpo", "serve.launch"} <= set(_modules(chain))


@pytest.mark.parametrize("document", ["README.md", "BENCHMARKS.md", "CONTRIBUTING.md"])
def test_paths_named_in_a_document_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    paths = set(re.findall(r"\b(?:configs|benchmarks|tests)/[\w./]+\.(?:yaml|py)", text))
    assert not [path for path in sorted(paths) if not (ROOT / path).is_file()]


def test_every_module_is_in_the_tree():
    tree = README.split("## The tree")[1]
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files", "*.py"], capture_output=True, text=True)
    packages = ("sid_builder/", "prompts/", "serve/", "sft/", "rl/")
    files = [Path(name) for name in tracked.stdout.split() if name.startswith(packages)]
    assert files, "run from a git checkout"
    missing = [str(path) for path in files if path.name != "__init__.py" and path.name not in tree]
    assert not missing
