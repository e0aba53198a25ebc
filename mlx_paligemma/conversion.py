"""A checkpoint in, a folder out: another dtype, packed or unpacked, in MLX's form or in that of the Hub.

Tensors are read, changed and written one after the other: memory holds one shard of the result and what one tensor takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import mlx.core as mx

from .common.checkpoint import Checkpoint, check_dtype
from .common.config import PaliGemmaConfig, SiglipConfig
from .common.errors import CheckpointError, OptionError
from .common.packed import Packing
from .common.tensors import EMBEDDING, HEAD, HEAD_MODULE, PATCHES, POSITIONS, WEIGHT
from .packed_layers import packed, unpacked
from .quantization import Recipe, padded, plan
from .tensor_reader import Tensors, evaluated, is_tied, read_in_order

MLP_PARTS = {".mlp.fc1.weight": 0, ".mlp.fc1.bias": 0, ".mlp.fc2.weight": 1}  # the axis of the neurons
FORMS = ("mlx", "hf")


@dataclass(frozen=True)
class Conversion:
    """What is to become of a checkpoint."""

    checkpoint: Checkpoint
    to: str = "mlx"  # or "hf": unpacked, the patch kernel as PyTorch has it
    dtype: str | None = None  # of all floats; None: each as it is stored, with a recipe bfloat16 instead of float32
    recipe: Recipe | None = None  # None: packed weights stay so
    dequantize: bool = False
    check_finite: bool = False

    def __post_init__(self) -> None:
        """Raises OptionError where wishes exclude each other."""
        if self.to not in FORMS:
            raise OptionError(f"--to {self.to!r} is unknown; choose mlx or hf")
        if self.dtype is not None:
            check_dtype(self.dtype)
        if self.recipe and self.to == "hf":
            raise OptionError("--quantize packs weights as MLX reads them, and --to hf is for other programs; leave one out")
        if self.recipe and self.checkpoint.packings and not self.dequantize:
            raise OptionError(f"{self.checkpoint.folder} is quantised already; take the original, or add --dequantize")

    @cached_property
    def packings(self) -> dict[str, Packing]:
        """Of the result, by our names."""
        if self.recipe is not None:
            return plan(self.config, self.recipe)
        if self.dequantize or self.to == "hf":
            return {}
        gone = (POSITIONS, HEAD.removesuffix(WEIGHT) if self.config.tie_word_embeddings else "")
        return {module: packing for module, packing in self.checkpoint.packings.items() if module not in gone}

    @cached_property
    def config(self) -> PaliGemmaConfig:
        """Of the result: its vision MLP is padded where that lets it be packed, and no wider than it was where nothing is."""
        config = replace(self.checkpoint.config, tie_word_embeddings=_is_tied(self.checkpoint))
        if self.recipe is not None and self.recipe.vision:
            return padded(config)
        width, is_whole = SiglipConfig().intermediate_size, self.recipe is None and (self.dequantize or self.to == "hf")
        if is_whole and padded(_with_width(config, width)) == config and _is_padding(self.checkpoint, width):
            return _with_width(config, width)
        return config

    @property
    def float_dtype(self) -> str:
        """That of the result's embedding table, or of what stands for it."""
        stored = self.checkpoint.dtype
        return self.dtype or ("bfloat16" if self.recipe and stored == "float32" else stored)

    def tensors(self) -> Iterator[Tensors]:
        """The result by our names, tensor by tensor; a packed one with its scales and biases.

        Raises:
            CheckpointError: a number is NaN or infinite, where that is checked.
        """
        for tensors in read_in_order(self.checkpoint):
            evaluated(self.checkpoint, tensors)
            if self.check_finite:
                _check_finite(self.checkpoint, tensors)
            name = next(iter(tensors))
            if name != HEAD or not self.config.tie_word_embeddings:
                stays = self.recipe is None and name.removesuffix(WEIGHT) in self.packings
                yield self._changed(name, tensors if stays else {name: self._whole(tensors)})

    def _whole(self, tensors: Tensors) -> mx.array:
        return _unpacked(self.checkpoint, tensors, getattr(mx, self.float_dtype))

    def _changed(self, name: str, tensors: Tensors) -> Tensors:
        floats = {each: array for each, array in tensors.items() if mx.issubdtype(array.dtype, mx.floating)}
        tensors |= {each: array.astype(self._dtype(array)) for each, array in floats.items()}
        if len(tensors) > 1:
            return tensors
        array = _with_neurons(name, tensors[name], self.config.vision.intermediate_size)
        if name == PATCHES and self.to == "hf":
            array = array.transpose(0, 3, 1, 2)
        packing = self.packings.get(name.removesuffix(WEIGHT)) if name.endswith(WEIGHT) else None
        return {name: array} if packing is None else packed(name, array, packing)

    def _dtype(self, array: mx.array) -> mx.Dtype:
        if self.dtype is None and not (self.recipe and array.dtype == mx.float32):
            return array.dtype
        return getattr(mx, self.float_dtype)


def _with_neurons(name: str, array: mx.array, width: int) -> mx.array:
    """A tensor of the picture encoder's MLP with so many neurons: further ones are zeros, and do nothing since gelu(0) = 0."""
    axis = next((axis for part, axis in MLP_PARTS.items() if name.endswith(part)), None)
    if axis is None or not name.startswith("vision_tower."):
        return array
    missing = width - array.shape[axis]
    if missing < 0:
        return mx.split(array, [width], axis=axis)[0]
    return mx.pad(array, [(0, missing if each == axis else 0) for each in range(array.ndim)]) if missing else array


def _with_width(config: PaliGemmaConfig, width: int) -> PaliGemmaConfig:
    return replace(config, vision=replace(config.vision, intermediate_size=width))


def _is_padding(checkpoint: Checkpoint, width: int) -> bool:
    """Whether the neurons from `width` on do nothing in any layer: what goes into them is zero, and their bias too."""
    names = [name for name in checkpoint.tensors if name.startswith("vision_tower.") and ".mlp.fc1." in name]
    chosen = replace(checkpoint, tensors={name: checkpoint.tensors[name] for name in names})
    fc1 = (_unpacked(checkpoint, evaluated(checkpoint, tensors), mx.float32) for tensors in read_in_order(chosen))
    return not any(mx.any(tensor[width:] != 0).item() for tensor in fc1)


def _is_tied(checkpoint: Checkpoint) -> bool:
    """Whether there is no head, or one that is the embedding table once more."""
    if HEAD not in checkpoint.tensors:
        return True
    modules = (EMBEDDING.removesuffix(WEIGHT), HEAD.removesuffix(WEIGHT))
    names = [name for name in checkpoint.tensors if name.rpartition(".")[0] in modules]
    chosen = replace(checkpoint, tensors={name: checkpoint.tensors[name] for name in names})
    found = {name: array for tensors in read_in_order(chosen) for name, array in evaluated(checkpoint, tensors).items()}
    return is_tied({name: array for name, array in found.items() if name.startswith(HEAD_MODULE)}, found)


def _unpacked(checkpoint: Checkpoint, tensors: Tensors, dtype: mx.Dtype) -> mx.array:
    """A tensor as stored, or in `dtype` where it was packed."""
    name = next(iter(tensors))
    packing = checkpoint.packings.get(name.removesuffix(WEIGHT))
    return tensors[name] if packing is None else unpacked(tensors, packing, dtype)


def _check_finite(checkpoint: Checkpoint, tensors: Tensors) -> None:
    """Of packed small floats, some of whose codes are NaN, the numbers that they stand for."""
    name = next(iter(tensors))
    packing = checkpoint.packings.get(name.removesuffix(WEIGHT))
    floats = {each: array for each, array in tensors.items() if mx.issubdtype(array.dtype, mx.floating)}
    if packing is not None and packing.mode != "affine":
        floats[name] = unpacked(tensors, packing, mx.bfloat16)
    for each, array in floats.items():
        if not mx.isfinite(array).all().item():
            info = checkpoint.tensors[each]
            raise CheckpointError(f"{info.file}: {info.key} holds NaN or infinite numbers; take another copy of the checkpoint")
