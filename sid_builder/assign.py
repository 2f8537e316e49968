"""A new version of a catalogue: items join, leave and come back, and nobody else's SID changes.

    python -m sid_builder.assign --sid_dir out/x/sids --add new_items.jsonl --output_dir out/x/sids_v2
    python -m sid_builder.assign --sid_dir out/x/sids_v2 --remove gone.txt --output_dir out/x/sids_v3

A new item is embedded and quantized as the others were and takes the free SID nearest to that: last code
first, then other prefixes. Its row follows the old ones, whose item_index stays. A removed item keeps its row
and its SID, so that histories can name it, but no decoder reaches it; `--restore` puts it back. Levels and
codebooks stay as they are, so the vocabulary of a model trained on one version spells all of them.

The artefact is one of `sid_builder.build`, with `versions.json`: what each version added, removed and
restored, and the hash of its parent's manifest. What its report says of the build (source, embedder, repair)
is the first version's.

Legend: A new items, N all items, D dimensions, L levels.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from sid_builder import cli
from sid_builder.artifact import (
    MANIFEST,
    Artifact,
    check_output,
    open_artifact,
    sha256_file,
    write_json,
    writing,
)
from sid_builder.build import KIND
from sid_builder.catalog import Catalog
from sid_builder.catalog_changes import CatalogChanges, read_changes
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.new_items import EMBEDDINGS_FILE, lengths_beyond, new_vectors, place, quantizer_of
from sid_builder.quantizers import load_quantizer
from sid_builder.sid_index import SidIndex

VERSIONS_FILE = "versions.json"
# Written anew for every version; all else is carried over as it is.
_REWRITTEN = ("sid_index", "report", VERSIONS_FILE, EMBEDDINGS_FILE, MANIFEST)


@dataclass
class AssignArguments:
    """Arguments of `python -m sid_builder.assign`."""

    sid_dir: str = field(
        metadata={"help": "The version to start from: an artefact of sid_builder.build or of this command."}
    )
    output_dir: str = field(metadata={"help": "Directory to write the new version to."})
    add: str | None = field(
        default=None,
        metadata={"help": "New items, one JSON object a line; keys are columns of the catalogue."},
    )
    embeddings: str | None = field(
        default=None,
        metadata={
            "help": "An .npy file with the vectors of the new items, in their order; default: the embedder "
            "of the build, if it is a model that encodes each item by itself."
        },
    )
    remove: str | None = field(
        default=None, metadata={"help": "Items to take off the shelf: a text file, one item_id a line."}
    )
    restore: str | None = field(
        default=None, metadata={"help": "Removed items to put back: a text file, one item_id a line."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace an artefact that is already at output_dir."}
    )

    def check(self) -> None:
        """Everything that can be known before work starts; InputError names the field."""
        open_artifact(self.sid_dir, KIND)
        if Path(self.output_dir).resolve() == Path(self.sid_dir).resolve():
            raise InputError(
                f"output_dir: {self.output_dir} is sid_dir; a new version needs its own directory"
            )
        check_output(Path(self.output_dir), self.overwrite)
        for name in ("add", "embeddings", "remove", "restore"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise InputError(f"{name}: {path} is no file; check the path")
        if not (self.add or self.remove or self.restore):
            raise InputError("add: nothing is to change; give --add, --remove or --restore")
        if self.embeddings and not self.add:
            raise InputError(f"embeddings: {self.embeddings} has no effect without --add; drop it")


def main(argv: Sequence[str]) -> SidIndex:
    """Write the new version; nothing is left at `output_dir` unless it ends well.

    Raises:
        InputError: for anything wrong with arguments, files, vectors, or a catalogue without room.
    """
    (args,) = cli.parse(AssignArguments, argv, description=__doc__)
    parent = open_artifact(args.sid_dir, KIND)
    index = SidIndex.load(parent.path / "sid_index")
    changes = read_changes(index, args.add, args.remove, args.restore)
    codes_AL = np.empty((0, index.semantic_ids.depth), dtype=np.int32)
    vectors_AD = None
    if args.add is not None and changes.added is not None:
        quantizer = quantizer_of(parent)
        # Pictures of new items lie beside the file that names them.
        data_dir = Path(args.add).resolve().parent
        vectors_AD = new_vectors(parent, changes.added, args.embeddings, data_dir)
        codes_AL = place(index.semantic_ids, quantizer, vectors_AD, lengths_beyond(parent))
    grown = _grown(index, changes, codes_AL)
    version = _write(args, parent, grown, changes, vectors_AD)
    print(
        f"version {version}: {grown.trie.num_live} of {grown.catalog.num_items} items on the shelf; "
        f"{changes.num_added} added, {len(changes.removed)} removed, {len(changes.restored)} restored\n"
        f"wrote {args.output_dir} (sid_index/, interactions/, report.json, report.html, {VERSIONS_FILE})"
    )
    return grown


def _grown(index: SidIndex, changes: CatalogChanges, codes_AL: np.ndarray) -> SidIndex:
    """The index of the new version: old rows as they were, new ones behind them."""
    removed_N = ~index.live_N
    removed_N[changes.removed] = True
    removed_N[changes.restored] = False
    catalog, ids, num_added = index.catalog, index.semantic_ids, changes.num_added
    if changes.added is not None:
        catalog = Catalog(pa.concat_tables([catalog.table, changes.added.table]))
        ids = dataclasses.replace(ids, codes_NL=np.concatenate([ids.codes_NL, codes_AL]))
    return SidIndex(
        catalog=catalog,
        semantic_ids=ids,
        train_counts_N=np.append(index.train_counts_N, np.zeros(num_added, dtype=np.int64)),
        removed_N=np.append(removed_N, np.zeros(num_added, dtype=bool)),
    )


def _write(
    args: AssignArguments,
    parent: Artifact,
    index: SidIndex,
    changes: CatalogChanges,
    vectors_AD: np.ndarray | None,
) -> int:
    """Write the artefact; returns its version."""
    from sid_builder.report import quality_report, write_report

    history_file = parent.path / VERSIONS_FILE
    history = json.loads(history_file.read_text(encoding="utf-8")) if history_file.is_file() else []
    ids, version = index.catalog.item_ids, len(history) + 2
    entry = {
        "version": version,
        "parent_sha256": sha256_file(parent.path / MANIFEST),
        "added": ids[len(ids) - changes.num_added :],
        "removed": [ids[item] for item in changes.removed],
        "restored": [ids[item] for item in changes.restored],
    }
    given = ("add", "embeddings", "remove", "restore")
    inputs = {"parent": parent.path} | {name: path for name in given if (path := getattr(args, name))}
    config = parent.config | {"assign": dataclasses.asdict(args)}
    with writing(
        args.output_dir, KIND, 1, config, inputs, parent.manifest["seeds"], args.overwrite
    ) as artifact:
        _carry_over(parent, artifact.path)
        embeddings_ND = _write_embeddings(parent, vectors_AD, artifact.path)
        index.save(artifact.path / "sid_index")
        write_json(artifact.path / VERSIONS_FILE, [*history, entry])
        has_quantizer = (artifact.path / "quantizer").is_dir()
        quantizer = load_quantizer(artifact.path / "quantizer") if has_quantizer else None
        interactions = Interactions.load(artifact.path / "interactions")
        # Over all rows: a removed item's SID is as taken as anybody's.
        report = quality_report(index.semantic_ids, interactions, index.catalog, embeddings_ND, quantizer)
        built = json.loads((parent.path / "report.json").read_text(encoding="utf-8"))
        report |= {key: built[key] for key in ("repair", "source", "embedder") if key in built}
        write_report(artifact.path, report, index.catalog, index.semantic_ids, embeddings_ND)
        artifact.summary.update(report["summary"])
        artifact.summary.update(
            source=built["source"],
            version=version,
            num_live=index.trie.num_live,
            num_added=changes.num_added,
            num_removed=len(changes.removed),
            num_restored=len(changes.restored),
        )
    return version


def _carry_over(parent: Artifact, directory: Path) -> None:
    for name in parent.manifest["files"]:
        if not name.startswith(_REWRITTEN):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(parent.path / name, directory / name)


def _write_embeddings(parent: Artifact, vectors_AD: np.ndarray | None, directory: Path) -> np.ndarray | None:
    """The old rows and the new ones, as a memory map of the file written; None where there are no vectors."""
    from sid_builder.embedders import row_blocks

    if not (parent.path / EMBEDDINGS_FILE).is_file():
        return None
    old_ND = np.load(parent.path / EMBEDDINGS_FILE, mmap_mode="r", allow_pickle=False)
    vectors_AD = np.empty((0, old_ND.shape[1]), old_ND.dtype) if vectors_AD is None else vectors_AD
    shape = (len(old_ND) + len(vectors_AD), old_ND.shape[1])
    all_ND = np.lib.format.open_memmap(directory / EMBEDDINGS_FILE, "w+", old_ND.dtype, shape)
    for low, block in row_blocks(old_ND):
        all_ND[low : low + len(block)] = block
    all_ND[len(old_ND) :] = vectors_AD
    all_ND.flush()
    return all_ND


if __name__ == "__main__":
    cli.run(main)
