"""Amazon reviews and metadata as they are published: 2014, 2018 and 2023, `.json.gz` or `.jsonl.gz` or plain.

A review is an interaction with its rating (and whether the purchase was verified); its text is not read. Both
files are streamed: reviews go into columns, then metadata is kept for the items that may be left.
https://cseweb.ucsd.edu/~jmcauley/datasets.html, https://amazon-reviews-2023.github.io
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.event_log import EventLog, LogBuilder
from sid_builder.events import EventOptions, narrow, prepare
from sid_builder.sources import SourceData, standard_notes
from sid_builder.sources.amazon_metadata import (
    FURTHER_COLUMNS,
    MetadataCounts,
    metadata_rows,
    parse_json_or_literal,
)
from sid_builder.sources.lines import BadLines, LineOptions, json_lines, line_blocks, objects_in

ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


class Release(NamedTuple):
    """Keys of a review line."""

    user: str
    item: str
    time: str
    rating: str
    verified: str | None
    ticks_a_second: int


RELEASES = {
    2014: Release("reviewerID", "asin", "unixReviewTime", "overall", None, 1),
    2018: Release("reviewerID", "asin", "unixReviewTime", "overall", "verified", 1),
    2023: Release("user_id", "parent_asin", "timestamp", "rating", "verified_purchase", 1000),
}


@dataclass(frozen=True, kw_only=True)
class AmazonArgs(EventOptions, LineOptions):
    """Which two files, and what of them is kept."""

    path: str = field(metadata={"help": "Directory that holds the reviews and the metadata file."})
    reviews_file: str | None = field(
        default=None, metadata={"help": "Name of the reviews file; default: the only one there."}
    )
    metadata_file: str | None = field(
        default=None, metadata={"help": "Name of the metadata file; default: the only meta_* there."}
    )
    release: Literal["auto", 2014, 2018, 2023] = field(
        default="auto", metadata={"help": "Year of the files' format; auto: by the keys of the first review."}
    )
    require_title: bool = field(
        default=False,
        metadata={"help": "Treat an item without a readable title as one without metadata."},
    )


def load(args: AmazonArgs) -> SourceData:
    """Read reviews, then metadata; the catalogue is in the metadata's order.

    Raises:
        InputError: naming file and line of what is malformed, or the option that leaves nothing.
    """
    args.check()
    directory = Path(args.path)
    files = {
        "reviews": _file(directory, args.reviews_file, "reviews_file", metadata=False),
        "metadata": _file(directory, args.metadata_file, "metadata_file", metadata=True),
    }
    bad_reviews, bad_metadata = BadLines(args.bad_lines), BadLines(args.bad_lines)
    release = _release(files["reviews"], args)
    log = read_reviews(files["reviews"], RELEASES[release], bad_reviews)
    narrowed, dropped = narrow(log, args)
    del log
    # Metadata can be larger than reviews: texts of items that are out already are not kept.
    touched = np.flatnonzero(np.bincount(narrowed.item_I))
    wanted = set(narrowed.items.take(pa.array(touched)).to_pylist())
    counts = MetadataCounts()
    catalog = Catalog.from_stream(
        metadata_rows(files["metadata"], wanted, bad_metadata, counts), FURTHER_COLUMNS
    )
    untitled = 0
    if args.require_title:
        titled = pc.not_equal(catalog.table.column("title"), "")
        untitled = catalog.num_items - pc.sum(titled).as_py()
        catalog = Catalog(catalog.table.filter(titled))
    ids = catalog.table.column("item_id").combine_chunks()
    prepared = prepare(narrowed, ids, args, {"malformed_line": bad_reviews.count} | dropped)
    del narrowed
    catalog = catalog.select(prepared.item_rows_N, prepared.item_ids)
    notes = standard_notes(catalog, prepared.interactions) | prepared.notes | counts.notes()
    notes |= {
        "release": release,
        "items_without_readable_title_left_out": untitled,
        "malformed_metadata_lines": bad_metadata.count,
    }
    return SourceData(catalog, prepared.interactions, files=files, notes=notes)


def read_reviews(path: Path, release: Release, bad: BadLines) -> EventLog:
    """All reviews in the file's order, with `rating` and, where the release has it, `verified` (1 or 0)."""
    types = {release.user: pa.string(), release.item: pa.string(), release.time: pa.int64()}
    types[release.rating] = pa.float64()
    if release.verified is not None:
        types[release.verified] = pa.bool_()
    schema = pa.schema(types)
    builder = LogBuilder()
    for first_line, block in line_blocks(path):
        table = _parsed(block, schema, release)
        if table is None:
            table = _line_by_line(path.name, first_line, block, schema, release, bad)
        features = {"rating": table.column(release.rating).to_numpy()}
        if release.verified is not None:
            features["verified"] = table.column(release.verified).cast(pa.float32()).to_numpy()
        builder.add(
            table.column(release.user).combine_chunks(),
            table.column(release.item).combine_chunks(),
            table.column(release.time).to_numpy() // release.ticks_a_second,
            features,
        )
    return builder.finish()


def _parsed(block: bytes, schema: pa.Schema, release: Release) -> pa.Table | None:
    """The block's columns, by Arrow's parser; None if any line of it is out of the ordinary."""
    try:
        block.decode()
        table = pa.json.read_json(
            pa.BufferReader(block),
            parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except (UnicodeDecodeError, pa.ArrowInvalid):
        return None
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    names = [table.column(name) for name in (release.user, release.item)]
    if table.num_rows != lines or any(column.null_count for column in (*names, table.column(release.time))):
        return None
    return None if any(pc.min(pc.binary_length(column)).as_py() == 0 for column in names) else table


def _line_by_line(
    name: str, first_line: int, block: bytes, schema: pa.Schema, release: Release, bad: BadLines
) -> pa.Table:
    """The same columns of a block with blank, literal or malformed lines; the last are named or counted."""
    columns: dict[str, list[Any]] = {key: [] for key in schema.names}
    for label, row in objects_in(name, first_line, block, bad, parse_json_or_literal):
        values = {key: row.get(key) for key in columns}
        wrong = _wrong_key(values, schema, release)
        if wrong is not None:
            bad.report(f"{label}: {wrong} is {values[wrong]!r}; repair the line")
            continue
        for key, value in values.items():
            columns[key].append(value)
    return pa.table(columns, schema=schema)


def _wrong_key(values: dict[str, Any], schema: pa.Schema, release: Release) -> str | None:
    """The first key whose value is none a review has: missing, or of another type."""
    for key in (release.user, release.item):
        name = values[key]
        # JSON can spell half a character; Arrow's parser refuses it as well.
        if not isinstance(name, str) or not name or name.encode(errors="ignore").decode() != name:
            return key
    time, rating = values[release.time], values[release.rating]
    if type(time) is not int or abs(time) >= 1 << 62:
        return release.time
    if rating is not None and (type(rating) not in (int, float) or not abs(rating) < 1e9):
        return release.rating
    if release.verified is not None and not isinstance(values[release.verified], (bool, type(None))):
        return release.verified
    return None


def _release(path: Path, args: AmazonArgs) -> int:
    """The release whose keys the first review has; InputError names the keys that are missing."""
    first = next(json_lines(path, BadLines(args.bad_lines), parse_json_or_literal), None)
    if first is None:
        raise InputError(f"{path.name}: has no reviews; check the file")
    label, row = first
    year = args.release
    if year == "auto":
        year = 2023 if "parent_asin" in row else 2018 if "verified" in row else 2014
    release = RELEASES[year]
    missing = [key for key in (release.user, release.item, release.time, release.rating) if key not in row]
    if missing:
        raise InputError(
            f"{label}: has no {missing} of release {year}, but {sorted(row)[:20]}; "
            "set source_args.release and reviews_file"
        )
    return year


def _file(directory: Path, given: str | None, option: str, metadata: bool) -> Path:
    if given is not None:
        return directory / given
    found = sorted(
        path.name
        for path in directory.glob("*")
        if path.name.endswith(ENDINGS) and path.name.startswith("meta_") == metadata
    )
    if len(found) != 1:
        kind = "meta_*" if metadata else "reviews"
        raise InputError(
            f"source_args.path: {directory} needs one {kind} file ({', '.join(ENDINGS)}), "
            f"found {found or 'none'}; set source_args.{option}"
        )
    return directory / found[0]
