"""Answers as lines of JSON in a file that outlives Ctrl-C and crashes: every line in it is whole."""

from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from ..common.errors import OptionError
from ..common.formats import Record, as_line

START = b'{"image": '  # how a record's line begins


class Journal:
    """A file of records, read as a stream and written line by line. One run at a time may write."""

    def __init__(self, path: Path):
        """Opens nothing."""
        self.path = path
        self._file: FileIO | None = None

    def exists(self) -> bool:
        """Whether there is something in it."""
        return self.path.is_file() and self.path.stat().st_size > 0

    def __iter__(self) -> Iterator[Record]:
        """Its records. A last line that was cut off by a crash is none.

        Raises:
            OptionError: the file is not a journal, or has been damaged.
        """
        if not self.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and START.startswith(line[: len(START)]):
                    return
                yield self._record(line, number)

    def open(self, keep: Callable[[Record], bool]) -> None:
        """Make ready to append, and drop the records that `keep` does not want, and half a last line.

        Raises:
            OptionError: the file is not a journal, or another run is writing to it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        old = self._locked(self.path, "ab")
        part = self.path.with_name(f".part-{self.path.name}")
        new = self._locked(part, "wb")  # locked before it takes the old one's place, so that no other run comes in between
        try:
            for record in self:
                if keep(record):
                    self._write(new, record)
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)
            old.close()
        self._file = new

    def append(self, record: Record) -> None:
        """Add a record, in one write: a line is there whole or not at all."""
        if self._file is None:
            raise ValueError("the journal is not open")
        self._write(self._file, record)

    def close(self) -> None:
        """Let other runs write."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def _record(self, line: bytes, number: int) -> Record:
        with suppress(ValueError):
            record = json.loads(line, parse_constant=_refuse)
            if isinstance(record, dict) and _is_answer(record):
                return record
        raise OptionError(f"line {number} of {self.path} is not one of this program's answers; choose another place for -o")

    def _locked(self, path: Path, mode: str) -> FileIO:
        file = FileIO(path, mode)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise OptionError(f"{self.path} is being written by another run; wait for it, or choose another place for -o") from None
        except OSError:  # a disk that knows no locks
            pass
        return file

    def _write(self, file: FileIO, record: Record) -> None:
        line = f"{as_line(record)}\n".encode()
        written = file.write(line)
        if written != len(line):  # the disk is full: take the half line back, so that the next one begins at its place
            file.truncate(file.tell() - (written or 0))
            raise OSError(errno.ENOSPC, "no space left for a whole line", str(self.path))


def _is_answer(record: Record) -> bool:
    """Whether it has what the writers of the formats need."""
    if not _has(record, {"image": str, "prompt": str}):
        return False
    if "error" in record:
        return isinstance(record["error"], str)
    parts = {"label": str, "box": list, "score": float | int | None, "mask": dict | None}
    return _has(record, {"width": int, "height": int, "detections": list}) and all(
        isinstance(item, dict) and _has(item, parts) for item in record["detections"]
    )


def _has(record: Record, kinds: dict[str, Any]) -> bool:
    return all(key in record and isinstance(record[key], kind) for key, kind in kinds.items())


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
