"""Registries are plain dicts `name -> "module:Thing"`; this resolves a name or any outside dotted path."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, get_type_hints

from sid_builder.errors import InputError


def resolve(registry: dict[str, str], name: str, field: str) -> Any:
    """Return the object registered under `name`, or the one a dotted path `my.module:Thing` points at.

    Args:
        registry: a room's dict of lazy dotted paths (`SOURCES`, `QUANTIZERS`, `TASKS`, `REWARDS`, `DECODERS`,
        ...). field: the configuration field the name came from, for the error message.

    Raises:
        InputError: if the name is neither registered nor an importable `module:attribute`.
    """
    target = registry.get(name, name)
    if ":" not in target:
        raise InputError(
            f"{field}: {name!r} is not known; use one of {sorted(registry)} or a path like my.module:Thing"
        )
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A registered module that lacks one of its own dependencies is a set-up problem, named as such.
        raise InputError(f"{field}: {name!r} needs module {error.name!r}, which is not installed") from error
    if not hasattr(module, attribute):
        raise InputError(
            f"{field}: module {module_name!r} has no attribute {attribute!r}; check the spelling of {name!r}"
        )
    return getattr(module, attribute)


def options_class(thing: Callable[..., Any]) -> type:
    """The dataclass annotated on the first parameter of a registered function or class: its options in YAML.

    Raises:
        InputError: if there is none, so the thing cannot be configured.
    """
    function = thing.__init__ if isinstance(thing, type) else thing  # type: ignore[misc]
    hints = [hint for name, hint in get_type_hints(function).items() if name != "return"]
    if not hints or not isinstance(hints[0], type) or not dataclasses.is_dataclass(hints[0]):
        raise InputError(
            f"{thing.__module__}:{thing.__qualname__}: annotate its first parameter with its options' class"
        )
    return hints[0]
