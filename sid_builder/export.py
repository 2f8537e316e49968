"""Write a built SID directory in a peer's layout, so that its code runs on our catalogue, SIDs and split.

    python -m sid_builder.export --sid_dir out/toy/sids --format minionerec --output_dir out/toy/minionerec

The directory appears whole or not at all. A `manifest.json` of ours lies at its top, where the peers' code
never looks; it says what was exported from where, and what the layout could not carry.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sid_builder import EXPORTERS, cli
from sid_builder.artifact import check_output, open_artifact, writing
from sid_builder.errors import InputError
from sid_builder.exporters import ExportData, Exported, Exporter
from sid_builder.interactions import Interactions
from sid_builder.registry import resolve
from sid_builder.sid_index import SidIndex

KIND = "export"


@dataclass
class ExportArguments:
    """Arguments of `python -m sid_builder.export`."""

    sid_dir: str = field(metadata={"help": "What `python -m sid_builder.build` wrote."})
    format: str = field(metadata={"help": f"The layout: one of {sorted(EXPORTERS)} or my.module:write."})
    output_dir: str = field(metadata={"help": "Directory to write the layout to."})
    name: str | None = field(
        default=None,
        metadata={
            "help": "What file names begin with; default: the category the data came with, or its source."
        },
    )
    max_history: int | None = field(
        default=None,
        metadata={"help": "Newest items of a history that a row of minionerec has; default: 10, as theirs."},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace an export that is already at output_dir."}
    )

    def check(self) -> None:
        """Everything that can be known before files are read; InputError names the field."""
        check_output(Path(self.output_dir), self.overwrite)
        resolve(EXPORTERS, self.format, "format")
        if self.name is not None and not re.fullmatch(r"\w[\w.-]*", self.name):
            raise InputError(
                f"name: {self.name!r}; file names begin with it, so use letters, digits, _ . and -"
            )
        if self.max_history is not None and self.max_history < 1:
            raise InputError(f"max_history: {self.max_history}; give at least 1")


def main(argv: Sequence[str]) -> Exported:
    """Run the export; nothing is left at `output_dir` unless it ends well.

    Raises:
        InputError: for anything wrong with the arguments, or data the layout cannot say truthfully.
    """
    (args,) = cli.parse(ExportArguments, argv, description=__doc__)
    exporter: Exporter = resolve(EXPORTERS, args.format, "format")
    sids = open_artifact(args.sid_dir, "sids")
    source = sids.summary["source"]
    data = ExportData(
        index=SidIndex.load(sids.path / "sid_index"),
        interactions=Interactions.load(sids.path / "interactions"),
        name=args.name or source.get("category") or source["name"],
        max_history=args.max_history,
        source_notes=source,
    )
    config, inputs = dataclasses.asdict(args), dict[str, str | Path](sids=sids.path)
    with writing(args.output_dir, KIND, 1, config, inputs, overwrite=args.overwrite) as artifact:
        exported = exporter(data, artifact.path)
        artifact.summary.update(dataclasses.asdict(exported))
    print(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in exported.figures.items()))
    for remark in exported.remarks:
        print(f"- {remark}")
    print(f"wrote {args.output_dir} ({args.format}'s layout of {data.name})")
    return exported


if __name__ == "__main__":
    cli.run(main)
