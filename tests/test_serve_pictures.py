"""Bytes to pictures: the pixels that `open_image` gives, within bounds, and one line for what is none."""

import io

import numpy as np
import pytest
from pictures import encoded, picture
from PIL import Image
from serving import SHAPES, data_uri

from mlx_paligemma.common.errors import ImageError
from mlx_paligemma.common.image import open_image
from mlx_paligemma.serve.api_errors import ApiError
from mlx_paligemma.serve.pictures import FORMATS, data_uri_bytes, decode_picture


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_a_file(kind, mode):
    data = encoded(picture(mode), kind)
    assert np.array_equal(decode_picture(data, "picture 1", 1000), open_image(io.BytesIO(data)))


def test_a_picture_is_turned_upright():
    image = picture("RGB")
    exif = image.getexif()
    exif[0x0112] = 6
    assert decode_picture(encoded(image, "JPEG", exif=exif), "picture 1", 1000).size == (image.height, image.width)


def test_pixels_are_counted_before_they_are_decoded(monkeypatch):
    small = encoded(picture("RGB"))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match="20 x 15 pixels, more than 299"):
        decode_picture(small, "picture 1", 299)


@pytest.mark.parametrize("data", [b"", b"x", SHAPES[:200], SHAPES[:-50], b"P6 1000000 1000000 255\n", b"%!PS-Adobe-3.0\n"])
def test_what_is_no_whole_picture_is_one_line_with_its_name(data):
    with pytest.raises(ImageError, match=r"^picture 7 (is|has) ") as caught:
        decode_picture(data, "picture 7", 10**9)
    assert "\n" not in str(caught.value) and "/" not in str(caught.value)


def test_a_data_address_holds_the_file():
    assert data_uri_bytes(data_uri(), "messages") == SHAPES
    assert data_uri_bytes("DATA:image/svg+xml;charset=utf-8;base64,YWJj", "messages") == b"abc"


@pytest.mark.parametrize(
    "address", ["data:,x", "data:image/png,x", "data:image/png;base64,a", "data:image/png;base64,\u00e4AAA", "x"]
)
def test_other_addresses_are_refused(address):
    with pytest.raises(ApiError) as caught:
        data_uri_bytes(address, "image")
    assert (caught.value.status, caught.value.param) == (400, "image")
