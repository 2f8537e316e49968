"""Which package may import which, read from the source with ast: imports inside functions count as well."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["sid_builder", "prompts", "serve", "sft", "rl"]  # each may import those before it
FOR_TRAINING = ("serve.decoding", "serve.evaluation")  # all that sft and rl may import of serve
LEAVES = ("serve.vllm", "serve.http")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Dotted names a file imports; `from a.b import c` gives a.b.c, a module or a name in one."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; spell the package"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def lazy_paths(path: Path) -> set[str]:
    """Strings of the form `package.module:Thing`: registries and lazily parsed dataclasses."""
    constants = (
        node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)
    )
    texts = (text for text in constants if isinstance(text, str) and text.count(":") == 1 and " " not in text)
    return {text.replace(":", ".") for text in texts if text.split(".")[0] in LAYERS}


SOURCES = {module_name(path): path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))}
IMPORTS = {module: imports_of(path) | lazy_paths(path) for module, path in SOURCES.items()}


def under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_the_reader_sees_what_it_should():
    assert len(SOURCES) > 40
    assert "sid_builder.artifact.writing" in IMPORTS["sid_builder.sid_index"]
    assert "serve.decoding.tree_beam.decode" in IMPORTS["serve"]


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_run_one_way(layer):
    later = LAYERS[LAYERS.index(layer) + 1 :]
    for module, names in IMPORTS.items():
        if under(module, layer):
            wrong = [name for name in names if name.split(".")[0] in (*later, "tests", "benchmarks")]
            assert not wrong, f"{module} imports {wrong}"


@pytest.mark.parametrize("layer", ["sft", "rl"])
def test_training_borrows_only_decoding_and_evaluation(layer):
    for module, names in IMPORTS.items():
        if under(module, layer):
            of_serve = [name for name in names if under(name, "serve")]
            wrong = [name for name in of_serve if not any(under(name, allowed) for allowed in FOR_TRAINING)]
            assert not wrong, f"{module} imports {wrong}"


def test_vllm_and_http_are_leaves():
    """Nothing in `serve` but commands and they themselves import them; decoding and evaluation never do."""
    for module, names in IMPORTS.items():
        inside = [leaf for leaf in LEAVES if under(module, leaf)]
        for name in names:
            wrong = [leaf for leaf in LEAVES if under(name, leaf) and leaf not in inside]
            command = module.startswith("serve.") and module.count(".") == 1
            assert command or not wrong, f"{module} imports {name}"


@pytest.mark.parametrize(
    "packages, forbidden",
    [
        (FOR_TRAINING, ("vllm", "fastapi", "uvicorn", "openai", "trl")),
        (("serve",), ("trl",)),
        (("sid_builder", "prompts"), ("trl", "vllm", "fastapi")),
        (("sft", "rl"), ("vllm", "fastapi")),
    ],
)
def test_heavy_packages_stay_out(packages, forbidden):
    for module, names in IMPORTS.items():
        if any(under(module, package) for package in packages):
            wrong = [name for name in names if name.split(".")[0] in forbidden]
            assert not wrong, f"{module} imports {wrong}"


def test_decoding_and_evaluation_reach_neither_vllm_nor_http():
    """Followed through our own modules, so that no detour exists either."""
    reached, todo = set(), [module for module in SOURCES if any(under(module, p) for p in FOR_TRAINING)]
    while todo:
        module = todo.pop()
        if module in reached:
            continue
        reached.add(module)
        for name in IMPORTS[module]:
            parts = name.split(".")
            todo += [".".join(parts[:n]) for n in range(1, len(parts) + 1) if ".".join(parts[:n]) in SOURCES]
    assert not [module for module in reached if any(under(module, leaf) for leaf in LEAVES)]
    outside = {name.split(".")[0] for module in reached for name in IMPORTS[module]}
    assert not outside & {"vllm", "fastapi", "trl"}
