"""Data sources: each turns what the user has into a catalogue, interactions and, where they exist, semantic
IDs.

A source is one function `load(args: Args) -> SourceData`; the YAML mapping `source_args` is checked against
the dataclass annotated on `args`. A source that reads files has a field `path`, which `--data_path` fills.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.semantic_ids import SemanticIds


@dataclass(frozen=True)
class SourceData:
    """What a source hands to the build command.

    `semantic_ids` are SIDs the data came with (taken over by `quantizer: given`). `files` are the inputs
    read, hashed into the manifest under these names. `notes` are figures and decisions recorded there (rows
    read, repeats kept, ...).
    """

    catalog: Catalog
    interactions: Interactions
    semantic_ids: SemanticIds | None = None
    files: dict[str, Path] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.interactions.check(self.catalog.num_items)
        if self.semantic_ids is not None and self.semantic_ids.num_items != self.catalog.num_items:
            raise InputError(
                f"source: {self.semantic_ids.num_items} semantic IDs for {self.catalog.num_items} items; "
                "give one per item"
            )


def standard_notes(catalog: Catalog, interactions: Interactions) -> dict[str, Any]:
    """Figures every source records: sizes, cases per split, whether repeats were kept."""
    return {
        "num_items": catalog.num_items,
        "num_sequences": interactions.num_sequences,
        "num_interactions": interactions.num_interactions,
        "train_cases": len(interactions.histories("train")),
        "valid_cases": len(interactions.histories("valid")),
        "test_cases": len(interactions.histories("test")),
        "items_without_title": sum(not title for title in catalog.titles),
        "has_repeats": interactions.has_repeats,
        "rows_dropped": 0,
    }


def read_text(path: Path, field_name: str) -> str:
    """UTF-8 content of a file; InputError names the field and path when it cannot be read."""
    try:
        # newline="" keeps line ends inside quoted CSV cells; "-sig" drops a byte order mark.
        with open(path, encoding="utf-8-sig", newline="") as handle:
            return handle.read()
    except OSError as error:
        raise InputError(f"{field_name}: cannot read {path} ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path.name}:{line}: is not UTF-8 (byte {error.start}); convert the file to UTF-8"
        ) from error
