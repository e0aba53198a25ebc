"""From a picture's file to its pixels: the one place that meets Pillow's readers, and puts their complaints in one line."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageError

HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # ISO/IEC 23008-12; avif is Pillow's own


def read_image(source: str | os.PathLike[str] | BinaryIO | Image.Image, name: str) -> Image.Image:
    """The first frame, upright, fully decoded, in whatever mode; `name` is what an error message calls it.

    Raises:
        ImageError: it is missing, empty, damaged, too large, no picture, or needs a reader that is not installed.
    """
    try:
        if isinstance(source, Image.Image):
            return _upright(source)
        if not isinstance(source, (str, os.PathLike)) and not getattr(source, "seekable", lambda: True)():
            source = io.BytesIO(source.read())  # a pipe can be read but once
        with _open(source, name) as image:
            if image.format == "EPS":  # Pillow would hand the file, which is a program, to Ghostscript
                raise ImageError(f"{name} is a PostScript program, not a picture; save it as PNG or JPEG first")
            return _upright(image)
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file makes Pillow's readers raise nearly anything
        raise ImageError(_complaint(name, error)) from None


def _open(source: str | os.PathLike[str] | BinaryIO, name: str) -> Image.Image:
    """The file as Pillow opens it, if need be with pillow-heif, which is imported for nothing else."""
    try:
        return Image.open(source)
    except UnidentifiedImageError:
        start = _first_bytes(source, 12)
        if not start:
            raise ImageError(f"{name} is empty (0 bytes); copy or download it again") from None
        if not is_heic(start):
            raise
    if not heic_formats():
        raise ImageError(f"{name} is a HEIC picture; to read it: pip install 'mlx-paligemma[heic]'")
    return Image.open(source)


def is_heic(start: bytes) -> bool:
    """Whether a file with these first 12 bytes is what phones call HEIC (ISO/IEC 23008-12)."""
    return start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS


def heic_formats() -> tuple[str, ...]:
    """Pillow's name of the format, with its reader made ready; nothing where pillow-heif is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return ()
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def _first_bytes(source: str | os.PathLike[str] | BinaryIO, count: int) -> bytes:
    if isinstance(source, (str, os.PathLike)):
        with Path(source).open("rb") as file:
            return file.read(count)
    source.seek(0)
    return source.read(count)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - the pixels are read; a damaged EXIF block is no reason to refuse them
        return image.copy()


def _complaint(name: str, error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return f"{name}: no such file; give a picture's path or its http(s) address"
        case IsADirectoryError():
            return f"{name} is a folder; give a picture inside it"
        case PermissionError():
            return f"{name} cannot be read: permission denied; change its permissions or copy it"
        case UnidentifiedImageError():
            return f"{name} is not a picture that Pillow can read, or its start is damaged; save it as PNG or JPEG first"
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            limit = Image.MAX_IMAGE_PIXELS or 0  # Pillow warns above it and refuses above its double
            return (
                f"{name} has more pixels than Pillow's safety limit of {2 * limit}; shrink it or, if you trust it, "
                "raise PIL.Image.MAX_IMAGE_PIXELS in Python"
            )
        case MemoryError():
            return f"{name} does not fit into memory; shrink it first"
        case OSError(strerror=str(reason)):
            return f"{name} cannot be read ({reason}); check the path and the disk"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{name} is damaged or cut short ({reason}); copy or download it again"
