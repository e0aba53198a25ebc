"""Pictures, files that hold them, and the one line that an unusable one causes."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_paligemma.common.errors import ImageError
from mlx_paligemma.common.image import open_image


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return values[..., 0] if channels == 1 else values


def picture(mode: str, width: int = 20, height: int = 15) -> Image.Image:
    """Noise in `mode`; its alpha takes every value."""
    plain = mode.split(maxsplit=1)[0]
    if plain in ("RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"):
        size = (width, height)
        image = Image.frombytes(plain, size, noise(width, height, len(Image.new(plain, (1, 1)).getbands())).tobytes())
    elif plain == "PA":
        image = Image.fromarray(noise(width, height)).convert("P").convert("PA")
        image.putalpha(Image.fromarray(noise(width, height, 1)))
    else:
        image = Image.fromarray(noise(width, height, 4)).convert(plain)
    if mode == "P with alphas":
        image.info["transparency"] = bytes(range(256))
    elif " with " in mode:
        image.info["transparency"] = image.getpixel((0, 0))
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def file_with(content: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def error_of(source, **options) -> str:
    """The message of the ImageError that `source` causes: one printable line."""
    with warnings.catch_warnings(), pytest.raises(ImageError) as caught:
        warnings.simplefilter("ignore", UserWarning)  # Pillow's own, on some damaged files
        open_image(source, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert caught.value.__context__ is None or caught.value.__suppress_context__, "a traceback would show Pillow's own error too"
    return message
