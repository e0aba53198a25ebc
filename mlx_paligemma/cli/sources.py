"""From what the user named (files, addresses, folders, patterns, a video) to the answers that are to be given."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..common.errors import ImageError
from ..common.image import open_image

PICTURE_ENDINGS = (  # in a folder, files with other endings are passed over
    ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One answer to give: the pictures that it is about, and their name in the output."""

    name: str
    sources: tuple[str, ...]
    frames: int = 0  # more than 0: the source is a video, and this many of its frames are the pictures

    def open(self) -> list[Image.Image]:
        """The pictures, in RGB. Raises ImageError, and BackendError where a video cannot be read for want of a package."""
        if self.frames:
            from ..common.video import video_frames

            return [frame.image for frame in video_frames(self.sources[0], self.frames)]
        return [open_image(source, allow_download=not _offline()) for source in self.sources]


def separate_jobs(arguments: Sequence[str]) -> list[Job]:
    """A job for each picture that the arguments name.

    Raises:
        ImageError: a folder has no pictures, or a pattern fits no file.
    """
    return [Job(name, (name,)) for argument in arguments for name in _pictures(argument)]


def joint_job(sources: Sequence[str]) -> Job:
    """One job about several pictures."""
    return Job(", ".join(sources), tuple(sources))


def video_job(source: str, frames: int) -> Job:
    """One job about frames of a video."""
    return Job(source, (source,), frames)


def _pictures(argument: str) -> list[str]:
    if not argument:
        raise ImageError("a picture's name is empty; give a file, an address, a folder or a pattern")
    if "://" in argument:
        return [argument]
    if Path(argument).is_dir():
        return _in_folder(Path(argument))
    if any(sign in argument for sign in "*?[") and not Path(argument).exists():
        return _matching(argument)
    return [argument]


def _in_folder(folder: Path) -> list[str]:
    """The pictures in a folder itself, hidden ones left out: a Mac's ._photo.jpg is none."""
    files = (path for path in folder.iterdir() if path.suffix.lower() in PICTURE_ENDINGS and not path.name.startswith("."))
    found = sorted(str(path) for path in files if path.is_file())
    if not found:
        endings = " ".join(PICTURE_ENDINGS)
        raise ImageError(f"{folder} is a folder without pictures (it has no file with one of the endings {endings})")
    return found


def _matching(pattern: str) -> list[str]:
    found = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())  # noqa: PTH207 - takes absolute ones
    if not found:
        raise ImageError(f"{pattern} fits no file; check the pattern (** stands for any folders, [[] for a bracket)")
    return found


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
