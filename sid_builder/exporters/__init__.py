"""Exporters write a built catalogue and its interactions in a peer's layout, so that its code runs on our
SIDs.

An exporter is one function `write(data: ExportData, directory: Path) -> Exported`. What it writes is read
back by the source of the same name; what the layout has no place for, it says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class ExportData:
    """What there is to export.

    `name` begins the names of the files; `max_history` None: the layout's own; `source_notes` is what the
    source of the SIDs noted when they were built.
    """

    index: SidIndex
    interactions: Interactions
    name: str
    max_history: int | None = None
    source_notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """What was written, in figures, and what the layout could not carry or had to change, a sentence each."""

    figures: dict[str, int]
    remarks: list[str]


class Exporter(Protocol):
    """What `python -m sid_builder.export` relies on."""

    def __call__(self, data: ExportData, directory: Path) -> Exported:
        """Write into an empty directory; InputError for data that the layout cannot say truthfully."""
