"""Uploaded pictures: from a file to 8-bit RGB, with its pixels counted before they are decoded."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..common.errors import ImageError
from ..serve.pictures import decode_picture

JPEG_SIDE = 65_500  # pixels, that libjpeg writes at most
SHOWN_BY_BROWSERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")


def read_picture(file: Path, max_pixels: int, name: str | None = None) -> Image.Image:
    """The picture in a file. Raises ImageError, whose message has `name`: if not given, the file's without its folder."""
    name = name or file.name
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ImageError(f"{name} cannot be read ({error.strerror}); upload it again") from None
    return decode_picture(data, name, max_pixels, heic=True)


def is_shown_by_browsers(file: Path) -> bool:
    """Whether a page can show a picture that can be read."""
    try:
        with Image.open(file, formats=SHOWN_BY_BROWSERS):
            return True
    except (OSError, ValueError):
        return False


def save_for_browsers(folder: Path, picture: Image.Image, name: str) -> Path:
    """A JPEG of it, or a PNG where it is too long for one."""
    is_long = max(picture.size) > JPEG_SIDE
    target = folder / f"{Path(name).stem or 'picture'}{'.png' if is_long else '.jpg'}"
    picture.save(target, quality=95, subsampling=0)
    return target
