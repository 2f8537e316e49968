"""From names in `rewards:` to what TRL calls: rewards are found, their options checked, and built once.

A reward is a function `reward(completions)`, or a class (or factory) called as `Thing(options, index, train)`
that returns one; the annotation of `options` is the dataclass its `reward_args` are checked against. `index`
is the policy's SidIndex, `train` its interactions without anything of valid or test.
"""

import dataclasses
import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any, get_type_hints

from prompts.vocabulary import SidVocabulary
from rl import REWARDS
from rl.rewards.completions import BoundReward, Completions, Reward
from sid_builder import cli
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.registry import resolve
from sid_builder.sid_index import SidIndex

_OURS = (Completions, SidIndex, Interactions)  # dataclasses that are no options
_PASSED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_HIT_ALONE = {"rule", "beam_rank"}  # non-zero at the hit and nowhere else


def check_rewards(weights: Mapping[str, float], reward_args: Mapping[str, dict[str, Any]]) -> None:
    """InputError for unknown names, options that do not fit, and weights that reward nothing."""
    if not weights:
        raise InputError(f"rewards: empty; name at least one of {sorted(REWARDS)}")
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise InputError(
                f"rewards.{name}: {weight}; give a weight of at least 0 (rewards that punish are negative "
                "themselves)"
            )
        reward_options(name, reward_args.get(name, {}))
    if not any(weights.values()):
        raise InputError(f"rewards: every weight of {sorted(weights)} is 0; give one of them more")
    for name in reward_args:
        if name not in weights:
            raise InputError(
                f"reward_args.{name}: is not one of rewards {sorted(weights)}; add it or drop this"
            )


def reward_options(name: str, given: dict[str, Any]) -> Any:
    """The reward's options from their mapping, checked; None for a reward that takes none.

    Raises:
        InputError: for an unknown reward, an unknown or missing option, a wrong value.
    """
    field, options = f"reward_args.{name}", _options_class(name)
    if options is None:
        if given:
            raise InputError(f"{field}: {given} have no effect, this reward takes no options; drop them")
        return None
    made = cli.build_dataclass(options, given, field)
    if hasattr(made, "check"):
        made.check(field)
    return made


def build_reward(name: str, given: dict[str, Any], index: SidIndex, train: Interactions) -> Reward:
    """The function on completions behind a name; raises what `reward_options` and the reward itself do."""
    options, thing = reward_options(name, given), resolve(REWARDS, name, "rewards")
    return thing if options is None else thing(options, index, train)


def bound_rewards(
    weights: Mapping[str, float],
    reward_args: Mapping[str, dict[str, Any]],
    index: SidIndex,
    vocabulary: SidVocabulary,
    interactions: Interactions,
) -> list[BoundReward]:
    """TRL's `reward_funcs` in the order of `weights`; of `interactions` they get what is train's."""
    train, exclude_history = interactions.only_train(), not interactions.has_repeats
    return [
        BoundReward(
            name,
            build_reward(name, reward_args.get(name, {}), index, train),
            index,
            vocabulary,
            exclude_history,
        )
        for name in weights
    ]


def warn_of_lost_ranks(weights: Mapping[str, float], scale_rewards: str) -> None:
    """Warn of `beam_rank` without a reward of misses beside it, where scaling a group makes `rule` of it."""
    used = {name for name, weight in weights.items() if weight > 0}
    if "beam_rank" in used and used <= _HIT_ALONE and scale_rewards == "group":
        warnings.warn(
            "scale_rewards: group scales every group's one hit to the same advantage, so beam_rank teaches "
            "what rule does; set scale_rewards: batch or none",
            stacklevel=2,
        )


def _options_class(name: str) -> type | None:
    """The dataclass annotated on the reward's first parameter; None for a plain function of completions."""
    thing = resolve(REWARDS, name, "rewards")
    if not callable(thing):
        raise InputError(f"rewards: {name!r} is {thing!r}; name a function or a class")
    is_class, parameters = isinstance(thing, type), inspect.signature(thing).parameters
    holder = thing if inspect.isroutine(thing) else getattr(thing, "__init__" if is_class else "__call__")
    first = get_type_hints(holder).get(next(iter(parameters), ""))
    if isinstance(first, type) and dataclasses.is_dataclass(first) and first not in _OURS:
        return first
    required = [item for item in parameters.values() if item.default is item.empty and item.kind in _PASSED]
    if is_class or len(required) != 1:
        raise InputError(
            f"rewards: {name!r} is neither reward(completions) nor Thing(options, index, train) with a "
            "dataclass as the annotation of options"
        )
    return None
