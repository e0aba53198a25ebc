"""Whether a folder may be written, and replaced if it is there: every reason against it is found before any work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CheckpointError


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """What the system refuses becomes one line. Raises CheckpointError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links, the home of nobody, a zero byte
        reason = "it is not UTF-8" if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or error
        target = Path(ascii(str(target))[1:-1]) if isinstance(error, UnicodeError) else target
        raise CheckpointError(f"{target} cannot be written ({reason}); choose another folder") from None


def absolute(target: Path) -> Path:
    """Without links in the parents, `~` and `..`; a last part that is a link stays."""
    path = target.expanduser()
    str(path).encode()  # MLX writes to paths in UTF-8 alone; a UnicodeError is a ValueError
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def check_parent(target: Path) -> None:
    """Raises CheckpointError where nothing can be put beside the target."""
    parent = target.parent
    if not parent.is_dir():
        problem = "is not a folder" if parent.exists() else "does not exist; create it first"
        raise CheckpointError(f"{target} cannot be written: {parent} {problem}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{target} cannot be written: you may not write in {parent}; choose another folder")


def check_target(target: Path, overwrite: bool, source: Path | None) -> None:
    """Raises CheckpointError where the target must not become, or be replaced by, a new folder made from `source`."""
    if target.is_symlink():
        raise CheckpointError(f"{target} is a link; give the folder that it points to ({os.path.realpath(target)})")
    if source is not None:
        _check_apart(target, source)
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise CheckpointError(f"{target} is a file; choose another name for the new folder")
    if os.path.ismount(target):
        raise CheckpointError(f"{target} is a mount point, which cannot be replaced; choose a folder inside it")
    if not os.access(target, os.R_OK | os.W_OK | os.X_OK):
        raise CheckpointError(f"{target} cannot be replaced: you may not write in it; choose another folder")
    if any(target.iterdir()):
        _check_may_go(target, overwrite)


def _check_apart(target: Path, source: Path) -> None:
    if _is_in(target, source):
        where = "the model that is read" if target.exists() and target.samefile(source) else f"inside {source}, which is read"
        raise CheckpointError(f"{target} is {where}; choose another folder")
    if target.exists() and _is_in(source, target):
        raise CheckpointError(f"{target} holds {source}, which is read; choose another folder")


def _check_may_go(target: Path, overwrite: bool) -> None:
    if not overwrite:
        raise CheckpointError(f"{target} is there and not empty; --overwrite replaces it, or choose another folder")
    for name, path in (("your home folder", Path("~").expanduser()), ("the folder that you are in", Path())):
        if _is_in(path, target):
            raise CheckpointError(f"{target} is or holds {name}; --overwrite would remove all of it: choose another folder")


def _is_in(path: Path, folder: Path) -> bool:
    """Whether `path`, which may not exist yet, is `folder` or lies in it, by whatever name (links, upper and lower case)."""
    path = path.resolve()
    return folder.exists() and any(part.samefile(folder) for part in (path, *path.parents) if part.exists())


def check_space(target: Path, needed_bytes: int) -> None:
    """Raises CheckpointError where fewer bytes are free than the new folder needs beside the old one."""
    free = shutil.disk_usage(target.parent).free
    if free < needed_bytes:
        beside = " beside the old folder, which stays until then" if target.exists() and any(target.iterdir()) else ""
        have = f"{free / 1e9:.2f} GB are free; free some space or choose another disk"
        raise CheckpointError(f"{target} needs {needed_bytes / 1e9:.2f} GB{beside}, and {have}")
