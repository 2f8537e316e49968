"""Columns of CSV and Parquet files as a stream of batches, and their values as numbers and moments.

CSV may be gzip and may have line ends inside quoted cells. Legend: R rows of a batch.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from sid_builder.errors import InputError
from sid_builder.events import seconds_of
from sid_builder.sources.lines import BadLines, ByteStream, text_lines

TimestampUnit = Literal["seconds", "milliseconds", "iso"]
UNQUOTED = (".inter", ".inter.gz")  # RecBole's, where a quote is a character like any other
TAB_SEPARATED = (".tsv", ".tsv.gz", *UNQUOTED)
ENDINGS = (".csv", ".csv.gz", *TAB_SEPARATED, ".parquet")
_BATCH_BYTES, _BATCH_ROWS = 4 << 20, 1 << 17


def is_parquet(path: Path, field_name: str) -> bool:
    """Whether a file is Parquet (else CSV), by its name's ending; InputError for another ending."""
    if not path.name.endswith(ENDINGS):
        raise InputError(f"{field_name}: {path.name} ends in none of {', '.join(ENDINGS)}; rename it")
    return path.name.endswith(".parquet")


def delimiter_of(path: Path) -> str:
    return "\t" if path.name.endswith(TAB_SEPARATED) else ","


def parquet_file(path: Path, field_name: str) -> pq.ParquetFile:
    """The opened file; InputError when it cannot be read."""
    try:
        return pq.ParquetFile(path)
    except OSError as error:
        raise InputError(f"{field_name}: cannot read {path} ({error.strerror}); check the path") from error
    except pa.ArrowInvalid as error:
        raise InputError(f"{path.name}: is no Parquet file ({_line(error)}); get the file again") from error


def csv_records(path: Path, field_name: str, bad: BadLines) -> Iterator[tuple[int, list[str]]]:
    """(number of the line it begins on, cells) of every record of a CSV file that is not blank, header first.

    Args:
        bad: told of records that do not have as many cells as the header.

    Raises:
        InputError: for a broken gz stream, text that is not UTF-8, a cell over 128 kB (a quote not closed).
    """
    quoting: Literal[0, 3] = csv.QUOTE_NONE if path.name.endswith(UNQUOTED) else csv.QUOTE_MINIMAL
    reader = csv.reader(text_lines(path, field_name), delimiter=delimiter_of(path), quoting=quoting)
    first, width = 1, None
    try:
        for cells in reader:
            number, first = first, reader.line_num + 1
            if not cells:
                continue
            width = width or len(cells)
            if len(cells) == width:
                yield number, cells
            else:
                bad.report(
                    f"{path.name}:{number}: has {len(cells)} cells, the header {width}; repair the line"
                )
    except csv.Error as error:
        raise InputError(f"{path.name}:{first}: {error}; repair the line") from error


def column_names(path: Path, field_name: str) -> list[str]:
    """Names of a file's columns; InputError for a file without a header or with a name twice."""
    if is_parquet(path, field_name):
        names = parquet_file(path, field_name).schema_arrow.names
    else:
        names = next(csv_records(path, field_name, BadLines()), (0, []))[1]
    if not names:
        raise InputError(f"{path.name}: is empty; it needs a header line with the names of its columns")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path.name}: has column {twice!r} twice; rename one")
    return names


def batches(path: Path, columns: Sequence[str], field_name: str, bad: BadLines) -> Iterator[pa.RecordBatch]:
    """The named columns in batches; of a CSV file as text, an empty cell as null.

    Args:
        bad: told of CSV rows that do not have as many cells as the header.

    Raises:
        InputError: naming the line of what cannot be read.
    """
    if is_parquet(path, field_name):
        try:
            yield from parquet_file(path, field_name).iter_batches(_BATCH_ROWS, columns=list(columns))
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{path.name}: is damaged ({_line(error)}); get the file again") from error
        return
    stream = ByteStream(path, field_name)
    quoted = not path.name.endswith(UNQUOTED)

    def wrong_width(row: pa.csv.InvalidRow) -> str:
        if bad.policy != "skip":
            return "error"
        bad.count += 1
        return "skip"

    try:
        yield from pa.csv.open_csv(
            stream,
            pa.csv.ReadOptions(block_size=_BATCH_BYTES),
            pa.csv.ParseOptions(
                delimiter=delimiter_of(path),
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                invalid_row_handler=wrong_width,
            ),
            pa.csv.ConvertOptions(
                include_columns=list(columns),
                column_types={name: pa.string() for name in columns},
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        # Arrow does not say where: a plain reader finds the same record and names its line.
        for _ in csv_records(path, field_name, BadLines(bad.policy)):
            pass
        raise InputError(f"{path.name}: {_line(error)}; repair the file") from error
    finally:
        stream.close()


def row_label(path: Path, field_name: str, row: int) -> str:
    """ "file:line" of data row 0, 1, ... of a CSV file, "file: row n" (from 1) of a Parquet file."""
    if is_parquet(path, field_name):
        return f"{path.name}: row {row + 1}"
    records = csv_records(path, field_name, BadLines("skip"))
    return f"{path.name}:{next(line for n, (line, _) in enumerate(records) if n == row + 1)}"


def texts(column: pa.Array, name: str) -> pa.Array:
    """Ids as text, whole numbers as their decimal text; InputError for a column of another type."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"source_args.columns: {name!r} is {kind}; ids are text or whole numbers")
    return column.cast(pa.string())


def numbers(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [R] with NaN for null, bool [R]: null or a finite number)."""
    try:
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        cells = [_number(cell) for cell in column.to_pylist()]
        values = np.array([np.inf if value is None else value for value in cells])
    return values, ~np.isinf(values)


def _number(cell: Any) -> float | None:
    """NaN for nothing, None for what is no number."""
    try:
        return np.nan if cell is None else float(cell)
    except (TypeError, ValueError):
        return None


def moments(column: pa.Array, unit: TimestampUnit, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(int64 seconds [R], bool [R]: a moment). Columns of dates or timestamps need no `unit`.

    Raises:
        InputError: when the unit does not go with the column's type, or puts a batch far from the present.
    """
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        zone = kind.tz if pa.types.is_timestamp(kind) else None
        ticks = column.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64())
        return pc.fill_null(ticks, 0).to_numpy() // 1_000_000, _given(column)
    if unit == "iso":
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            raise InputError(
                f"source_args.timestamp_unit: column {name!r} is {kind}, no iso text; "
                "set it to seconds or milliseconds"
            )
        return _iso(column)
    if pa.types.is_integer(kind):
        values, valid = pc.fill_null(column, 0).to_numpy().astype(np.int64), _given(column)
    else:
        floats, valid = numbers(column)
        valid &= np.abs(floats) < 1 << 62
        values = np.floor(np.where(valid, floats, 0)).astype(np.int64)
    largest = values[valid].max(initial=0)
    if unit == "seconds" and largest > 1e11:
        raise InputError(
            f"source_args.timestamp_unit: {largest} in column {name!r} is past the year 5000 in seconds; "
            "set it to milliseconds"
        )
    if unit == "milliseconds" and 1e8 < largest < 1e10:
        raise InputError(
            f"source_args.timestamp_unit: {largest} in column {name!r} is in 1970 in milliseconds; "
            "set it to seconds"
        )
    return values // (1000 if unit == "milliseconds" else 1), valid


def _given(column: pa.Array) -> np.ndarray:
    return column.is_valid().to_numpy(zero_copy_only=False)


def _iso(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Arrow reads a column of one kind (with or without a zone) at once; Python reads what it cannot."""
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            ticks = column.cast(kind).cast(pa.int64())
        except pa.ArrowInvalid:
            continue
        return pc.fill_null(ticks, 0).to_numpy() // 1_000_000, _given(column)
    values, valid = np.zeros(len(column), dtype=np.int64), np.zeros(len(column), dtype=bool)
    for row, cell in enumerate(column.to_pylist()):
        try:
            seconds = seconds_of(cell, "timestamp")
        except InputError:
            continue
        if seconds is not None:
            values[row], valid[row] = seconds, True
    return values, valid


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
