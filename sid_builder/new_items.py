"""Vectors and semantic IDs for items that join a catalogue whose SIDs were made before.

Legend: A new items, D dimensions, L levels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sid_builder import EMBEDDERS, cli
from sid_builder.artifact import Artifact
from sid_builder.catalog import Catalog
from sid_builder.code_distances import CodeDistances
from sid_builder.errors import InputError
from sid_builder.free_sids import Codes, FreeSids
from sid_builder.interactions import Interactions
from sid_builder.quantizers import Quantizer, load_quantizer
from sid_builder.registry import options_class, resolve
from sid_builder.semantic_ids import SemanticIds

EMBEDDINGS_FILE = "embeddings.npy"


def place(
    sids: SemanticIds, quantizer: Quantizer, vectors_AD: np.ndarray, lengths_beyond: Sequence[int]
) -> np.ndarray:
    """SIDs int32 [A, L] of new items, in their order: each takes the nearest that is free then.

    Args:
        lengths_beyond: by how many codes an SID may be longer than the quantizer's: 1 for a running index.

    Raises:
        InputError: when no SID is free for an item.
    """
    wanted_AL = quantizer.encode(vectors_AD)
    distances = CodeDistances(quantizer, vectors_AD)
    free = FreeSids(sids.codes_NL, sids.level_sizes)
    codes_AL = np.full((len(vectors_AD), sids.depth), -1, dtype=np.int32)
    for row in tqdm(range(len(vectors_AD)), desc="placing new items", unit="item"):
        wanted = tuple(code for code in wanted_AL[row].tolist() if code >= 0)

        def nearest_first(prefix: Codes, row: int = row, end: int = len(wanted)) -> np.ndarray:
            if len(prefix) == end:  # a running index is no nearer to an item than another
                return np.arange(sids.level_sizes[end])
            return np.argsort(distances(np.array([row]), prefix)[0], kind="stable")

        sid = free.nearest(wanted, [len(wanted) + beyond for beyond in lengths_beyond], nearest_first)
        if sid is None:
            raise InputError(
                f"add: no SID is left for new item {row + 1} of {len(vectors_AD)}: levels of "
                f"{list(sids.level_sizes)} codes are full (a removed item keeps its SID); build anew with "
                "more levels or codes, or with more repair_args.extra_codes"
            )
        free.take(sid)
        codes_AL[row, : len(sid)] = sid
    return codes_AL


def lengths_beyond(parent: Artifact) -> tuple[int, ...]:
    """How many codes the build's repair put behind the quantizer's."""
    if parent.config["repair"] != "append_token":
        return (0,)
    return (0, 1) if parent.config.get("repair_args", {}).get("only_colliding") else (1,)


def quantizer_of(parent: Artifact) -> Quantizer:
    directory = parent.path / "quantizer"
    if not directory.is_dir():
        raise InputError(
            f"sid_dir: {parent.path} holds no quantizer/, its SIDs were given, so new items get none; build "
            "with a quantizer (--remove and --restore work without)"
        )
    return load_quantizer(directory)


def new_vectors(parent: Artifact, added: Catalog, file: str | None, data_dir: Path) -> np.ndarray:
    """Float32 [A, D] of the new items: from an .npy file, or by the embedder of the build.

    Args:
        data_dir: where relative paths of pictures start from.

    Raises:
        InputError: when that embedder cannot encode new items, and for vectors unlike the old ones.
    """
    if file is not None:
        vectors_AD, source = _read_vectors(Path(file)), f"embeddings: {file}"
    else:
        vectors_AD, source = _embed(parent, added, data_dir), f"embedder: {parent.config['embedder']!r}"
    dim = np.load(parent.path / EMBEDDINGS_FILE, mmap_mode="r", allow_pickle=False).shape[1]
    if vectors_AD.shape != (added.num_items, dim):
        raise InputError(
            f"{source} has shape {vectors_AD.shape}; {added.num_items} new items need "
            f"({added.num_items}, {dim}), as the old ones have"
        )
    bad = ~np.isfinite(vectors_AD).all(axis=1)
    if bad.any():
        item_id = added.item_ids[int(np.argmax(bad))]
        raise InputError(f"{source} has NaN or infinite values for item_id {item_id!r}; repair that vector")
    return np.ascontiguousarray(vectors_AD, dtype=np.float32)


def _read_vectors(path: Path) -> np.ndarray:
    try:
        vectors_AD = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"embeddings: {path} is no readable .npy file ({error})") from error
    if not isinstance(vectors_AD, np.ndarray) or vectors_AD.dtype.kind not in "fiu" or vectors_AD.ndim != 2:
        raise InputError(f"embeddings: {path} is no matrix of numbers; save float32 [new items, d]")
    return vectors_AD


def _embed(parent: Artifact, added: Catalog, data_dir: Path) -> np.ndarray:
    from sid_builder.embedders import ItemData

    name = parent.config["embedder"]
    if name is None:
        raise InputError(
            "embedder: the build had none; give the vectors of the new items with --embeddings new.npy"
        )
    made = resolve(EMBEDDERS, name, "embedder")
    # What goes through the embedding store is a function of an item's content; others learn from all items.
    if not hasattr(made, "encode_batches"):
        raise InputError(
            f"embedder: {name!r} is fitted on the items it encodes, so new ones have no vectors in its "
            "space; give them with --embeddings new.npy"
        )
    options = cli.build_dataclass(options_class(made), parent.config["embedder_args"], "embedder_args")
    embedder = made(options, parent.config["seed"])
    interactions = Interactions.load(parent.path / "interactions")
    return embedder.encode(ItemData(added, interactions, parent.config["text_template"], data_dir))
