"""Uploaded pictures: from a file to 8-bit RGB, with its pixels counted before they are decoded."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..common.errors import ImageError
from ..serve.pictures import decode_picture

SHOWN_BY_BROWSERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")


def read_picture(file: Path, max_pixels: int) -> Image.Image:
    """The picture in a file. Raises ImageError, whose message has the file's name without its folder."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ImageError(f"{file.name} cannot be read ({error.strerror}); upload it again") from None
    return decode_picture(data, file.name, max_pixels, heic=True)


def is_shown_by_browsers(file: Path) -> bool:
    """Whether a page can show a picture that can be read."""
    try:
        with Image.open(file, formats=SHOWN_BY_BROWSERS):
            return True
    except (OSError, ValueError):
        return False


def save_for_browsers(folder: Path, picture: Image.Image, name: str) -> Path:
    """A JPEG of it."""
    target = folder / f"{Path(name).stem or 'picture'}.jpg"
    picture.save(target, quality=95)
    return target
