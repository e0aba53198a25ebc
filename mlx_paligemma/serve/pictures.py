"""Pictures of a request: bytes to 8-bit RGB, within bounds that are checked before anything is decoded."""

from __future__ import annotations

import base64
import binascii
import io
import re

from PIL import Image

from ..common.errors import ImageError
from ..common.image import to_rgb
from ..common.image_file import heic_formats, is_heic, read_image
from .api_errors import ApiError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # what is worth the risk of a reader that strangers reach
_DATA = re.compile(r"data:(image/[\w.+-]+)?(;[\w-]+=[\w.-]+)*;base64,", re.ASCII | re.IGNORECASE)


def decode_picture(data: bytes, name: str, max_pixels: int, heic: bool = False) -> Image.Image:
    """The picture in a file's bytes; `name` is what an error message calls it. `heic`: also phones' pictures in HEIC.

    Raises:
        ImageError: it is empty, no picture, damaged, or has too many pixels; these are counted in the file's head.
    """
    if not data:
        raise ImageError(f"{name} is empty (0 bytes); send it again")
    formats = (*FORMATS, *heic_formats()) if heic and is_heic(data) else FORMATS
    try:
        opened = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise ImageError(f"{name} has more than {max_pixels} pixels; shrink it") from None
    except Exception:  # noqa: BLE001 - a damaged file makes Pillow's readers raise nearly anything
        raise ImageError(f"{name} is not a picture that can be read; send PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF") from None
    with opened:
        if opened.width * opened.height > max_pixels:
            raise ImageError(f"{name} has {opened.width} x {opened.height} pixels, more than {max_pixels}; shrink it")
        return to_rgb(read_image(opened, name))


def data_uri_bytes(address: str, param: str) -> bytes:
    """What a `data:image/...;base64,` address holds (RFC 2397). Raises ApiError where it is none."""
    head = _DATA.match(address)
    if head is None:
        raise ApiError(400, "a data: address of a picture begins with data:image/png;base64, or the like", param)
    try:
        return base64.b64decode(address[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "the picture is not valid base64; send all of it, without line breaks", param) from None
