"""What packed arrays say about their form, and the numbers that they stand for: those that MLX makes of them."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_paligemma.common import packed
from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.packed import AFFINE_BITS, AFFINE_GROUPS, FLOAT_MODES, Packing, read_packing, unpack

WIDTH = 256
AFFINE = [Packing(bits, group) for bits in AFFINE_BITS for group in AFFINE_GROUPS]
SMALL_FLOATS = [Packing(*form, mode) for mode, form in FLOAT_MODES.items()]
NUMBERS = np.random.default_rng(0).normal(size=(7, WIDTH)).astype(np.float32)


def packed_by_mlx(numbers, packing) -> dict[str, mx.array]:
    parts = mx.quantize(mx.array(numbers), **packing.settings())
    return dict(zip(("weight", "scales", "biases"), parts, strict=False))


def unpacked_by_mlx(parts, packing) -> np.ndarray:
    found = mx.dequantize(parts["weight"], parts["scales"], parts.get("biases"), **packing.settings())
    return np.array(found.astype(mx.float32))


def shapes(parts) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in parts.items()}


def arrays(parts) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in parts.items()}


@pytest.mark.parametrize("packing", [*AFFINE, *SMALL_FLOATS], ids=str)
def test_the_numbers_are_exactly_those_of_mlx(packing):
    parts = packed_by_mlx(NUMBERS, packing)
    found = unpack(arrays(parts), packing)
    assert found.dtype == np.float32
    assert np.array_equal(found, unpacked_by_mlx(parts, packing))
    assert 0 < np.abs(found - NUMBERS).max() < 4  # or nothing was compared


@pytest.mark.parametrize("packing", AFFINE, ids=str)
def test_every_code_of_every_group_is_read(packing):
    """Also those that MLX's own quantisation never writes."""
    rng = np.random.default_rng(1)
    parts = {
        "weight": mx.array(rng.integers(0, 2**32, (5, WIDTH * packing.bits // 32), dtype=np.uint32)),
        "scales": mx.array(rng.normal(size=(5, WIDTH // packing.group_size)).astype(np.float32)),
        "biases": mx.array(rng.normal(size=(5, WIDTH // packing.group_size)).astype(np.float32)),
    }
    assert np.array_equal(unpack(arrays(parts), packing), unpacked_by_mlx(parts, packing))


@pytest.mark.parametrize("packing", SMALL_FLOATS, ids=str)
def test_every_small_float_with_every_scale_is_read(packing):
    """bfloat16, in which MLX gives these, has few of the numbers below 2 ** -126: those are left out."""
    codes = np.arange(WIDTH) % 2**packing.bits
    bits = np.unpackbits(codes.astype(np.uint8)[:, None], axis=1, bitorder="little")[:, : packing.bits].reshape(1, -1)
    row = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)
    scales = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, WIDTH // packing.group_size))
    parts = {"weight": np.broadcast_to(row, (256, row.shape[1])), "scales": scales}
    wanted = unpacked_by_mlx({name: mx.array(np.ascontiguousarray(array)) for name, array in parts.items()}, packing)
    found = unpack(parts, packing)
    normal = ~(np.abs(found) < 2.0**-126) | (found == 0)
    assert normal.mean() > 0.98
    assert np.array_equal(found[normal], wanted[normal], equal_nan=True)


def test_many_rows_are_unpacked_in_pieces_that_fit_together(monkeypatch):
    monkeypatch.setattr(packed, "ROWS", 3)
    parts = packed_by_mlx(NUMBERS, Packing(4, 64))
    assert np.array_equal(unpack(arrays(parts), Packing(4, 64)), unpacked_by_mlx(parts, Packing(4, 64)))


@pytest.mark.parametrize("packing", [*AFFINE, *SMALL_FLOATS], ids=str)
def test_the_form_is_read_from_the_shapes(packing):
    assert read_packing("module", shapes(packed_by_mlx(NUMBERS, packing)), WIDTH) == packing


@pytest.mark.parametrize("packing", [*AFFINE, *SMALL_FLOATS], ids=str)
def test_bits_per_weight_count_scales_and_biases(packing):
    parts = packed_by_mlx(NUMBERS, packing)
    halves = {name: array.astype(mx.bfloat16) if array.dtype == mx.float32 else array for name, array in parts.items()}
    assert packing.bits_per_weight == 8 * sum(array.nbytes for array in halves.values()) / NUMBERS.size


NONSENSE = {
    "a width of another matrix": {"weight": (7, 32), "scales": (7, 4), "biases": (7, 5)},
    "bits that no mode has": {"weight": (7, 56), "scales": (7, 4), "biases": (7, 4)},
    "parts of a bit": {"weight": (7, 33), "scales": (7, 4), "biases": (7, 4)},
    "groups of 16 in mode affine": {"weight": (7, 32), "scales": (7, 16), "biases": (7, 16)},
    "groups of 64 without biases": {"weight": (7, 32), "scales": (7, 4)},
    "groups that do not divide the width": {"weight": (7, 32), "scales": (7, 3), "biases": (7, 3)},
    "no scales": {"weight": (7, 32), "scales": (7, 0), "biases": (7, 0)},
    "scales of other rows": {"weight": (7, 32), "scales": (6, 4), "biases": (6, 4)},
    "no codes": {"weight": (7, 0), "scales": (7, 4), "biases": (7, 4)},
    "a vector": {"weight": (32,), "scales": (4,), "biases": (4,)},
    "a cube": {"weight": (7, 2, 16), "scales": (7, 4), "biases": (7, 4)},
    "numbers alone": {"weight": (), "scales": (), "biases": ()},
}


@pytest.mark.parametrize("given", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_refused_in_one_line_with_all_shapes(given):
    with pytest.raises(CheckpointError) as error:
        read_packing("model.safetensors: x.weight", given, WIDTH)
    message = str(error.value)
    assert message.startswith("model.safetensors: x.weight is packed in no known form") and "\n" not in message
    assert all(f"{name} {list(shape)}" in message for name, shape in given.items())


_SHAPES = st.lists(st.integers(0, 300), max_size=3).map(tuple)


@given(st.fixed_dictionaries({"weight": _SHAPES, "scales": _SHAPES}, optional={"biases": _SHAPES}), st.integers(1, 300))
def test_whatever_the_shapes_there_is_a_form_or_an_error_of_ours(given, width):
    try:
        packing = read_packing("module", given, width)
    except CheckpointError:
        return
    rows = given["weight"][0]
    assert given["weight"] == (rows, width * packing.bits // 32) and given["scales"] == (rows, width // packing.group_size)
