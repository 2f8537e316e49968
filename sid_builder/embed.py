"""Embed items and nothing else, on as many GPUs and nodes as the launcher starts: the first half of a build.

    accelerate launch -m sid_builder.embed --config configs/sid/x.yaml --output_dir out/x/embeddings
    python -m sid_builder.build --config configs/sid/x.yaml --output_dir out/x/sids \\
        --embedder precomputed --embedder_args '{"file": "out/x/embeddings"}'

It takes the build's arguments; those after the embedder play no part. All processes share one file
system: they write what they encode to the embedder's cache, from which the main one puts the matrix
together, so an interrupted run goes on where it was. The artefact (kind "embeddings") holds
`embeddings.npy`, float32 [N, d], and `item_ids.parquet`, the item_id of every row.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from sid_builder import EMBEDDERS, SOURCES, cli
from sid_builder.artifact import writing
from sid_builder.build_arguments import BuildArguments
from sid_builder.embedding_store import save_matrix
from sid_builder.errors import InputError
from sid_builder.processes import Processes
from sid_builder.registry import resolve
from sid_builder.sources import SourceData


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Write the artefact; returns its summary.

    Raises:
        InputError: for anything wrong with arguments, data or embeddings.
    """
    (args,) = cli.parse(BuildArguments, argv, description=__doc__)
    embedder = args.made_embedder()
    if embedder is None:
        raise InputError(f"embedder: is not set; use one of {sorted(EMBEDDERS)}")
    processes = Processes.current()
    processes.wait()  # everybody has checked output_dir before the first one writes it
    source: SourceData = resolve(SOURCES, args.source, "source")(args.parsed_source_args())

    from sid_builder.embedders import ItemData, embed_items

    items = ItemData(source.catalog, source.interactions, args.text_template, args.data_dir, args.work_dir)
    embeddings_ND, notes = embed_items(embedder, items, str(args.embedder))
    summary = {"num_items": source.catalog.num_items, **notes}
    if processes.is_main:
        _write(args, source, embeddings_ND, summary)
        shown = ", ".join(f"{name} {value}" for name, value in summary.items())
        print(f"{shown}\nwrote {args.output_dir}")
    return summary


def _write(
    args: BuildArguments,
    source: SourceData,
    embeddings_ND: np.ndarray,
    summary: dict[str, Any],
) -> None:
    from sid_builder.embedders.precomputed import ITEM_IDS_FILE, KIND, MATRIX_FILE

    config, inputs = dataclasses.asdict(args), dict[str, str | Path](source.files)
    with writing(args.output_dir, KIND, 1, config, inputs, {"seed": args.seed}, args.overwrite) as artifact:
        save_matrix(embeddings_ND, artifact.path / MATRIX_FILE, args.work_dir)
        pq.write_table(source.catalog.table.select(["item_id"]), artifact.path / ITEM_IDS_FILE)
        artifact.summary.update(summary)
    shutil.rmtree(args.work_dir, ignore_errors=True)


if __name__ == "__main__":
    cli.run(main)
