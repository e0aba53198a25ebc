"""Modules whose weights stay packed (see common/packed.py): what a model gets in place of its linear layers and its table."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from .common.packed import PARTS, ROWS, Packing
from .common.tensors import WEIGHT
from .device import on_gpu
from .model.paligemma import PaliGemma


class PackedEmbedding(nn.QuantizedEmbedding):
    """MLX's, whose rows have the model's dtype: those of small floats (mxfp4, mxfp8, nvfp4) come as bfloat16 in MLX 0.32."""

    def __init__(self, rows: int, width: int, packing: Packing, dtype: mx.Dtype):
        super().__init__(rows, width, **packing.settings())
        self.dtype = dtype

    def __call__(self, x: mx.array) -> mx.array:
        """Int [...] -> [..., D]."""
        return super().__call__(x).astype(self.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        """[..., D] -> [..., V]."""
        return times(x, self)


class PackedLinear(nn.QuantizedLinear):
    """MLX's, with a product that is right on the CPU too (see `times`)."""

    def __call__(self, x: mx.array) -> mx.array:
        """[..., in] -> [..., out]."""
        product = times(x, self)
        return product + self.bias if "bias" in self else product


def pack_modules(model: PaliGemma, packings: Mapping[str, Packing], dtype: mx.Dtype) -> None:
    """Exchange modules for packed ones, whose weights are still to be loaded.

    Args:
        model: not packed yet.
        packings: by the path of a linear layer or an embedding.
        dtype: of the activations.
    """
    modules = dict(model.named_modules())
    for path, packing in packings.items():
        parent, _, name = path.rpartition(".")
        setattr(modules[parent], name, _packed_module(modules[path], packing, dtype))


def times(x: mx.array, layer: nn.Module, rows: slice | None = None) -> mx.array:
    """[..., in] times the weights of a packed layer, or some rows of them, -> [..., out].

    On the CPU MLX 0.32.4 adds up in the dtype of `x`: 4096 products of 1 and 1/2 come to 256 in bfloat16. There it gets float32.
    """
    parts = {name: layer[name] if rows is None else layer[name][rows] for name in ("weight", *PARTS) if layer.get(name) is not None}
    form = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    wide = x if on_gpu() else x.astype(mx.float32)
    return mx.quantized_matmul(wide, parts.pop("weight"), **parts, transpose=True, **form).astype(x.dtype)


def packed(name: str, matrix: mx.array, packing: Packing) -> dict[str, mx.array]:
    """A matrix [out, in] as the `weight`, `scales` and, in mode "affine", `biases` of its module; `name` is that of the weight."""
    module = name.removesuffix(WEIGHT)
    parts = mx.quantize(matrix, **packing.settings())
    return {f"{module}.{part}": found for part, found in zip(("weight", *PARTS), parts, strict=False)}


def unpacked(tensors: Mapping[str, mx.array], packing: Packing, dtype: mx.Dtype) -> mx.array:
    """The matrix [out, in] of a packed module, computed in float32 and rounded once to `dtype`.

    `tensors` are its "weight", "scales" and, in mode "affine", "biases", with or without its path before them.
    """
    parts = {name.rpartition(".")[2]: array for name, array in tensors.items()}
    shape = (len(parts["weight"]), parts["scales"].shape[1] * packing.group_size)
    matrix = mx.zeros(shape, dtype)
    for start in range(0, shape[0], ROWS):
        piece = _dequantized({name: array[start : start + ROWS] for name, array in parts.items()}, packing)
        matrix = mx.slice_update(matrix, piece.astype(dtype), mx.array([start]), axes=(0,))
        mx.eval(matrix)  # in place, and before the next piece: the whole is never there in float32, nor twice
    return matrix


def _dequantized(parts: Mapping[str, mx.array], packing: Packing) -> mx.array:
    """Of affine codes float32; of small floats bfloat16, which holds them exactly."""
    wide = {name: array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array for name, array in parts.items()}
    return mx.dequantize(wide["weight"], wide["scales"], wide.get("biases"), **packing.settings())


def _packed_module(module: nn.Module, packing: Packing, dtype: mx.Dtype) -> nn.Module:
    rows, width = module.weight.shape
    if isinstance(module, nn.Embedding):
        return PackedEmbedding(rows, width, packing, dtype)
    return PackedLinear(width, rows, "bias" in module, **packing.settings())
