"""A folder that is written as a whole or not at all: first beside its place, then moved there by one rename.

The work folder `.NAME.partial-PID-xxxxxxxx` lies beside the target NAME, on the same file system. It holds `new`, which is being
written, and for an instant `old`, the former target. Its state says what is to be done after a crash:

    new        nothing has happened to the target       remove the work folder
    new, old   the target has been moved aside          put it back, remove the rest
    old        the new one is in place                  remove the old one

Between the two renames of an overwritten target, microseconds, there is none; a crash just then (kill -9, a power cut) leaves
its content in `old`, and the next run puts it back. A run holds a lock (flock) on its work folder, which ends with
the process: what is not locked is left over. Where the file system has no such locks, left-over folders are not removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from .ending_signals import EndingSignals
from .errors import CheckpointError
from .target_folder import absolute, check_parent, check_space, check_target, writing

NEW, OLD = "new", "old"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's quota, the largest file allowed
FULL_TEXTS = ("No space left on device", "Unable to write")  # of safetensors and of MLX, whose errors have no number
ATTEMPTS = 5  # at a work folder; one fails where another run takes the fresh one for a left-over, between two system calls


@contextmanager
def new_folder(target: Path, needed_bytes: int, overwrite: bool = False, source: Path | None = None) -> Iterator[Path]:
    """An empty folder to write into, which becomes `target` at a clean end, flushed to the disk.

    After any exception, Ctrl-C, SIGTERM or SIGHUP (main thread) the old target is whole and nothing new is left. `overwrite`
    lets the new folder replace one with files in it, which is removed when the new one is in place; `source`, the folder read
    from, is never replaced.

    Raises:
        CheckpointError: the target cannot be written, before any work: it holds files, is no folder, a link, a mount point,
            lies in the source or around it, its parent is missing or not writable, `needed_bytes` are not free.
            Or the disk is full, and whatever else keeps the new folder from its place.
    """
    with writing(target):
        place = absolute(target)
    with EndingSignals() as signals:
        with writing(place):
            check_parent(place)
            _clear_left_over(place)
            check_target(place, overwrite, source)
            check_space(place, needed_bytes)
        with _work_folder(place) as work:
            with signals.heard(), _full_disk_named(place):
                yield work / NEW
                _flush_all(work / NEW)
            _put_in_place(work, place)


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """A locked work folder with an empty `new` in it; at the end it is settled, whatever has happened."""
    with writing(target):
        work, lock = _make_work_folder(target)
    try:
        (work / NEW).mkdir()
        yield work
    except BaseException:
        with suppress(OSError):  # the first error says more than one of the cleaning
            _settle(work, target)
        raise
    else:
        _settle_or_say(work, target)
    finally:
        os.close(lock)


def _make_work_folder(target: Path) -> tuple[Path, int]:
    for _ in range(ATTEMPTS):
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-{os.getpid()}-", dir=target.parent))
        lock = _open_locked(work, required=False)
        if lock is not None:
            return work, lock
    raise CheckpointError(f"{target} is being written by another run; wait for its end")


def _open_locked(work: Path, required: bool = True) -> int | None:
    """The open folder, locked by this run alone; None where another run has it or has just removed it.

    A file system may know no locks: then None too, or the open folder where the lock is not `required`.
    """
    with suppress(FileNotFoundError):
        folder = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if _lock(folder, required) and work.exists():
            return folder
        os.close(folder)
    return None


def _lock(folder: int, required: bool) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return not required
    return True


def _clear_left_over(target: Path) -> None:
    """Settle what runs have left that were killed or cut off."""
    pattern = re.compile(re.escape(f".{target.name}.partial-") + r"\d+-\w{8}")
    for work in [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]:
        with suppress(OSError):  # another user's, or gone meanwhile
            lock = _open_locked(work)
            if lock is not None:
                try:
                    _settle(work, target)
                finally:
                    os.close(lock)


def _settle(work: Path, target: Path) -> None:
    """Bring a work folder to its end from any state (see the top of this file)."""
    if (work / OLD).exists() and (work / NEW).exists():
        _put_back(work / OLD, target)
    shutil.rmtree(work)


def _put_back(old: Path, target: Path) -> None:
    try:
        old.rename(target)
    except OSError as error:
        reason = f"lies in {old} and cannot go back ({error.strerror}); move it yourself"
        raise CheckpointError(f"{target}, as it was, {reason}") from None


def _settle_or_say(work: Path, target: Path) -> None:
    try:
        _settle(work, target)
    except OSError as error:
        raise CheckpointError(f"{target} is written; {work} cannot be removed ({error.strerror}): remove it yourself") from None


def _put_in_place(work: Path, target: Path) -> None:
    try:
        if target.exists() and any(target.iterdir()):
            shutil.copymode(target, work / NEW)
            target.rename(work / OLD)
        (work / NEW).rename(target)
    except OSError as error:
        raise CheckpointError(f"{target} could not be put in its place ({error.strerror}); choose another folder") from None
    with suppress(OSError):  # it is there; some file systems cannot flush a folder
        _flush(target.parent)


def _flush_all(folder: Path) -> None:
    """Every file and folder to the disk: a rename that survives a power cut must not find them empty."""
    for path, _, files in os.walk(folder, topdown=False):
        for name in files:
            _flush(Path(path, name))
        with suppress(OSError):  # some file systems cannot flush a folder
            _flush(Path(path))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync leaves the data in the drive's cache
            with suppress(OSError):  # a file system that lacks it
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _full_disk_named(target: Path) -> Iterator[None]:
    """An error that a full disk caused says so in one line."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if getattr(error, "errno", None) not in FULL and not any(text in str(error) for text in FULL_TEXTS):
            raise
        hint = "the disk is full, or a limit on files is reached; free some space or choose another disk"
        raise CheckpointError(f"{target} was not written: {hint}") from None
