"""The recorded calls, on disk: a 3B model's do not fit into memory beside the model."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from .call import Call


@dataclass(frozen=True)
class StoredArray:
    """Where an array lies in the file."""

    start: int  # bytes
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class CallStore:
    """Calls in the order in which they were appended. Equal arrays are written once: what one module gives, the next takes."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._calls: list[Call] = []
        self._known: dict[bytes, StoredArray] = {}
        self.size = 0  # bytes

    @classmethod
    @contextmanager
    def temporary(cls, folder: Path | None = None) -> Iterator[CallStore]:
        """A store in a nameless file that is gone afterwards, however the program ends."""
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            yield cls(file)

    def append(self, call: Call) -> None:
        """Write a call's arrays.

        Raises:
            OSError: the disk is full.
        """
        try:
            self._calls.append(call.mapped(self._stored))
        except OSError as error:
            hint = f"{error.strerror}; a recorded run takes gigabytes: set TMPDIR to a larger disk, or add --no-batch"
            raise OSError(error.errno, hint, tempfile.gettempdir()) from None

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        """One call at a time, its arrays read when they are looked at."""
        return (call.mapped(self._loaded) for call in self._calls)

    def of(self, scene: str, name: str) -> Iterator[Call]:
        """The calls of one module in one run."""
        return (call.mapped(self._loaded) for call in self._calls if call.scene == scene and call.name == name)

    def _stored(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        array = np.ascontiguousarray(value).reshape(value.shape)
        key = hashlib.blake2b(f"{array.dtype}{array.shape}".encode() + array.tobytes(), digest_size=16).digest()
        if key not in self._known:
            self._known[key] = StoredArray(self.size, array.shape, array.dtype)
            self._write(memoryview(array.tobytes()))
        return self._known[key]

    def _write(self, rest: memoryview) -> None:
        self._file.seek(self.size)
        self.size += len(rest)
        while rest:
            rest = rest[self._file.write(rest) :]  # one call writes 2 GB at most

    def _loaded(self, value: Any) -> Any:
        if not isinstance(value, StoredArray):
            return value
        if not np.prod(value.shape):
            return np.empty(value.shape, value.dtype)
        return np.memmap(self._file, value.dtype, "r", value.start, value.shape)
