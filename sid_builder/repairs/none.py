"""Items that share a semantic ID go on sharing it."""

from dataclasses import dataclass

from sid_builder.repairs import Repaired, RepairInput, RepairStats


@dataclass(frozen=True)
class NoneOptions:
    """There are none."""


def repair(options: NoneOptions, given: RepairInput) -> Repaired:
    """The codes as they are."""
    return Repaired(given.codes_NL, given.level_sizes, RepairStats("none"))
