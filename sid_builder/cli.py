"""Command lines of every command: dataclasses + YAML, strictly checked.

`--config file.yaml` sets defaults, flags override them. Unknown or duplicate keys, wrong types and values
outside the choices are errors (TRL's own parser lets them pass). Commands that use TRL's configuration
classes name them lazily, so that our own arguments are checked before anything heavy is imported.
"""

import argparse
import contextlib
import dataclasses
import difflib
import enum
import importlib
import inspect
import json
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml

from sid_builder.errors import InputError


class _UniqueKeyLoader(yaml.SafeLoader):
    pass


def _mapping_without_duplicates(loader: yaml.SafeLoader, node: yaml.MappingNode, deep: bool = False) -> dict:
    seen: set = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            line = key_node.start_mark.line + 1
            raise InputError(f"config: key {key!r} appears twice (line {line}); keep one of them")
        seen.add(key)
    return loader.construct_mapping(node, deep)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)
# `since: 2016-10-01` stays the text it is: a date object would be of no type a field has.
_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: node.value)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping; duplicate keys, unreadable files and other shapes raise InputError."""
    try:
        with open(path, encoding="utf-8") as handle:
            content = yaml.load(handle, Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config: cannot read {path} ({error}); give the path of a YAML file") from error
    except yaml.YAMLError as error:
        first = " ".join(str(error).split())
        raise InputError(f"config: {path} is not valid YAML ({first})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"config: {path} holds a {type(content).__name__}, expected `key: value` lines")
    return content


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", str(annotation).replace("typing.", ""))


def check_value(field: str, annotation: Any, value: Any) -> Any:
    """Return `value` converted to `annotation`, or raise InputError naming the field, the value and the type
    wanted.

    Numbers written as strings ("1e-4", which YAML reads as a string) become floats; nothing else is
    converted. Mappings annotated with a dataclass are checked key by key and returned as that dataclass.
    """
    origin = get_origin(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        members = get_args(annotation)
        enums = [member for member in members if isinstance(member, type) and issubclass(member, enum.Enum)]
        if enums and isinstance(value, str):
            return check_value(field, enums[0], value)
        for member in sorted(members, key=lambda member: member is str):
            try:
                return check_value(field, member, value)
            except InputError:
                if (
                    len([m for m in members if m is not type(None)]) == 1
                    and member is not type(None)
                    and value is not None
                ):
                    raise
        raise InputError(f"{field}: {value!r} is not of type {' | '.join(map(_name, members))}")
    if origin is Literal:
        if value not in get_args(annotation):
            raise InputError(f"{field}: {value!r} is not one of {list(get_args(annotation))}")
        return value
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        choices = [member.value for member in annotation]
        if value not in choices:
            raise InputError(f"{field}: {value!r} is not one of {choices}")
        return value
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return build_dataclass(annotation, value, field)
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{field}: {value!r} is not a list")
        inner = get_args(annotation)[0] if get_args(annotation) else Any
        return [check_value(f"{field}[{i}]", inner, item) for i, item in enumerate(value)]
    if origin is dict or annotation is dict:
        if not isinstance(value, dict):
            raise InputError(f"{field}: {value!r} is not a mapping")
        inner = get_args(annotation)[1] if get_args(annotation) else Any
        return {key: check_value(f"{field}.{key}", inner, item) for key, item in value.items()}
    if annotation is float and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            return float(value)
    elif isinstance(annotation, type) and isinstance(value, annotation):
        # bool is a subclass of int, and `steps: true` is a mistake.
        mistaken = isinstance(value, bool) and annotation is not bool
        if not mistaken:
            return value
    raise InputError(f"{field}: {value!r} is not of type {_name(annotation)}")


def build_dataclass(cls: type, value: Any, field: str) -> Any:
    """Build `cls` from a mapping, with unknown keys, wrong types and missing keys named as `field.key`."""
    if isinstance(value, cls):
        return value
    if not isinstance(value, dict):
        raise InputError(f"{field}: {value!r} is not a mapping")
    hints = get_type_hints(cls)
    names = [item.name for item in dataclasses.fields(cls) if item.init]
    unknown_key(value, names, field + ".")
    for item in dataclasses.fields(cls):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and item.init and item.name not in value:
            raise InputError(f"{field}.{item.name}: is missing; add it")
    return cls(**{key: check_value(f"{field}.{key}", hints[key], item) for key, item in value.items()})


def unknown_key(keys: Any, known: Sequence[str], prefix: str = "") -> None:
    """Raise InputError for the first key that is not known, with the nearest spelling."""
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known)[:40])}"
            raise InputError(f"{prefix}{key}: unknown key; {hint}")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it was written, defaults beside every flag."""


def _command_name() -> str | None:
    """`python -m package.module` when that is how the process was started."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"python -m {spec.name}" if spec is not None and spec.name != "pytest.__main__" else None


def _parser_class() -> type:
    from transformers import HfArgumentParser

    class StrictParser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(f"{message}; see --help")

    return StrictParser


def _is_mapping(annotation: Any) -> bool:
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return any(m is dict or get_origin(m) is dict or dataclasses.is_dataclass(m) for m in members)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse(
    own: type,
    argv: Sequence[str],
    lazy: Sequence[str] = (),
    description: str | None = None,
    own_defaults: dict[str, Any] | None = None,
) -> tuple[Any, ...]:
    """Parse `argv` (flags, and `--config file.yaml`) into `own` and then the `lazy` dataclasses.

    Args:
        own: this command's dataclass; a method `check(self)` is called before anything lazy is imported, and
            `lazy_defaults(self)` may give defaults for lazy fields that follow from its own.
        lazy: further dataclasses as `module:Class` (TRL's configs); imported after `own` has been checked.
        own_defaults: defaults of ours for lazy fields, between the class's and the YAML's.

    Returns:
        One instance per class, `own` first.

    Raises:
        InputError: naming the flag or key, the value and the fix.
    """
    argv = list(argv)
    config_path, rest = _take_config(argv)
    values = load_yaml(config_path) if config_path else {}
    helping = any(flag in rest for flag in ("-h", "--help"))
    defaults = dict(own_defaults or {})
    if lazy and not helping:
        (first,) = _parse([own], [], values, rest, description, strict=False)
        if hasattr(first, "check"):
            first.check()
        if hasattr(first, "lazy_defaults"):
            defaults |= first.lazy_defaults()
    classes = [
        own,
        *(getattr(importlib.import_module(m), c) for m, _, c in (path.partition(":") for path in lazy)),
    ]
    parsed = _parse(classes, defaults, values, rest, description, strict=True)
    if hasattr(parsed[0], "check"):
        parsed[0].check()
    return parsed


def _take_config(argv: list[str]) -> tuple[str | None, list[str]]:
    rest, path = [], None
    index = 0
    while index < len(argv):
        flag = argv[index]
        if flag == "--config" or flag.startswith("--config="):
            if path is not None:
                raise InputError("--config: given twice; give one YAML file")
            if "=" in flag:
                path = flag.partition("=")[2]
            elif index + 1 < len(argv):
                index += 1
                path = argv[index]
            else:
                raise InputError("--config: needs the path of a YAML file")
        else:
            rest.append(flag)
        index += 1
    return path, rest


def _parse(
    classes: list[type],
    own_defaults: Any,
    values: dict,
    argv: list[str],
    description: str | None,
    strict: bool,
) -> tuple[Any, ...]:
    parser = _parser_class()(
        classes,
        prog=_command_name(),
        description=inspect.cleandoc(description or ""),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of defaults; flags override it")
    hints: dict[str, Any] = {}
    for cls in classes:
        hints.update({key: hint for key, hint in get_type_hints(cls).items() if not key.startswith("_")})
    known = [action.dest for action in parser._actions]
    if strict:
        unknown_key(values, known, "config: ")
    defaults = dict(own_defaults)
    for key, value in values.items():
        if key in hints:
            defaults[key] = check_value(key, hints[key], value)
    for action in parser._actions:
        if action.dest in defaults:
            action.required = False
        if action.dest in hints and _is_mapping(hints[action.dest]):
            action.type, action.nargs = _json_or_text, None
    parser.set_defaults(**defaults)
    namespace, unknown = parser.parse_known_args(argv)
    if unknown and strict:
        unknown_key([flag.lstrip("-").partition("=")[0] for flag in unknown], known, "--")
    given = vars(namespace)
    results = []
    for cls in classes:
        fields = {field.name for field in dataclasses.fields(cls) if field.init}
        kwargs = {key: given[key] for key in fields if key in given}
        own_hints = get_type_hints(cls)
        for key, value in kwargs.items():
            if _is_mapping(own_hints[key]) and isinstance(value, (dict, str)):
                kwargs[key] = check_value(key, own_hints[key], value)
        try:
            results.append(cls(**kwargs))
        except InputError:
            raise
        except ValueError as error:  # TRL's and transformers' configurations check themselves
            raise InputError(f"{cls.__name__}: {' '.join(str(error).split())}") from error
    return tuple(results)


def changed_fields(config: Any) -> dict[str, Any]:
    """Fields of a configuration dataclass that differ from its class's defaults: what a manifest records of
    it.
    """
    plain = {field.name: field.default for field in dataclasses.fields(config)}
    return {key: value for key, value in vars(config).items() if key in plain and value != plain[key]}


def run(main: Callable[[Sequence[str]], Any]) -> NoReturn:
    """Process border of a command: an InputError becomes one line on stderr and exit status 2."""
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
