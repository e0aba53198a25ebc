"""Pictures are read from anywhere, become RGB as in transformers, and every failure is one line that names the file."""

import functools
import http.server
import io
import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_paligemma.common import image as image_module
from mlx_paligemma.common.errors import ImageError
from mlx_paligemma.common.image import open_image, pixel_values, to_rgb

SIZES = [  # width, height
    (1, 1), (1, 2), (2, 1), (3, 3), (1, 50), (50, 1), (7, 5), (13, 17), (31, 64), (99, 101),
    (112, 112), (224, 224), (223, 225), (900, 3), (3, 900), (640, 12), (12, 640), (333, 250), (448, 448), (701, 499),
]  # fmt: skip
MODES = ["RGB", "RGB with transparency", "L", "L with transparency", "LA", "RGBA", "P", "P with one transparent colour",
         "P with alphas", "PA", "1", "CMYK", "YCbCr", "HSV", "LAB"]  # fmt: skip


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


def file_with(content: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


PNG, JPEG = encoded(picture("RGB", 200, 100)), encoded(picture("RGB", 200, 100), "JPEG")
UNUSABLE_FILES = {  # how to make it from a folder, a word of the message
    "missing": (lambda folder: folder / "a.png", "no such file"),
    "empty name": (lambda _: "", "no such file"),
    "folder": (lambda folder: folder, "is a folder"),
    "text": (lambda folder: file_with(b"hello", folder, "a.png"), "not a picture"),
    "empty file": (lambda folder: file_with(b"", folder, "a.jpg"), "not a picture"),
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


def error_of(source, **options) -> str:
    """The message of the ImageError that `source` causes: one printable line."""
    with warnings.catch_warnings(), pytest.raises(ImageError) as caught:
        warnings.simplefilter("ignore", UserWarning)  # Pillow's own, on some damaged files
        open_image(source, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert caught.value.__context__ is None or caught.value.__suppress_context__, "a traceback would show Pillow's own error too"
    return message


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
        (PNG, "bytes"),
    ],
    ids=["no width", "no height", "mode La", "negative", "NaN", "text file", "bytes that are no picture", "None", "list", "bytes"],
)
def test_other_unusable_sources_give_one_line_that_says_why(source, words):
    assert words in error_of(source)


def test_a_transparency_that_is_no_colour_gives_one_line():
    image = picture("RGB")
    image.info["transparency"] = b"odd"
    assert "cannot convert mode RGB" in error_of(image)


def test_a_closed_pil_image_and_a_named_file_object_are_named(tmp_path):
    path = file_with(PNG, tmp_path, "closed.png")
    closed = Image.open(path)
    closed.close()
    assert str(path) in error_of(closed)
    with file_with(b"no picture", tmp_path, "text.png").open("rb") as file:
        assert "text.png" in error_of(file)


class Site(http.server.BaseHTTPRequestHandler):
    """A few addresses, good and bad."""

    stop = threading.Event()

    def do_GET(self):
        redirects = {"/moved": "/cat.png", "/to-ftp": "ftp://127.0.0.1/a.png", "/to-file": f"file://{__file__}", "/loop": "/loop"}
        if self.path in redirects:
            self.answer(302, b"", Location=redirects[self.path])
        elif self.path == "/drip":
            self.answer(200, b"", **{"Content-Length": "1000000"})
            while not self.stop.wait(0.05):
                self.wfile.write(b"x")
        elif self.path == "/stated-too-large":
            self.answer(200, PNG, **{"Content-Length": "10000000"})
        elif self.path == "/cut":
            self.answer(200, PNG[:500], **{"Content-Length": str(len(PNG))})
        else:
            bodies = {"/cat.png": PNG, "/k%C3%B6ln%20x.png?a=b&c=%25": PNG, "/page": b"<html>", "/large": bytes(100_000)}
            self.answer(200 if self.path in bodies else 404, bodies.get(self.path, b"nothing here"))

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args):
        """Tests are quiet."""


@pytest.fixture
def site(monkeypatch):
    """Address of a server on this machine that no proxy stands before."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    stop = threading.Event()
    handler = type("QuietSite", (Site,), {"stop": stop})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        stop.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/cat.png", "/moved", "/köln x.png?a=b&c=%25"])
def test_an_address_is_downloaded(site, path):
    assert np.array_equal(np.asarray(open_image(site + path)), np.asarray(picture("RGB", 200, 100)))
    assert open_image(site.replace("http", "HTTP") + path).size == (200, 100)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/missing", "404"),
        ("/page", "not a picture"),
        ("/cut", "cut short"),
        ("/to-ftp", "unknown url type: ftp"),
        ("/to-file", "not allowed"),
        ("/loop", "302"),
    ],
)
def test_a_bad_address_gives_one_line_that_names_it(site, path, words):
    message = error_of(site + path)
    assert words in message
    assert site + path in message


def test_an_address_is_refused_when_downloads_are_off(site):
    message = error_of(f"{site}/cat.png", allow_download=False)
    assert "switched off" in message
    assert f"{site}/cat.png" in message


@pytest.mark.parametrize("path", ["/large", "/stated-too-large"])
def test_a_download_stops_at_its_size_limit(site, path, monkeypatch):
    monkeypatch.setattr(image_module, "MAX_DOWNLOAD_BYTES", 99_999)
    assert "larger than 99999 bytes" in error_of(site + path)


def test_a_download_that_drips_stops_at_its_time_limit(site, monkeypatch):
    monkeypatch.setattr(image_module, "DOWNLOAD_TIMEOUT", 0.3)
    assert "not done after 0.3 s" in error_of(f"{site}/drip")


@pytest.mark.parametrize(
    "address", ["http://", "http://[bad/a", "http://127.0.0.1:port/a", "http://127.0.0.1:1/a\r\nb", "http://\udcff"]
)
def test_an_address_that_leads_nowhere_gives_one_line(address, monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    assert "cannot be downloaded" in error_of(address)
