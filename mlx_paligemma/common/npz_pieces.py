"""The files of one .npz: itself, or the pieces X.npz.part00, X.npz.part01 and so on into which a large one is cut.

They are found by their names and read as if they were one file; nothing is copied together.
"""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from .errors import CheckpointError
from .mask_codec import FILE_NAME

LONGEST_READ = 1 << 26  # bytes; only a damaged archive asks for more at once
_PIECE = re.compile(r"(.+\.npz)\.part(\d+)")


def find_npz(path: Path) -> tuple[Path, ...]:
    """The pieces, in order, of the one .npz that `path` names or, as a folder, holds; a mask codec does not count.

    Empty for a folder without any, for what has another name, and for what is not there. One piece stands for all of them.

    Raises:
        CheckpointError: there are several, or a piece is missing or there twice, or the folder cannot be listed.
    """
    try:
        return _find_in(path) if path.is_dir() else _pieces(path.with_name(_whole_name(path.name)) if path.name else path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be looked up ({error.strerror}); check the path") from None


class JoinedFiles(io.RawIOBase):
    """Open files read as if they were one; they are closed by whoever opened them."""

    def __init__(self, files: Sequence[BinaryIO]):
        self._files = files
        self._ends = list(accumulate(file.seek(0, io.SEEK_END) for file in files))
        self.size = self._ends[-1]  # bytes
        self._position = 0

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The byte that is read next."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte, which may lie beyond the end. Raises ValueError for one before the begin."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if self._position < 0:
            raise ValueError("it points to before its begin")
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, fewer at the end. Raises ValueError, before anything is read, for more than LONGEST_READ."""
        left = max(self.size - self._position, 0)
        size = left if size is None or size < 0 else min(size, left)
        if size > LONGEST_READ:
            raise ValueError(f"its list of members claims {size} bytes")
        return b"".join(self._parts(size))

    def _parts(self, size: int) -> Iterator[bytes]:
        end = self._position + size
        while self._position < end:
            index = bisect_right(self._ends, self._position)
            start = self._ends[index - 1] if index else 0
            self._files[index].seek(self._position - start)
            part = self._files[index].read(min(end, self._ends[index]) - self._position)
            if not part:  # the file has been cut since
                return
            self._position += len(part)
            yield part


def _find_in(folder: Path) -> tuple[Path, ...]:
    names = {_whole_name(file.name) for file in folder.iterdir()}
    found = sorted(name for name in names if name.endswith(".npz") and name != FILE_NAME)
    if len(found) > 1:
        several = ", ".join(found[:3] + ["..."][: len(found) > 3])
        raise CheckpointError(f"{folder} has several npz files ({several}); give the path of the one that is wanted")
    return _pieces(folder / found[0]) if found else ()


def _whole_name(name: str) -> str:
    """The name of the whole for that of a piece; any other name as it is."""
    match = _PIECE.fullmatch(name)
    return match[1] if match else name


def _pieces(whole: Path) -> tuple[Path, ...]:
    """The file itself where it is there, else its pieces by their numbers, else nothing."""
    if whole.suffix != ".npz" or not whole.parent.is_dir():
        return ()
    if whole.is_file():
        return (whole,)
    matches = [match for file in whole.parent.iterdir() if (match := _PIECE.fullmatch(file.name)) and match[1] == whole.name]
    pieces = sorted((int(match[2]), whole.with_name(match[0])) for match in matches)
    _check_numbers(whole, [number for number, _ in pieces])
    return tuple(path for _, path in pieces)


def _check_numbers(whole: Path, numbers: Sequence[int]) -> None:
    first = min(numbers[:1], default=0)
    for expected, number in enumerate(numbers, start=min(first, 1)):
        if number != expected:
            problem = f"piece {expected} of it is missing" if number > expected else f"piece {number} of it is there twice"
            raise CheckpointError(f"{whole}: {problem}; put all pieces, numbered from 0 or 1, into one folder")
