"""A picture, wherever it comes from, as 8-bit RGB, and RGB as the numbers that the vision tower takes.

The arithmetic is that of transformers' SiglipImageProcessorPil with `do_convert_rgb=True`, bit for bit. It has no usable
rule for pictures of more than 8 bits per value (Pillow clips them to white): that rule is ours, see `to_rgb`.
"""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .download import download
from .errors import ImageError
from .image_file import read_image

ImageSource = str | os.PathLike[str] | BinaryIO | Image.Image | NDArray[Any]


def open_image(source: ImageSource, allow_download: bool = True) -> Image.Image:
    """The picture as 8-bit RGB, upright, fully decoded and independent of `source`.

    Args:
        source: a path, a binary file object (read from its start), an http(s) address, a PIL image, or an array [height, width]
            or [height, width, 1, 3 or 4] of bool, uint8, uint16 or floats. Of an animation the first frame counts.
            The EXIF orientation is applied to files and PIL images alike; a damaged EXIF block is ignored.
            HEIC files need the package pillow-heif, which then stays among Pillow's readers.
        allow_download: whether an address may be fetched.

    Raises:
        ImageError: one line that names the file and says what to do.
    """
    name = _name(source)
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source, name), name)
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        if not allow_download:
            raise ImageError(f"{name} would have to be downloaded, which is switched off; give a file on this machine")
        source = io.BytesIO(download(source, name))
    if isinstance(source, io.TextIOBase):
        raise ImageError(f"{name} is open as text; open it in binary mode, 'rb'")
    if not isinstance(source, (str, os.PathLike, Image.Image)) and not hasattr(source, "read"):
        kind = type(source).__name__
        raise ImageError(f"{kind} is no kind of picture; give a path, an address, a binary file, a PIL image or a NumPy array")
    return _to_rgb(read_image(source, name), name)


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` in mode RGB, transparency laid on white; `image` itself where nothing is to be done.

    8-bit modes convert as in transformers. Deeper ones, gray without exception, are scaled to 8 bits first and rounded:
    - 16 bits (I;16, I;16B; uint16 arrays): value / 65535 * 255.
    - 32-bit integers (I): as 16 bits if any value exceeds 255, otherwise as they are. Pillow reads some 16-bit files so.
    - floats (F; float arrays): times 255 if all lie in [0, 1], otherwise as they are.
    - Values above the range are white. Negative, infinite and NaN ones are refused: pixels normalised for a network
      (to [-1, 1], say) would silently come out black.
    16-bit RGB files are cut to 8 bits by Pillow's own reader.

    Raises:
        ImageError: no pixels, refused values, or a mode that Pillow cannot convert.
    """
    return _to_rgb(image, _name(image))


def pixel_values(image: Image.Image, size: int) -> NDArray[np.float32]:
    """float32 [size, size, 3] in [-1, 1]: stretched to the square, whatever its shape, by Pillow's antialiased bicubic filter."""
    resized = to_rgb(image).resize((size, size), resample=Image.Resampling.BICUBIC)
    levels = (np.arange(256) * (1 / 255)).astype(np.float32)  # the product in float64, the rest in float32: transformers' rounding
    levels = (levels - np.float32(0.5)) / np.float32(0.5)
    return levels.take(np.asarray(resized))


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels (width {image.width}, height {image.height}); choose another picture")
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_deep_gray(image, name))
    transparency = image.info.get("transparency")
    if image.mode == "RGB" and transparency is None:
        return image
    try:
        if "A" not in image.getbands() and transparency is None:  # Lab has an A too; through RGBA it stays opaque
            return image.convert("RGB")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    except (ValueError, TypeError):  # a mode without a way to RGB, or a transparency that is no colour of it
        raise ImageError(f"{name}: Pillow cannot convert mode {image.mode} to RGB; save it as PNG first") from None


def _deep_gray(image: Image.Image, name: str) -> NDArray[np.uint8]:
    values = np.asarray(image)
    transparent = values == image.info.get("transparency", -1)  # a PNG may name one gray so
    if image.mode == "I":
        _refuse_negative(values, name)
        values = values.clip(max=65535).astype(np.uint16 if values.max() > 255 else np.uint8)
    return np.where(transparent, np.uint8(255), _to_bytes(values, name))


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (1, 3, 4)):
        raise ImageError(f"{name} has shape {array.shape}; give [height, width] or [height, width, 1, 3 or 4 channels]")
    if not array.size:
        raise ImageError(f"{name} has no pixels (shape {array.shape}); choose another picture")
    pixels = _to_bytes(array, name)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _to_bytes(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    kind, width = values.dtype.kind, values.dtype.itemsize
    if kind == "b":
        return np.where(values, np.uint8(255), np.uint8(0))
    if (kind, width) == ("u", 1):
        return values.astype(np.uint8, copy=False)
    if (kind, width) == ("u", 2):
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 255 is 257
    if kind != "f":
        raise ImageError(f"{name} holds {values.dtype}; give uint8, uint16, bool, or floats in [0, 1] or [0, 255]")
    if not np.isfinite(values).all():
        raise ImageError(f"{name} holds NaN or infinite values; give floats in [0, 1] or [0, 255]")
    _refuse_negative(values, name)
    scaled = values.astype(np.float64) * (255 if values.max() <= 1 else 1)
    return np.minimum(scaled, 255).round().astype(np.uint8)


def _refuse_negative(values: NDArray[Any], name: str) -> None:
    if values.min() < 0:
        raise ImageError(f"{name} holds values below 0 (down to {values.min()}); scale them to [0, 1] or [0, 255] first")


def _name(source: object) -> str:
    """What an error message calls `source`, in one printable line."""
    match source:
        case np.ndarray():
            return "the array"
        case str() | os.PathLike():
            text = os.fspath(source)
        case Image.Image():
            text = getattr(source, "filename", None) or "the PIL image"
        case _:
            text = getattr(source, "name", None)
    if not isinstance(text, str):
        return "the file object"
    line = "".join(c if c.isprintable() else "?" for c in text) or "''"
    return line if len(line) <= 300 else line[:300] + "..."
