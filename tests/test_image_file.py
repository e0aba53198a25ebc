"""Files of every kind are read, and every failure is one line that names the file."""

import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from pictures import encoded, error_of, file_with, noise, picture
from PIL import Image, features

from mlx_paligemma.common.errors import ImageError
from mlx_paligemma.common.image import open_image
from mlx_paligemma.common.image_file import heic_formats

PNG, JPEG = encoded(picture("RGB", 200, 100)), encoded(picture("RGB", 200, 100), "JPEG")
UNUSABLE_FILES = {  # how to make it from a folder, a word of the message
    "missing": (lambda folder: folder / "a.png", "no such file"),
    "empty name": (lambda _: "", "no such file"),
    "folder": (lambda folder: folder, "is a folder"),
    "text": (lambda folder: file_with(b"hello", folder, "a.png"), "not a picture"),
    "empty file": (lambda folder: file_with(b"", folder, "a.jpg"), "is empty (0 bytes)"),
    "truncated png": (lambda folder: file_with(PNG[: len(PNG) // 2], folder, "a.png"), "cut short"),
    "truncated jpeg": (lambda folder: file_with(JPEG[: len(JPEG) // 2], folder, "a.jpg"), "cut short"),
    "header only": (lambda folder: file_with(JPEG[:20], folder, "a.jpg"), "not a picture"),
    "truncated gif": (lambda folder: file_with(encoded(picture("P"), "GIF")[:-100], folder, "a.gif"), "cut short"),
    "truncated tiff": (lambda folder: file_with(encoded(picture("RGB"), "TIFF")[:200], folder, "a.tif"), "cut short"),
    "postscript": (lambda folder: file_with(encoded(picture("RGB"), "EPS"), folder, "a.eps"), "PostScript"),
    "name too long": (lambda _: "a" * 5000, "cannot be read"),
    "odd name": (lambda folder: folder / "a\nb\x1b\udcff.png", "no such file"),
}


@pytest.mark.parametrize("case", UNUSABLE_FILES)
def test_an_unusable_file_gives_one_line_that_names_it(case, tmp_path):
    make, words = UNUSABLE_FILES[case]
    path = make(tmp_path)
    message = error_of(path)
    assert words in message
    shown = "".join(c if c.isprintable() else "?" for c in str(path)) or "''"
    assert shown[:300] in message
    assert len(message) < 500


def test_a_file_without_permission_gives_one_line_that_names_it(tmp_path, monkeypatch):
    path = file_with(PNG, tmp_path, "secret.png")

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:  # root reads everything, so chmod would prove nothing in a container
        patch.setattr("builtins.open", refuse)
        message = error_of(path)
    assert "permission denied" in message
    assert str(path) in message


def test_too_many_pixels_give_one_line_that_names_the_file(tmp_path, monkeypatch):
    path = file_with(PNG, tmp_path, "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    message = error_of(path)
    assert "safety limit of 10000" in message
    assert str(path) in message


def test_every_cut_of_a_png_and_a_jpeg_is_a_picture_or_an_image_error():
    for whole in (encoded(picture("RGB", 9, 9)), encoded(picture("RGB", 9, 9), "JPEG")):
        for length in range(0, len(whole), 7):
            try:
                open_image(io.BytesIO(whole[:length]))
            except ImageError as error:
                assert str(error).isprintable()


def test_a_closed_pil_image_and_a_named_file_object_are_named(tmp_path):
    path = file_with(PNG, tmp_path, "closed.png")
    closed = Image.open(path)
    closed.close()
    assert str(path) in error_of(closed)
    with file_with(b"no picture", tmp_path, "text.png").open("rb") as file:
        assert "text.png" in error_of(file)


def animation(kind: str, **options) -> bytes:
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "lime", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)


@pytest.mark.parametrize(
    "kind",
    [
        "GIF",
        "PNG",
        "TIFF",
        pytest.param("WEBP", marks=pytest.mark.skipif(not features.check("webp"), reason="Pillow without WebP")),
    ],
)
def test_of_an_animation_the_first_frame_counts(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert open_image(io.BytesIO(animation(kind, **options))).getcolors() == [(48, (255, 0, 0))]


@pytest.mark.parametrize("size", [(1, 1), (20000, 10), (10, 20000)])
def test_a_picture_of_any_shape_is_read(size):
    assert np.array_equal(np.asarray(open_image(io.BytesIO(encoded(picture("RGB", *size))))), noise(*size))


def png_of(width: int, height: int, depth: int, color_type: int, rows: bytes) -> bytes:
    """A PNG that Pillow does not write itself."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_sixteen_bit_colour_png_keeps_its_high_bytes():
    row = b"\0" + struct.pack(">6H", 0, 0x1234, 0xFFFF, 0x8000, 0x7FFF, 0x00FF)
    assert np.asarray(open_image(io.BytesIO(png_of(2, 1, 16, 2, row)))).tolist() == [[[0, 0x12, 0xFF], [0x80, 0x7F, 0]]]


def test_a_picture_without_width_gives_one_line_that_names_the_file(tmp_path):
    path = file_with(png_of(0, 5, 8, 2, bytes(5)), tmp_path, "flat.png")
    assert str(path) in error_of(path)


def test_the_safety_limit_of_pillow_stays_on_and_its_message_says_how_to_raise_it(tmp_path):
    path = file_with(png_of(30000, 30000, 1, 0, b""), tmp_path, "bomb.png")
    message = error_of(path)
    assert "PIL.Image.MAX_IMAGE_PIXELS" in message
    assert str(path) in message


def test_a_picture_that_does_not_fit_into_memory_gives_one_line(tmp_path, monkeypatch):
    path = file_with(PNG, tmp_path, "large.png")

    def refuse(*_args, **_options):
        raise MemoryError

    monkeypatch.setattr(Image, "open", refuse)
    message = error_of(path)
    assert "memory" in message
    assert str(path) in message


@pytest.fixture
def heic():
    """Content of a HEIC file whose left half is red and whose right half is blue, 64 x 32."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: pip install 'mlx-paligemma[heic]'")
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32, 0] = pixels[:, 32:, 2] = 250
    content = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(content, quality=100)
    return content.getvalue()


@pytest.fixture
def without_heic(monkeypatch):
    """Pillow as it is before the first HEIC file."""
    for registry in (Image.OPEN, Image.MIME, Image.SAVE, Image.EXTENSION):
        monkeypatch.delitem(registry, "HEIF", raising=False)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])


def shows_the_halves(image: Image.Image) -> bool:
    (red, _, no_blue), (no_red, _, blue) = image.getpixel((16, 16)), image.getpixel((48, 16))
    return image.mode == "RGB" and image.size == (64, 32) and min(red, blue) > 200 and max(no_red, no_blue) < 50


def test_a_heic_file_is_read_from_a_path_and_from_an_open_file(heic, without_heic, tmp_path):
    path = file_with(heic, tmp_path, "photo.HEIC")
    for source in (io.BytesIO(heic), path, str(path), io.BytesIO(heic)):
        assert shows_the_halves(open_image(source))


def test_the_reader_of_heic_is_not_loaded_for_other_files(heic, without_heic):
    open_image(io.BytesIO(PNG))
    assert "HEIF" not in Image.OPEN
    open_image(io.BytesIO(heic))
    assert "HEIF" in Image.OPEN


def test_the_format_of_heic_has_pillows_name_where_it_can_be_read(heic, without_heic, monkeypatch):
    with Image.open(io.BytesIO(heic), formats=heic_formats()) as opened:
        assert (opened.format,) == heic_formats() == ("HEIF",)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert heic_formats() == ()


def test_a_turned_heic_file_is_upright(heic, without_heic):
    import pillow_heif

    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    stored = open_image(io.BytesIO(heic)).transpose(Image.Transpose.ROTATE_90)
    content = io.BytesIO()
    pillow_heif.from_pillow(stored).save(content, quality=100, exif=exif.tobytes())
    assert shows_the_halves(open_image(io.BytesIO(content.getvalue())))


def test_a_heic_file_without_its_reader_says_what_to_install(without_heic, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = file_with(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", tmp_path, "photo.heic")
    message = error_of(path)
    assert "pip install 'mlx-paligemma[heic]'" in message
    assert str(path) in message


@pytest.mark.parametrize("length", [30, 100, 400])
def test_a_heic_file_that_is_cut_gives_one_line_that_names_it(heic, without_heic, length, tmp_path):
    path = file_with(heic[:length], tmp_path, "cut.heic")
    assert str(path) in error_of(path)


def test_a_film_is_not_taken_for_a_heic_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = file_with(b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", tmp_path, "film.mp4")
    assert "not a picture" in error_of(path)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_an_avif_file_is_read():
    image = open_image(io.BytesIO(encoded(Image.new("RGB", (16, 16), "red"), "AVIF")))
    assert image.getpixel((8, 8))[0] > 240


def test_a_pipe_is_read_although_it_cannot_be_read_twice(heic, without_heic):
    for content, size in ((encoded(picture("RGB")), (20, 15)), (heic, (64, 32))):
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb") as end:
            end.write(content)  # a few kilobytes, which every system's pipe holds
        with os.fdopen(reading, "rb") as end:
            assert open_image(end).size == size
