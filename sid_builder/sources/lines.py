"""Text files read as a stream, plain or gzip, with the number of every line at hand for error messages."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from sid_builder.errors import InputError

BLOCK_BYTES = 8 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class LineOptions:
    """What a malformed line does; arguments of sources inherit it."""

    bad_lines: Literal["error", "skip"] = field(
        default="error",
        metadata={
            "help": "A malformed line: stop and name it, or skip and count it. A broken gz stream always "
            "stops, since nobody knows how much is missing."
        },
    )


@dataclass
class BadLines:
    """Stops at a malformed line, or counts it, as the user chose; without a choice it stops."""

    policy: Literal["error", "skip"] | None = None
    count: int = 0

    def report(self, message: str, count: int = 1) -> None:
        """InputError with `message` (it ends in the fix), or `count` lines more that were skipped."""
        if self.policy != "skip":
            raise InputError(message + (", or set bad_lines: skip" if self.policy is not None else ""))
        self.count += count


class ByteStream:
    """The content of a file, decompressed if it is gzip (by its first bytes, whatever its name), without a
    byte order mark.

    Has `read`, `readable`, `closed` and `close`, so that pyarrow can read from it as well.

    Raises:
        InputError: from the constructor for a file that cannot be opened, from `read` for a broken gz stream,
            naming the last line that could be read.
    """

    closed = False

    def __init__(self, path: Path, field_name: str = "source_args.path") -> None:
        self.path = path
        self.lines_read = 0
        try:
            self._raw = open(path, "rb")  # noqa: SIM115
            self.is_gzip = self._raw.read(2) == _GZIP_MAGIC
        except OSError as error:
            raise InputError(
                f"{field_name}: cannot read {path} ({error.strerror}); check the path"
            ) from error
        self._raw.seek(0)
        self._stream: Any = gzip.GzipFile(fileobj=self._raw) if self.is_gzip else self._raw
        # A bar only for what takes a while; it counts the bytes on disk.
        self._bar = tqdm(
            total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, delay=3, leave=False
        )
        self._head = self._next(len(_BYTE_ORDER_MARK)).removeprefix(_BYTE_ORDER_MARK)

    def readable(self) -> bool:
        return True

    def read(self, size: int = BLOCK_BYTES) -> bytes:
        """The next `size` bytes, fewer at the end, none after it."""
        parts, missing = [self._head], size - len(self._head)
        self._head = b""
        while missing > 0 and (part := self._next(missing)):
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _next(self, size: int) -> bytes:
        try:
            # read1: what was decompressed before a broken place is counted before the error comes.
            part = self._stream.read1(size) if self.is_gzip else self._stream.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(
                f"{self.path.name}:{self.lines_read}: the gz stream is broken; this is the last line that "
                f"could be read ({' '.join(str(error).split())}); get the file again"
            ) from error
        self.lines_read += part.count(b"\n")
        self._bar.update(self._raw.tell() - self._bar.n)
        return part

    def close(self) -> None:
        self.closed = True
        self._bar.close()
        self._raw.close()


def line_blocks(path: Path, field_name: str = "source_args.path") -> Iterator[tuple[int, bytes]]:
    """(number of the first line, whole lines of some megabytes) until the end of the file.

    Raises:
        InputError: as `ByteStream`.
    """
    stream = ByteStream(path, field_name)
    number, rest = 1, b""
    try:
        while block := stream.read():
            cut = block.rfind(b"\n") + 1
            if not cut:
                rest += block
                continue
            whole = rest + block[:cut]
            yield number, whole
            number += whole.count(b"\n")
            rest = block[cut:]
        if rest:
            yield number, rest
    finally:
        stream.close()


def text_lines(path: Path, field_name: str = "source_args.path") -> Iterator[str]:
    """Lines of a UTF-8 file with their ends, streamed; InputError names the line that is not UTF-8."""
    for first_line, block in line_blocks(path, field_name):
        try:
            lines = block.decode().split("\n")
        except UnicodeDecodeError as error:
            line = first_line + block[: error.start].count(b"\n")
            raise InputError(f"{path.name}:{line}: is not UTF-8; convert the file to UTF-8") from error
        yield from (line + "\n" for line in lines[:-1])
        if lines[-1]:
            yield lines[-1]


def parse_json(text: str) -> Any:
    """`json.loads` whose ValueError says what is wrong in a few words."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON ({error.msg})") from error


def objects_in(
    name: str, first_line: int, block: bytes, bad: BadLines, parse: Callable[[str], Any] = parse_json
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label "name:line", object) for every line of a block that is not blank and can be parsed.

    Args:
        bad: told of every line that is not UTF-8 or no object.
        parse: text -> object; a ValueError says what is wrong.
    """
    # Not splitlines(): it also cuts at U+2028 and the like, which JSON strings may hold as they are.
    for number, line in enumerate(block.split(b"\n"), start=first_line):
        if not line.strip():
            continue
        label = f"{name}:{number}"
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            bad.report(f"{label}: is not UTF-8 (byte {error.start} of the line); convert the file to UTF-8")
            continue
        try:
            value = parse(text)
        except ValueError as error:
            bad.report(f"{label}: {text[:60]!r} {error}; repair the line")
            continue
        if not isinstance(value, dict):
            bad.report(f"{label}: holds a {type(value).__name__}; write one JSON object a line")
            continue
        yield label, value


def json_lines(
    path: Path, bad: BadLines, parse: Callable[[str], Any] = parse_json
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label "file:line", object) for every line that is not blank, streamed."""
    for first_line, block in line_blocks(path):
        yield from objects_in(path.name, first_line, block, bad, parse)
