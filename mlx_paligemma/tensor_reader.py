"""The tensors of a checkpoint as MLX arrays, read one after the other: for a model, and for another checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .common.big_vision import big_vision_arrays
from .common.checkpoint import Checkpoint
from .common.errors import CheckpointError
from .common.packed import PARTS
from .common.tensors import EMBEDDING, HEAD_MODULE, PATCHES, POSITIONS, WEIGHT
from .packed_layers import unpacked

Tensors = dict[str, mx.array]
READING = "[read]"  # what MLX's errors begin with when it reads a tensor
OPENING = {  # what is in them when it cannot open a file that is there and can be read, and what to do
    "bad_cast": "its path is not UTF-8; move it",
    "Failed to open": "too many files are open; raise `ulimit -n`",
    "exceeding the size": "it has become shorter meanwhile; copy it again",
}


def read_tensors(checkpoint: Checkpoint, dtype: mx.Dtype) -> Iterator[Tensors]:
    """For a model: each tensor under our name, in `dtype`; a packed one as it is, with its scales and biases.

    A packed table of positions is unpacked, since it is added and not multiplied. One tensor is in memory twice while it is
    cast: the largest come first, when there is room.
    """
    names = [name for name, _ in checkpoint.largest_first()]
    for tensors in _read(checkpoint, names):
        if POSITIONS in checkpoint.packings and POSITIONS + WEIGHT in tensors:
            cast = {POSITIONS + WEIGHT: unpacked(tensors, checkpoint.packings[POSITIONS], dtype)}
        else:
            cast = {
                name: array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array for name, array in tensors.items()
            }
        yield evaluated(checkpoint, cast)


def read_in_order(checkpoint: Checkpoint) -> Iterator[Tensors]:
    """For another checkpoint: each tensor under our name, as stored, with the scales and biases of a packed one."""
    yield from _read(checkpoint, list(checkpoint.tensors))


def evaluated(checkpoint: Checkpoint, tensors: Tensors) -> Tensors:
    """The same, by our names, in memory: until now they were only promised.

    Raises:
        CheckpointError: the file has become shorter since its header was read, or the disk fails.
    """
    try:
        mx.eval(tensors)
    except RuntimeError as error:
        if not str(error).startswith(READING):
            raise
        info = checkpoint.tensors[next(iter(tensors))]
        problem = f"{info.file}: {info.key} cannot be read; the file has changed meanwhile, or the disk fails"
        raise CheckpointError(f"{problem}: copy it again") from None
    return tensors


def is_tied(head: Tensors, weights: Tensors) -> bool:
    """Whether the head, with its scales and biases where it is packed, is the embedding table once more."""
    pairs = {name: weights.get(EMBEDDING.removesuffix(WEIGHT) + name.removeprefix(HEAD_MODULE)) for name in head}
    return all(table is not None and bool(mx.array_equal(head[name], table)) for name, table in pairs.items())


def _read(checkpoint: Checkpoint, names: list[str]) -> Iterator[Tensors]:
    """In the order of `names`, or in that of a big_vision file. The patch kernel is channels-last, as MLX has it."""
    if checkpoint.npz is not None:
        for name, array in big_vision_arrays(checkpoint.npz):
            yield {name: _channels_last(name, _as_mlx(array, checkpoint.tensors[name].dtype), checkpoint)}
        return
    files = {file: _open(file) for file in checkpoint.files()}
    for name in names:
        module, _, part = name.rpartition(".")
        if part in PARTS and module in checkpoint.packings:
            continue
        together = [name, *(f"{module}.{part}" for part in PARTS if module in checkpoint.packings and name.endswith(WEIGHT))]
        infos = {each: checkpoint.tensors[each] for each in together if each in checkpoint.tensors}
        yield {each: _channels_last(each, files[info.file].pop(info.key), checkpoint) for each, info in infos.items()}


def _open(file: Path) -> dict[str, Any]:
    """Its tensors, none of which is read yet."""
    try:
        tensors: Any = mx.load(str(file))
    except RuntimeError as error:
        hint = next((hint for text, hint in OPENING.items() if text in str(error)), f"{error}; save the model again as safetensors")
        raise CheckpointError(f"{file} cannot be opened by MLX: {hint}") from None
    return tensors


def _as_mlx(array: np.ndarray, dtype: str) -> mx.array:
    """NumPy has no bfloat16: such an array comes as uint16."""
    return mx.array(array).view(mx.bfloat16) if dtype == "bfloat16" else mx.array(array)


def _channels_last(name: str, array: mx.array, checkpoint: Checkpoint) -> mx.array:
    return array.transpose(0, 2, 3, 1) if name == PATCHES and not checkpoint.channels_last else array
