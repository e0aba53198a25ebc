"""A mask codec's file is read whole, in the published layout, or one line says what is wrong with it."""

import io
import zipfile

import numpy as np
import pytest

from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.mask_codec import FILE_NAME, MaskCodecConfig, read_mask_codec

SMALL = MaskCodecConfig(widths=(2, 3, 4, 5), embedding_dim=6)


def arrays(config=SMALL) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in config.shapes().items()}


def npz(content) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    return buffer.getvalue()


def without(*names):
    return {name: array for name, array in arrays().items() if name not in names}


def test_the_published_file_has_49_arrays_and_8_479_556_bytes():
    shapes = MaskCodecConfig().shapes()
    assert len(shapes) == 49
    assert len(npz({name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()})) == 8_479_556


def test_a_codec_of_any_width_is_read_under_our_names(tmp_path):
    path = tmp_path / FILE_NAME
    path.write_bytes(npz(arrays()))
    config, read = read_mask_codec(path)
    assert config == SMALL
    assert len(read) == 47
    assert np.array_equal(read["vq_vae.embedding"], arrays()["_vq_vae._embedding"])
    assert all(np.array_equal(read[name], array) for name, array in arrays().items() if "_vq_vae" not in name)


def test_arrays_of_other_floats_become_float32(tmp_path):
    path = tmp_path / FILE_NAME
    path.write_bytes(npz({name: array.astype(np.float16) for name, array in arrays().items()}))
    assert {array.dtype for array in read_mask_codec(path)[1].values()} == {np.dtype(np.float32)}


def damaged(content: bytes) -> bytes:
    """The archive with bytes in its middle changed: its directory is whole, a member is not."""
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 255 for byte in content[middle : middle + 64]) + content[middle + 64 :]


def compressed_and_damaged() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays())
    return damaged(buffer.getvalue())


def plain_npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def zip_of(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


UNREADABLE = {
    "empty": b"",
    "text": b"version https://git-lfs.github.com/spec/v1\n",
    "a pickle": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.",
    "a single array": plain_npy(),
    "cut short": npz(arrays())[:5000],
    "damaged": damaged(npz(arrays())),
    "compressed and damaged": compressed_and_damaged(),
    "objects": npz(arrays() | {"encoder.0.bias": np.array([None, {}])}),
    "words": npz(arrays() | {"encoder.0.bias": np.array(["a", "b"])}),
    "a zip of something else": zip_of("encoder.0.bias", b"text"),
    "a damaged member": zip_of("encoder.0.bias.npy", b"\x93NUMPY\x01\x00\xff\xff"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_is_no_codec_is_named_in_one_line(tmp_path, case):
    (tmp_path / FILE_NAME).write_bytes(UNREADABLE[case])
    with pytest.raises(CheckpointError, match="is not a readable mask codec") as error:
        read_mask_codec(tmp_path / FILE_NAME)
    assert str(tmp_path / FILE_NAME) in str(error.value)
    assert "gs://big_vision/paligemma/vae-oid.npz" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / FILE_NAME, tmp_path):
        with pytest.raises(CheckpointError, match="is not a readable mask codec") as error:
            read_mask_codec(path)
        assert str(error.value).startswith(f"{path} ")


WRONG = {
    "one array is missing": (without("decoder.8.weight"), "array decoder.8.weight is missing, should be (4, 3, 4, 4)"),
    "an array that names the widths is missing": (without("encoder.2.weight"), "has no array encoder.2.weight"),
    "the codebook is missing": (without("_vq_vae._embedding"), "has no array _vq_vae._embedding"),
    "all are missing": ({"x": np.zeros(1)}, "has no array encoder.0.weight; it is not a mask codec"),
    "one array is unknown": (arrays() | {"decoder.14.bias": np.zeros(1)}, "array decoder.14.bias is (1,), should be absent"),
    "a shape is wrong": (arrays() | {"decoder.12.bias": np.zeros(2)}, "array decoder.12.bias is (2,), should be (1,)"),
    "a kernel is transposed": (arrays() | {"decoder.6.weight": np.zeros((4, 5, 4, 4))}, "decoder.6.weight is (4, 5, 4, 4)"),
    "a kernel is a number": (arrays() | {"encoder.0.weight": np.zeros(())}, "has no array encoder.0.weight"),
    "the codebook is flat": (arrays() | {"_vq_vae._embedding": np.zeros(128)}, "_vq_vae._ema_w is (128, 6), should be (128, 128)"),
    "the codebook is too short": (
        arrays(MaskCodecConfig((2, 3, 4, 5), 6, 64)),
        "codebook of 64 rows, but there are 128 <seg> tokens",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_codec_of_another_layout_is_refused_with_the_array_that_differs(tmp_path, case):
    content, words = WRONG[case]
    (tmp_path / FILE_NAME).write_bytes(npz(content))
    with pytest.raises(CheckpointError) as error:
        read_mask_codec(tmp_path / FILE_NAME)
    assert words in str(error.value)
    assert str(tmp_path / FILE_NAME) in str(error.value)
    assert "\n" not in str(error.value)
