"""Train SASRec on a SID artefact's interactions: a baseline, and the model behind collaborative rewards.

    python -m sid_builder.train_sasrec --sid_dir out/beauty/sids --output_dir out/beauty/sasrec
    python -m sid_builder.train_sasrec ... --sasrec '{"dim": 128, "patience": null, "epochs": 20}'

Learns from train; valid chooses the epoch. Interrupted, the same command goes on: what it needs lies in
OUTPUT_DIR.work until the artefact (kind "sasrec") is written.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sid_builder import cli
from sid_builder.artifact import check_output, open_artifact
from sid_builder.collaborative import SASRecConfig
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex


@dataclass
class TrainSasrecArguments:
    """Arguments of `python -m sid_builder.train_sasrec`."""

    sid_dir: str = field(
        metadata={"help": "Artefact of sid_builder.build: its items and interactions are used."}
    )
    output_dir: str = field(metadata={"help": "Directory to write the artefact to."})
    sasrec: SASRecConfig = field(
        default_factory=SASRecConfig, metadata={"help": "Options of the model and its training, a mapping."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of initial weights, dropout and order."})
    overwrite: bool = field(
        default=False, metadata={"help": "Replace an artefact that is already at output_dir."}
    )

    def check(self) -> None:
        """InputError for an output that is in the way, a missing input or an impossible option."""
        check_output(Path(self.output_dir), self.overwrite)
        open_artifact(self.sid_dir, "sids")
        self.sasrec.check("sasrec")


def main(argv: Sequence[str]) -> None:
    """Train and write; InputError for wrong arguments or data without train cases."""
    (args,) = cli.parse(TrainSasrecArguments, argv, description=__doc__)
    sid_dir, output_dir = Path(args.sid_dir), Path(args.output_dir)
    catalog = SidIndex.load(sid_dir / "sid_index").catalog
    interactions = Interactions.load(sid_dir / "interactions")
    work_dir = output_dir.with_name(output_dir.name + ".work")

    # Imported here: torch takes seconds, arguments are checked before.
    from sid_builder.collaborative.sasrec_training import train_sasrec

    model, log = train_sasrec(interactions, catalog.num_items, args.sasrec, args.seed, work_dir)
    summary = {"epochs": len(log.epochs), "kept_epoch": log.kept_epoch, **log.kept}
    model.save(output_dir, catalog, {"sids": sid_dir}, {"seed": args.seed}, summary, args.overwrite)
    shutil.rmtree(work_dir)
    told = ", ".join(f"{key} {value:.4f}" for key, value in log.kept.items())
    print(f"train_sasrec: kept epoch {log.kept_epoch} of {len(log.epochs)} ({told}); wrote {output_dir}")


if __name__ == "__main__":
    cli.run(main)
