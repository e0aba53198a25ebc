"""Prints how pictures of every kind are read: their size and first pixel, or the one line that says what is wrong.

Usage: python scripts/image_modes.py
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mlx_paligemma.common.errors import ImageError
from mlx_paligemma.common.image import open_image

COLOR = (200, 100, 50)
PLAIN = Image.new("RGB", (40, 30), COLOR)


def main() -> None:
    """Make each file, open it, print a row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| kind of picture | result |\n|---|---|")
        for kind, path in [*usable(folder), *unusable(folder)]:
            print(f"| {kind} | {result(path).replace(f'{folder}/', '')} |")


def result(path: Path) -> str:
    """What `open_image` makes of a file."""
    try:
        image = open_image(path)
    except ImageError as error:
        return f"error: {error}"
    return f"{image.mode} {image.width}x{image.height}, first pixel {image.getpixel((0, 0))}"


def usable(folder: Path) -> Iterator[tuple[str, Path]]:
    """Kinds that are read, one file of each."""
    for mode, ending in [("RGB", "png"), ("L", "png"), ("LA", "png"), ("RGBA", "png"), ("1", "png"), ("P", "gif"), ("I;16", "png"),
                         ("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "jpg"), ("LAB", "tif"), ("F", "tif"), ("RGB", "jp2"),
                         ("RGB", "webp"), ("RGB", "avif"), ("RGB", "bmp"), ("RGB", "ico")]:  # fmt: skip
        yield f"{mode} {ending}", saved(of_mode(mode), folder / f"{mode.replace(';', '')}.{ending}")
    clear = Image.new("RGBA", PLAIN.size, (*COLOR, 0))
    yield "wholly transparent png", saved(clear, folder / "clear.png")
    yield "half transparent png", saved(Image.new("RGBA", PLAIN.size, (*COLOR, 128)), folder / "half.png")
    yield "palette png, transparent entry", saved(clear.convert("P"), folder / "palette.png", transparency=0)
    yield "16-bit RGB png", written(folder / "deep.png", png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 51400, 25700, 12850)))
    yield "jpg turned by EXIF", saved(PLAIN, folder / "turned.jpg", exif=turned())
    for ending in ("gif", "webp", "png"):
        frames = {"save_all": True, "append_images": [Image.new("RGB", PLAIN.size, "blue")]}
        yield f"animated {ending}", saved(PLAIN, folder / f"animated.{ending}", **frames)
    for size in [(1, 1), (20000, 10), (8000, 8000)]:
        yield f"png of {size[0]}x{size[1]}", saved(PLAIN.resize(size), folder / f"size-{size[0]}.png")
    if heic := heic_file(folder / "photo.heic"):
        yield "heic", heic


def unusable(folder: Path) -> Iterator[tuple[str, Path]]:
    """Kinds that give an error, one file of each."""
    whole = saved(PLAIN.effect_spread(9), folder / "whole.jpg").read_bytes()
    yield "missing", folder / "missing.png"
    yield "a folder", Path(tempfile.mkdtemp(dir=folder, prefix="folder-"))
    yield "0 bytes", written(folder / "empty.jpg", b"")
    yield "text", written(folder / "text.png", b"hello")
    yield "cut in the data", written(folder / "cut.jpg", whole[: len(whole) * 3 // 4])
    yield "cut in the head", written(folder / "head.jpg", whole[:20])
    yield "no width", written(folder / "flat.png", png(0, 5, 8, 2, bytes(5)))
    yield "900 megapixels", written(folder / "bomb.png", png(30000, 30000, 1, 0, b""))
    yield "PostScript", saved(PLAIN, folder / "a.eps")
    yield "film", written(folder / "film.mp4", b"\0\0\0\x18ftypisom\0\0\0\0isomavc1")
    yield "damaged heic", written(folder / "damaged.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


def of_mode(mode: str) -> Image.Image:
    """The plain picture in a mode, deep gray included."""
    if mode == "I;16":
        return Image.fromarray(np.full((30, 40), 51400, dtype=np.uint16))
    if mode == "F":
        return Image.fromarray(np.full((30, 40), 0.5, dtype=np.float32))
    return Image.frombytes("LAB", PLAIN.size, bytes(COLOR) * 1200) if mode == "LAB" else PLAIN.convert(mode)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    """The picture in a file of the path's format."""
    image.save(path, **options)
    return path


def written(path: Path, content: bytes) -> Path:
    """A file with this content."""
    path.write_bytes(content)
    return path


def turned() -> Image.Exif:
    """EXIF that asks for a quarter turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def heic_file(path: Path) -> Path | None:
    """The plain picture as HEIC; None without pillow-heif."""
    try:
        import pillow_heif
    except ImportError:
        return None
    pillow_heif.from_pillow(PLAIN).save(path, quality=100)
    return path


def png(width: int, height: int, depth: int, color_type: int, rows: bytes) -> bytes:
    """A PNG that Pillow does not write itself."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)) for kind, content in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


if __name__ == "__main__":
    main()
