"""Pictures are read from anywhere and become RGB as in transformers; an unusable source gives one line that says why."""

import io

import numpy as np
import pytest
from pictures import encoded, error_of, noise, picture
from PIL import Image

from mlx_paligemma.common.image import open_image, pixel_values, to_rgb

SIZES = [  # width, height
    (1, 1), (1, 2), (2, 1), (3, 3), (1, 50), (50, 1), (7, 5), (13, 17), (31, 64), (99, 101),
    (112, 112), (224, 224), (223, 225), (900, 3), (3, 900), (640, 12), (12, 640), (333, 250), (448, 448), (701, 499),
]  # fmt: skip
MODES = ["RGB", "RGB with transparency", "L", "L with transparency", "LA", "RGBA", "P", "P with one transparent colour",
         "P with alphas", "PA", "1", "CMYK", "YCbCr", "HSV", "LAB"]  # fmt: skip


@pytest.fixture(scope="module")
def hf_pixels():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    processor = getattr(transformers, "SiglipImageProcessorPil", None)
    if processor is None:
        pytest.skip("this transformers has no SiglipImageProcessorPil (5.23 has)")

    def pixels(image: Image.Image, size: int) -> np.ndarray:
        shape, half = {"height": size, "width": size}, [0.5, 0.5, 0.5]
        process = processor(do_convert_rgb=True, size=shape, image_mean=half, image_std=half, resample=3)
        return process(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)

    return pixels


@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_those_of_transformers_bit_for_bit(mode, hf_pixels):
    for width, height in SIZES:
        for size in (112, 224):
            expected = hf_pixels(picture(mode, width, height), size)
            ours, through_rgb = (
                pixel_values(picture(mode, width, height), size),
                pixel_values(to_rgb(picture(mode, width, height)), size),
            )
            assert ours.dtype == expected.dtype == np.float32
            assert np.array_equal(ours, expected), f"{width}x{height} to {size}"
            assert np.array_equal(through_rgb, expected), f"{width}x{height} to {size}"


def test_pixels_are_those_of_transformers_at_448_and_896(hf_pixels):
    for size in (448, 896):
        assert np.array_equal(pixel_values(picture("RGB", 701, 499), size), hf_pixels(picture("RGB", 701, 499), size))


def test_open_image_of_a_file_gives_the_rgb_of_transformers(tmp_path, hf_pixels):
    files = "PNG RGBA, PNG P with alphas, PNG LA, PNG 1, JPEG CMYK, GIF P, BMP L"
    for kind, mode in (file.split(maxsplit=1) for file in files.split(", ")):
        path = tmp_path / f"a.{kind.lower()}"
        path.write_bytes(encoded(picture(mode), kind))
        with Image.open(path) as reference:
            assert np.array_equal(pixel_values(open_image(path), 28), hf_pixels(reference, 28)), (kind, mode)


def test_pixels_span_minus_one_to_one():
    ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 256, axis=0).repeat(3, axis=2))
    values = pixel_values(ramp, 256)
    assert values.shape == (256, 256, 3)
    assert values.min() == -1
    assert values.max() == 1
    assert np.allclose(values[0, :, 0], np.arange(256) / 127.5 - 1, atol=1e-7, rtol=0)  # one float32 rounding


def test_a_wide_picture_is_stretched_and_not_cropped():
    halves = np.zeros((10, 400, 3), dtype=np.uint8)
    halves[:, 200:] = 255
    values = pixel_values(Image.fromarray(halves), 56)
    assert (values[:, :27] == -1).all()
    assert (values[:, 29:] == 1).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P with alphas", "RGB with transparency", "PA"])
def test_transparent_pixels_turn_white(mode):
    image = picture(mode)
    if "A" in image.getbands():
        image.putalpha(0)
    elif image.mode == "P":
        image.info["transparency"] = bytes(256)
    else:
        image = Image.new("RGB", (4, 4), (10, 20, 30))
        image.info["transparency"] = (10, 20, 30)
    assert (np.asarray(open_image(image)) == 255).all()


def stored_as(orientation: int, upright: np.ndarray) -> np.ndarray:
    """The array that a camera stores for `upright` under an EXIF orientation, from the EXIF standard's table."""
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_files_and_pil_images(orientation, tmp_path):
    upright = noise(9, 5)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    path.write_bytes(encoded(Image.fromarray(np.ascontiguousarray(stored_as(orientation, upright))), exif=exif))
    with Image.open(path) as pil_image:
        for source in (path, str(path), io.BytesIO(path.read_bytes()), pil_image):
            assert np.array_equal(np.asarray(open_image(source)), upright)


def test_a_damaged_exif_block_is_ignored():
    image = picture("RGB")
    image.info["exif"] = b"Exif\0\0not a TIFF header"
    assert np.array_equal(np.asarray(open_image(image)), np.asarray(image))


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bit_arrays_are_divided_by_65535_and_rounded(dtype):
    values = np.arange(65536, dtype=dtype).reshape(256, 256)
    expected = np.rint(np.arange(65536) / 65535 * 255).reshape(256, 256)
    assert np.array_equal(np.asarray(open_image(values))[..., 0], expected)
    colour = np.stack([values, values[::-1], values.T], axis=-1)
    assert np.array_equal(np.asarray(open_image(colour)), np.stack([expected, expected[::-1], expected.T], axis=-1))


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bit_pictures_keep_their_shades(mode, tmp_path):
    values = np.array([[0, 128, 129, 257], [32767, 32768, 65406, 65535]], dtype="<u2")
    expected = [[0, 0, 1, 1], [127, 128, 254, 255]]
    image = Image.frombytes(mode, (4, 2), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    path = tmp_path / "deep.tif"
    path.write_bytes(encoded(image, "TIFF"))
    for source in (image, path):
        assert np.array_equal(np.asarray(open_image(source)), np.repeat(np.array(expected)[..., None], 3, axis=2))


def test_the_transparent_gray_of_a_sixteen_bit_png_turns_white():
    image = Image.frombytes("I;16", (2, 1), np.array([300, 20000], dtype="<u2").tobytes())
    assert np.asarray(open_image(io.BytesIO(encoded(image, transparency=300))))[..., 0].tolist() == [[255, 78]]


def test_integer_pictures_count_as_sixteen_bit_only_above_255():
    for values, expected in [([0, 7, 255], [0, 7, 255]), ([0, 256, 65535], [0, 1, 255]), ([0, 65536, 2**31 - 1], [0, 255, 255])]:
        image = Image.frombytes("I", (3, 1), np.array(values, dtype="<i4").tobytes())
        assert np.asarray(to_rgb(image))[0, :, 0].tolist() == expected


def test_floats_in_0_to_1_are_scaled_and_others_taken_as_they_are():
    for values, expected in [([0, 0.5, 1], [0, 128, 255]), ([0, 1.4, 254.6], [0, 1, 255]), ([0, 100, 1e30], [0, 100, 255])]:
        floats = np.array([values], dtype=np.float32)
        assert np.asarray(to_rgb(Image.fromarray(floats)))[0, :, 0].tolist() == expected
        assert np.asarray(open_image(floats))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_8_bit_values_survive_the_way_through_floats(dtype):
    values = noise(30, 20)
    values[0, 0], values[0, 1] = 255, 2  # some value above 1 even after the division is undone
    assert np.array_equal(np.asarray(open_image((values / 255).astype(dtype))), values)
    assert np.array_equal(np.asarray(open_image(values.astype(dtype))), values)


def test_arrays_of_each_shape_become_the_rgb_that_pil_makes_of_them():
    for channels, shape in [(1, (6, 5)), (1, (6, 5, 1)), (3, (6, 5, 3)), (4, (6, 5, 4))]:
        values = noise(5, 6, channels)
        assert np.array_equal(np.asarray(open_image(values.reshape(shape))), np.asarray(to_rgb(Image.fromarray(values))))
    strided = noise(10, 12)[::2, ::-2]
    assert np.array_equal(np.asarray(open_image(strided)), strided)


def test_true_is_white_in_boolean_arrays():
    assert np.asarray(open_image(np.array([[True, False]])))[0].tolist() == [[255, 255, 255], [0, 0, 0]]


def test_the_result_is_independent_of_its_source():
    pil_image, array = picture("RGB"), noise(4, 4)
    before = np.asarray(pil_image).copy()
    from_pil, from_array = open_image(pil_image), open_image(array)
    from_pil.paste((1, 2, 3), (0, 0, 4, 4))
    array[:] = 0
    assert np.array_equal(np.asarray(pil_image), before)
    assert np.array_equal(np.asarray(from_array), noise(4, 4))


def test_a_file_object_is_read_from_its_start_and_left_open():
    file = io.BytesIO(encoded(picture("RGB")))
    file.seek(10)
    assert np.array_equal(np.asarray(open_image(file)), np.asarray(picture("RGB")))
    assert not file.closed


def test_a_picture_is_never_opened_lazily(tmp_path):
    path = tmp_path / "gone.png"
    path.write_bytes(encoded(picture("RGB")))
    image = open_image(path)
    path.unlink()
    assert np.array_equal(np.asarray(image), np.asarray(picture("RGB")))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((3, 224, 224), np.uint8), "shape (3, 224, 224)"),
        (np.zeros((4, 4, 2), np.uint8), "shape (4, 4, 2)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "shape (1, 4, 4, 3)"),
        (np.zeros(7, np.uint8), "shape (7,)"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5, 0), np.float32), "no pixels"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4), np.complex64), "complex64"),
        (np.array([["a"]]), "<U1"),
        (np.array([[0.5, np.nan]]), "NaN"),
        (np.array([[0.5, np.inf]], np.float16), "NaN or infinite"),
        (np.array([[-1.0, 1.0]]), "below 0"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_an_unusable_array_gives_one_line_that_says_why(source, words):
    message = error_of(source)
    assert words in message
    assert "the array" in message


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Image.new("RGB", (0, 5)), "no pixels"),
        (Image.new("L", (5, 0)), "no pixels"),
        (Image.new("LA", (2, 2)).convert("La"), "mode La"),
        (Image.frombytes("I", (1, 1), np.array([-5], "<i4").tobytes()), "below 0"),
        (Image.fromarray(np.array([[np.nan]], np.float32)), "NaN"),
        (io.StringIO("text"), "binary mode"),
        (io.BytesIO(b"text"), "not a picture"),
        (None, "NoneType"),
        ([1, 2], "list"),
        (encoded(picture("RGB")), "bytes"),
    ],
    ids=["no width", "no height", "mode La", "negative", "NaN", "text file", "bytes that are no picture", "None", "list", "bytes"],
)
def test_other_unusable_sources_give_one_line_that_says_why(source, words):
    assert words in error_of(source)


def test_a_transparency_that_is_no_colour_gives_one_line():
    image = picture("RGB")
    image.info["transparency"] = b"odd"
    assert "cannot convert mode RGB" in error_of(image)
