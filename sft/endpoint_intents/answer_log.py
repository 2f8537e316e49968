"""Answers that were paid for, kept as they come: one JSON object a line, appended, never rewritten."""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from sid_builder.errors import InputError

SYNC_ROWS = 16


class AnswerLog:
    """Rows by key, in a file that survives a kill at any moment.

    A row is written out at once and fsynced with at most `SYNC_ROWS` others: a killed process loses nothing,
    a power cut a few answers. A last line that was cut is removed. One process at a time holds the file.

    Raises:
        InputError: when another run holds the file, or a line other than the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")  # noqa: SIM115 (closed by __exit__)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise InputError(f"output_dir: another run is writing {path}; wait for it or stop it") from error
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                self._file.truncate(self._file.tell() - len(line))
                break
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
            except (ValueError, KeyError, TypeError) as error:
                self._file.close()
                raise InputError(f"{path}:{number}: is no answer; remove this line or the file") from error
        self._unsynced = 0

    def append(self, row: dict[str, Any]) -> None:
        """Keep a row, whose `key` names its question."""
        self._file.write(json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n")
        self._file.flush()
        self.rows[row["key"]] = row
        self._unsynced += 1
        if self._unsynced >= SYNC_ROWS:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def __enter__(self) -> "AnswerLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sync()
        self._file.close()
