"""Weights of few bits, as MLX packs them: what a module's arrays say about their form, and the numbers they stand for.

A matrix [out, in] is cut along its rows into groups. `weight` holds the codes of a row as one stream of bits, lowest first, in
words of 32; `scales` one number per group; `biases` another one in mode "affine", where a code q stands for scale * q + bias.
In the other modes codes and scales are small floats, as the OCP specification of microscaling formats (MX, version 1.0) and
NVFP4 define them: e2m1, e4m3, and for MX's scales the power of two e8m0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import CheckpointError

WORD = 32  # bits
PARTS = ("scales", "biases")  # what a packed module has beside `weight`
ROWS = 4096  # that are unpacked at a time
AFFINE_BITS, AFFINE_GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
FLOAT_MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}  # bits and group size


@dataclass(frozen=True)
class Packing:
    """How the weights of one module are packed."""

    bits: int
    group_size: int
    mode: str = "affine"  # or one of FLOAT_MODES

    @property
    def bits_per_weight(self) -> float:
        """With what scales and biases take, of 16 bits each in mode "affine", else of 8."""
        return self.bits + (32 if self.mode == "affine" else 8) / self.group_size

    def settings(self) -> dict[str, Any]:
        """As MLX's functions take it, and as config.json says it."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


def read_packing(module: str, shapes: Mapping[str, tuple[int, ...]], width: int) -> Packing:
    """What the shapes of a module's arrays say.

    Args:
        module: what an error message calls it.
        shapes: of "weight", "scales" and, in mode "affine" alone, "biases".
        width: columns of the matrix that is packed.

    Raises:
        CheckpointError: no form has such shapes.
    """
    weight, scales = shapes["weight"], shapes["scales"]
    if len(weight) == len(scales) == 2 and weight[0] == scales[0] and scales[1] and not width % scales[1]:
        bits, group_size = WORD * weight[1] / width, width // scales[1]
        if "biases" in shapes:
            known = bits in AFFINE_BITS and group_size in AFFINE_GROUPS and shapes["biases"] == scales
            mode = "affine"
        else:
            mode = next((name for name, form in FLOAT_MODES.items() if form == (bits, group_size)), "")
            known = bool(mode)
        if known:
            return Packing(int(bits), group_size, mode)
    given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    raise CheckpointError(f"{module} is packed in no known form ({given}, for {width} columns); convert the checkpoint again")


def unpack(arrays: Mapping[str, np.ndarray], packing: Packing) -> np.ndarray:
    """The matrix float32 [out, in].

    Args:
        arrays: "weight" uint32 [out, in * bits / 32]; "scales" [out, in / group_size], uint8 in the modes of small floats and of
            any float type in mode "affine"; in that mode also "biases", like the scales.
        packing: of this module.
    """
    pieces = [
        {name: array[start : start + ROWS] for name, array in arrays.items()} for start in range(0, len(arrays["weight"]), ROWS)
    ]
    with np.errstate(over="ignore", invalid="ignore"):  # the largest scale of MX, 2 ** 128, is infinite, as MLX has it
        return np.concatenate([_unpack(piece, packing) for piece in pieces])


def _unpack(arrays: Mapping[str, np.ndarray], packing: Packing) -> np.ndarray:
    scales = arrays["scales"]
    codes = _codes(arrays["weight"], packing.bits).reshape(*scales.shape, packing.group_size)
    if packing.mode == "affine":
        values = codes.astype(np.float32) * _wide(scales) + _wide(arrays["biases"])
    else:
        values = (_E2M1 if packing.bits == 4 else _E4M3)[codes] * _scales(scales, packing.mode)
    return values.reshape(len(codes), -1)


def _codes(weight: np.ndarray, bits: int) -> np.ndarray:
    """uint32 [rows, words] -> uint8 [rows, in]."""
    stream = np.unpackbits(np.ascontiguousarray(weight.astype("<u4")).view(np.uint8), axis=1, bitorder="little")
    return np.packbits(stream.reshape(len(weight), -1, bits), axis=-1, bitorder="little")[..., 0]


def _wide(numbers: np.ndarray) -> np.ndarray:
    """[rows, groups] -> float32 [rows, groups, 1]."""
    return numbers.astype(np.float32)[..., None]


def _scales(codes: np.ndarray, mode: str) -> np.ndarray:
    """uint8 [rows, groups] -> float32 [rows, groups, 1]."""
    if mode == "nvfp4":
        return _E4M3[codes][..., None]
    return np.ldexp(np.float32(1), codes.astype(np.int32) - 127)[..., None]


def _small_floats(exponent: int, mantissa: int, bias: int) -> np.ndarray:
    """float32: the value of every code of a sign, so many bits of exponent and so many of mantissa."""
    codes = np.arange(2 ** (1 + exponent + mantissa))
    fraction, power = codes % 2**mantissa, codes >> mantissa & (2**exponent - 1)
    size = np.where(power == 0, 2 * fraction, 2**mantissa + fraction) * 2.0 ** (power - bias - mantissa)
    return np.where(codes >> (exponent + mantissa), -size, size).astype(np.float32)


_E2M1, _E4M3 = _small_floats(2, 1, 1), _small_floats(4, 3, 7)
_E4M3[[0x7F, 0xFF]] = np.nan
