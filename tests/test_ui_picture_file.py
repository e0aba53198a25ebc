"""Uploaded files become pictures, and those that no browser shows become ones that it does."""

import numpy as np
import pytest
from pictures import encoded, file_with, picture
from PIL import Image

from mlx_paligemma.common.errors import ImageError
from mlx_paligemma.common.image import open_image
from mlx_paligemma.ui.picture_file import JPEG_SIDE, SHOWN_BY_BROWSERS, is_shown_by_browsers, read_picture, save_for_browsers

PIXELS = 10**6


def smooth(width=64, height=48):
    """A picture that JPEG and HEIC hardly change."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns * 3, rows * 4, rows + columns], axis=2).astype(np.uint8))


@pytest.fixture
def heic(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="HEIC needs the package pillow-heif")
    heif.from_pillow(smooth()).save(tmp_path / "photo.heic", quality=95)
    return tmp_path / "photo.heic"


@pytest.mark.parametrize("kind", [*SHOWN_BY_BROWSERS, "TIFF"])
def test_pixels_are_those_that_generate_reads(kind, tmp_path):
    file = file_with(encoded(smooth(), kind), tmp_path, "a b.bin")
    assert np.array_equal(read_picture(file, PIXELS), open_image(file))
    assert is_shown_by_browsers(file) == (kind != "TIFF")


def test_a_heic_picture_is_read_and_shown_as_jpeg(heic, tmp_path):
    found = read_picture(heic, PIXELS)
    assert np.array_equal(found, open_image(heic))
    assert not is_shown_by_browsers(heic)
    shown = save_for_browsers(tmp_path, found, heic.name)
    assert shown == tmp_path / "photo.jpg"
    assert is_shown_by_browsers(shown)
    assert np.abs(np.asarray(read_picture(shown, PIXELS), int) - np.asarray(smooth(), int)).mean() < 2


def test_a_tiff_in_another_mode_is_shown_as_jpeg(tmp_path):
    file = file_with(encoded(picture("CMYK"), "TIFF"), tmp_path, "scan.tiff")
    shown = save_for_browsers(tmp_path, read_picture(file, PIXELS), str(file))
    with Image.open(shown) as opened:
        assert (shown.name, opened.format, opened.size) == ("scan.jpg", "JPEG", (20, 15))


def test_a_picture_too_long_for_jpeg_is_shown_as_png(tmp_path):
    long = Image.new("RGB", (JPEG_SIDE + 1, 1), "red")
    shown = save_for_browsers(tmp_path, long, "long.tif")
    assert shown.name == "long.png"
    assert read_picture(shown, PIXELS).size == long.size
    assert save_for_browsers(tmp_path, long.crop((0, 0, JPEG_SIDE, 1)), "long.tif").name == "long.jpg"


@pytest.mark.parametrize("content", [b"", b"hello", encoded(smooth())[:-60], b"\0\0\0\x18ftypheic" + b"x" * 40])
def test_what_is_no_picture_is_one_line_with_its_name_and_no_path(content, tmp_path):
    file = file_with(content, tmp_path, "a.png")
    for name in (None, "b.png"):
        with pytest.raises(ImageError) as caught:
            read_picture(file, PIXELS, name)
        assert str(caught.value).startswith(f"{name or 'a.png'} ")
        assert "\n" not in str(caught.value) and "/" not in str(caught.value)


def test_pixels_are_counted_before_they_are_decoded_also_of_heic(heic, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match="64 x 48 pixels, more than 3071"):
        read_picture(heic, 3071)


def test_a_file_that_has_gone_is_one_line_without_its_path(tmp_path):
    with pytest.raises(ImageError, match=r"^gone.png cannot be read \(No such file or directory\)"):
        read_picture(tmp_path / "gone.png", PIXELS)
    assert not is_shown_by_browsers(tmp_path / "gone.png")
