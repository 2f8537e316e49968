"""Several data sets under one codebook: their catalogues and interactions one after the other.

    source: combined
    source_args:
      parts:
        beauty: {source: jsonl, path: data/beauty}
        toys: {source: amazon, path: data/toys, args: {user_core: 5, item_core: 5}}

The catalogue's `domain` says which part an item is from. Each part keeps its own split. Keys of items (or of
users) get the part's name in front, `beauty/B0001`, if any of them occurs in two parts.

Legend: I interactions, S sequences.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sid_builder import cli
from sid_builder.catalog import SCHEMA, Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.registry import options_class, resolve
from sid_builder.sources import SourceData, standard_notes


@dataclass(frozen=True, kw_only=True)
class Part:
    """One data set: a source and its options."""

    source: str = field(metadata={"help": "A registered source or my.module:load."})
    path: str | None = field(default=None, metadata={"help": "What the source reads, if it reads files."})
    args: dict[str, Any] = field(default_factory=dict, metadata={"help": "Further options of the source."})


@dataclass(frozen=True, kw_only=True)
class CombinedArgs:
    """The data sets, in the order of the catalogue."""

    parts: dict[str, Part] = field(metadata={"help": "Domain -> {source, path, args}, at least two."})

    def check(self) -> None:
        """InputError, naming the part, for sources and options that are wrong before anything is read."""
        if len(self.parts) < 2:
            raise InputError(
                f"source_args.parts: {list(self.parts)}; give at least two, or use the source itself"
            )
        for domain, part in self.parts.items():
            if not isinstance(domain, str) or not domain or "/" in domain:
                raise InputError(f"source_args.parts: domain {domain!r}; give it a name without a slash")
            _options(domain, part)


def _options(domain: str, part: Part) -> Any:
    # Imported here: the registry is in the package that imports this one.
    from sid_builder import SOURCES

    label = f"source_args.parts.{domain}"
    options = options_class(resolve(SOURCES, part.source, f"{label}.source"))
    values = dict(part.args)
    if part.path is not None:
        if "path" in values:
            raise InputError(f"{label}.args.path: is given beside path; keep one of them")
        if not Path(part.path).exists():
            raise InputError(
                f"{label}.path: {part.path} does not exist; give the directory or file of the data"
            )
        values["path"] = part.path
    made = cli.build_dataclass(options, values, f"{label}.args")
    if hasattr(made, "check"):
        made.check()
    return made


def load(args: CombinedArgs) -> SourceData:
    """Read every part and put them together.

    Timestamps and features are kept where every part has them; the notes say whose were left out. SIDs the
    parts came with are left out as well: codes of different codebooks mean different things.

    Raises:
        InputError: as the parts' sources, with the part's name in front.
    """
    from sid_builder import SOURCES

    args.check()
    parts: dict[str, SourceData] = {}
    for domain, part in args.parts.items():
        try:
            parts[domain] = resolve(SOURCES, part.source, "source")(_options(domain, part))
        except InputError as error:
            raise InputError(f"part {domain!r}: {error}") from error
    catalogs = {domain: data.catalog for domain, data in parts.items()}
    logs = {domain: data.interactions for domain, data in parts.items()}
    item_ids, items_prefixed = _distinct({d: c.table.column("item_id") for d, c in catalogs.items()})
    users, users_prefixed = _distinct({d: pa.chunked_array([log.users]) for d, log in logs.items()})
    catalog = _joined_catalog(catalogs, item_ids)
    interactions = _joined_interactions(list(logs.values()), list(catalogs.values()), users)
    notes = standard_notes(catalog, interactions) | {
        "rows_dropped": sum(data.notes.get("rows_dropped", 0) for data in parts.values()),
        "item_ids_prefixed": items_prefixed,
        "users_prefixed": users_prefixed,
        "left_out": _left_out(parts, interactions),
        "domains": {domain: data.notes for domain, data in parts.items()},
    }
    files = {f"{d}/{name}": path for d, data in parts.items() for name, path in data.files.items()}
    return SourceData(catalog, interactions, files=files, notes=notes)


def _distinct(keys_of: dict[str, pa.ChunkedArray]) -> tuple[pa.ChunkedArray, bool]:
    """All keys one after the other, and whether parts' names had to be put in front to tell them apart."""
    distinct = [pc.unique(keys) for keys in keys_of.values()]
    if sum(map(len, distinct)) == len(pc.unique(pa.chunked_array(distinct))):
        return pa.chunked_array([chunk for keys in keys_of.values() for chunk in keys.chunks]), False
    named = [pc.binary_join_element_wise(domain, keys, "/") for domain, keys in keys_of.items()]
    return pa.chunked_array([chunk for keys in named for chunk in keys.chunks]), True


def _joined_catalog(catalogs: dict[str, Catalog], item_ids: pa.ChunkedArray) -> Catalog:
    """Columns of all parts: null for items whose part lacks it, text where parts have different types."""
    tables = []
    for domain, catalog in catalogs.items():
        own = catalog.table.column("domain").to_pylist()
        names = [f"{domain}/{inner}" if inner else domain for inner in own]
        position = catalog.table.schema.get_field_index("domain")
        tables.append(
            catalog.table.set_column(position, SCHEMA.field("domain"), pa.array(names, pa.string()))
        )
    for name in {name for table in tables for name in table.column_names}:
        kinds = {table.schema.field(name).type for table in tables if name in table.column_names}
        if len(kinds) > 1:
            tables = [_as_text(table, name) for table in tables]
    joined = pa.concat_tables(tables, promote_options="default")
    position = joined.schema.get_field_index("item_id")
    return Catalog(joined.set_column(position, SCHEMA.field("item_id"), item_ids))


def _as_text(table: pa.Table, name: str) -> pa.Table:
    if name not in table.column_names:
        return table
    values = [None if value is None else str(value) for value in table.column(name).to_pylist()]
    position = table.schema.get_field_index(name)
    return table.set_column(position, name, pa.array(values, pa.string()))


def _joined_interactions(
    logs: Sequence[Interactions], catalogs: Sequence[Catalog], users: pa.ChunkedArray
) -> Interactions:
    shifts = np.cumsum([0, *(catalog.num_items for catalog in catalogs[:-1])])
    bounds = [
        item.name for item in dataclasses.fields(Interactions) if item.name.endswith(("_lo_S", "_hi_S"))
    ]
    stamps = [log.timestamps_I for log in logs if log.timestamps_I is not None]
    shared = set.intersection(*(set(log.features_I) for log in logs))
    return Interactions(
        users=users.combine_chunks(),
        indptr_S1=np.concatenate([[0], np.cumsum(np.concatenate([np.diff(log.indptr_S1) for log in logs]))]),
        items_I=np.concatenate(
            [
                np.where(log.items_I < 0, -1, log.items_I + shift).astype(np.int32)
                for log, shift in zip(logs, shifts, strict=True)
            ]
        ),
        timestamps_I=np.concatenate(stamps) if len(stamps) == len(logs) else None,
        features_I={
            name: np.concatenate([log.features_I[name] for log in logs])
            for name in logs[0].features_I
            if name in shared
        },
        **{name: np.concatenate([getattr(log, name) for log in logs]) for name in bounds},
    )


def _left_out(parts: dict[str, SourceData], joined: Interactions) -> dict[str, list[str]]:
    """What some part has and the whole has not: name -> the parts that have it."""
    having: dict[str, list[str]] = {}
    for domain, data in parts.items():
        log = data.interactions
        names = [f"feature {name}" for name in log.features_I if name not in joined.features_I]
        if log.timestamps_I is not None and joined.timestamps_I is None:
            names.append("timestamps")
        if data.semantic_ids is not None:
            names.append("semantic_ids")
        for name in names:
            having.setdefault(name, []).append(domain)
    return having
