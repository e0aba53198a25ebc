"""NumPy's .npz files: ZIP archives of .npy arrays, whole or cut into pieces, read one block of an array at a time.

Formats: versions 1.0 and 2.0 of numpy.lib.format; members stored or deflated. bfloat16, which NumPy does not know, is stored as
raw pairs of bytes and comes out as uint16. Nothing is allocated on the word of a header: each is held against the file first.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.lib import format as npy

from .errors import CheckpointError
from .npz_pieces import JoinedFiles

DTYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "|V2"}  # our names and NumPy's
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_LONGEST_HEADER = 10_012  # bytes; NumPy itself reads 10,000 after the 12 with the version and the length
_CHUNK = 1 << 20  # bytes that are read at a time
_DEFLATE_LIMIT = 1032  # bytes that one deflated byte can stand for, at most


@dataclass(frozen=True)
class NpzHeader:
    """What the .npy header of one array says, after all checks."""

    shape: tuple[int, ...]
    dtype: str  # "float32", "float16" or "bfloat16"
    start: int  # byte of the member where the numbers begin

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of the type in which the numbers are handed out: float32, float16, or uint16 for bfloat16."""
        return np.empty(shape, "<u2" if self.dtype == "bfloat16" else DTYPES[self.dtype])


class NpzFile:
    """An .npz file, opened for reading. A context manager."""

    def __init__(self, pieces: Sequence[Path]):
        """Open the one file, or the pieces of one in their order.

        Raises:
            CheckpointError: a piece cannot be opened, or the whole is no ZIP archive, or two arrays have one name.
        """
        self.path = pieces[0]
        self._advice = "copy it again" if len(pieces) == 1 else f"copy all {len(pieces)} pieces again"
        with ExitStack() as stack:
            with self._reading():
                self._stream = JoinedFiles([stack.enter_context(piece.open("rb")) for piece in pieces])
                self._zip = stack.enter_context(ZipFile(self._stream))
            self._members = self._list_members()
            self._headers: dict[str, NpzHeader] = {}
            self._files = stack.pop_all()

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._files.close()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all arrays, in the order of the file."""
        return tuple(self._members)

    def header(self, name: str) -> NpzHeader:
        """Shape and type of an array.

        Raises:
            CheckpointError: the header is damaged, contradicts the file's size, or names numbers that no model has.
        """
        if name not in self._headers:
            self._headers[name] = self._checked_header(name)
        return self._headers[name]

    def layers(self, name: str) -> Iterator[np.ndarray]:
        """The array's parts along its first axis, one at a time; the checksum is compared with the last one.

        Raises:
            CheckpointError: as `header`, or the numbers are damaged.
        """
        header = self.header(name)
        with self._open(name, header) as member:
            for _ in range(header.shape[0]):
                yield self._fill(header.empty(header.shape[1:]), name, member)

    def read_into(self, array: np.ndarray, name: str) -> None:
        """Read a whole array into one of its shape, made by its header's `empty`. Raises CheckpointError, as `layers` does."""
        with self._open(name, self.header(name)) as member:
            self._fill(array, name, member)

    def _list_members(self) -> dict[str, ZipInfo]:
        members: dict[str, ZipInfo] = {}
        for member in self._zip.infolist():
            name = member.filename.removesuffix(".npy")
            if name in members:
                raise CheckpointError(f"{self.path}: {shown(name)} is there twice; save the model again")
            if not name.endswith("/"):  # else a folder
                members[name] = member
        return members

    def _checked_header(self, name: str) -> NpzHeader:
        member = self._members[name]
        with self._reading(name):
            self._check_extent(member)
            shape, fortran_order, dtype, start = self._read_header(member)
        header = NpzHeader(shape, self._kind(name, dtype), start)
        if min(shape, default=0) < 0 or start + prod(shape) * dtype.itemsize != member.file_size:
            held = f"has {member.file_size - start} bytes, not those of {header.dtype} {shape}"
            raise CheckpointError(f"{self.path}: {shown(name)} {held}; {self._advice}")
        if fortran_order and len(shape) > 1:
            raise CheckpointError(f"{self.path}: {shown(name)} is stored in Fortran order; save it with numpy.ascontiguousarray")
        return header

    def _kind(self, name: str, dtype: np.dtype) -> str:
        """Our name of a type that weights can have."""
        if dtype.hasobject:
            raise CheckpointError(f"{self.path}: {shown(name)} is pickled, which can run programs; save it as an array of numbers")
        for kind, known in DTYPES.items():
            if dtype == np.dtype(known):
                return kind
        wanted = "weights must be float32, bfloat16 or float16; save the model in one of these"
        raise CheckpointError(f"{self.path}: {shown(name)} is {shown(str(dtype)[:100])}; {wanted}")

    def _check_extent(self, member: ZipInfo) -> None:
        """Raises ValueError for a member that the file cannot hold."""
        longest = {ZIP_STORED: member.compress_size, ZIP_DEFLATED: member.compress_size * _DEFLATE_LIMIT}
        if member.compress_type not in longest:
            raise ValueError(f"compression method {member.compress_type} is unknown")
        if member.header_offset + member.compress_size > self._stream.size or member.file_size > longest[member.compress_type]:
            raise ValueError(f"the file cannot hold its {member.file_size} bytes, stored as {member.compress_size}")

    def _read_header(self, member: ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype, int]:
        with self._zip.open(member) as stream, warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy warns where it guesses
            head = io.BytesIO(stream.read(_LONGEST_HEADER))
            version = npy.read_magic(head)
            if version not in _READERS:
                raise ValueError(f"version {version[0]}.{version[1]} of the npy format is unknown")
            return *_READERS[version](head), head.tell()

    @contextmanager
    def _open(self, name: str, header: NpzHeader) -> Iterator[IO[bytes]]:
        """The bytes of an array's numbers."""
        with ExitStack() as stack:
            with self._reading(name):
                member = stack.enter_context(self._zip.open(self._members[name]))
                member.read(header.start)
            yield member

    def _fill(self, array: np.ndarray, name: str, member: IO[bytes]) -> np.ndarray:
        """`array`, which is contiguous, with the next bytes in it. The last ones come only if the checksum of all is right."""
        space = array.reshape(-1).view(np.uint8)
        with self._reading(name):
            for start in range(0, len(space), _CHUNK):
                part = space[start : start + _CHUNK]
                data = member.read(len(part))
                if len(data) < len(part):
                    raise ValueError("it ends too early")
                part[:] = np.frombuffer(data, np.uint8)
        return array

    @contextmanager
    def _reading(self, name: str | None = None) -> Iterator[None]:
        """Turns whatever goes wrong inside, with one array or with the file, into a CheckpointError."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a damaged archive makes its readers raise nearly anything
            reason = shown((getattr(error, "strerror", None) or str(error) or type(error).__name__)[:200])
            problem = f"{self.path} is not a whole npz file" if name is None else f"{self.path}: {shown(name)} cannot be read"
            raise CheckpointError(f"{problem} ({reason}); {self._advice}") from None


def shown(text: str) -> str:
    """`text` as it can stand in one line of an error message."""
    return text if text.isprintable() else ascii(text)
