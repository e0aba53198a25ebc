"""Checkpoints of big_vision, where PaliGemma was trained: one .npz, whole or in pieces, read as tensors by our names.

Such a file holds no settings: the variant is known by the names and shapes of its arrays (see big_vision_layout.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import numpy as np

from .big_vision_layout import POST_NORM, TABLE, Source, sources
from .config import PaliGemmaConfig
from .errors import CheckpointError
from .npz import NpzFile, NpzHeader, shown
from .npz_pieces import find_npz
from .tensors import EMBEDDING, TensorInfo, expected_shapes

ROW_MULTIPLE = 64  # of the embedding table's rows, as in the published conversions
MOST_LAYERS = 1000  # no model has so many; a damaged file may claim billions, and each has a name
_MEAN_ROWS = 4096  # rows that are widened to float32 at a time


def read_big_vision(path: Path) -> tuple[PaliGemmaConfig, dict[str, TensorInfo]]:
    """The model in a file or folder, and all its tensors by our names, with their shapes in PyTorch layout.

    The shapes are those that `big_vision_arrays` gives: the embedding table is longer than in the file.

    Raises:
        CheckpointError: anything is missing, damaged, unknown or of another shape; the message names file and array.
    """
    with _open(path) as file:
        contents = _read_contents(file)
    shapes = expected_shapes(contents.config)
    infos: dict[str, TensorInfo] = {}
    for source in contents.sources:
        key, dtype = contents.keys[source.array], contents.headers[source.array].dtype
        infos |= {name: TensorInfo(file.path, key, shapes[name], dtype) for name in contents.names(source)}
    return contents.config, infos


def big_vision_arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor under our name, in PyTorch layout, C-contiguous; float32, float16, or uint16 for bfloat16.

    About one layer's array is in memory at a time; the embedding table comes first. An array's checksum is compared with its
    last layer: the tensors are right once the iterator has ended.

    Raises:
        CheckpointError: as `read_big_vision`, or the numbers are damaged.
    """
    with _open(path) as file:
        contents = _read_contents(file)
        shapes = expected_shapes(contents.config)
        for source in contents.sources:
            names = contents.names(source)
            for block in _blocks(file, contents, source):
                for tensor in source.tensors(block):
                    name = next(names)
                    yield name, np.ascontiguousarray(tensor).reshape(shapes[name])
                del block, tensor  # before the next layer is read


@dataclass(frozen=True)
class _Contents:
    """A file that has passed all checks of names, types and shapes."""

    config: PaliGemmaConfig
    sources: Sequence[Source]
    keys: Mapping[str, str]  # an array's name in the file, where it may begin with params/
    headers: Mapping[str, NpzHeader]

    def names(self, source: Source) -> Iterator[str]:
        """Ours, of all tensors that a source gives."""
        layers = self.headers[source.array].shape[0] if source.stacked else 1
        return (name.format(layer) for layer in range(layers) for name in source.names)


def _open(path: Path) -> NpzFile:
    pieces = find_npz(path)
    if not pieces:
        raise CheckpointError(f"{path}: no npz file is there; give the path of a big_vision checkpoint, or of its folder")
    return NpzFile(pieces)


def _read_contents(file: NpzFile) -> _Contents:
    keys = _keys(file)
    known = sources(gemma2=POST_NORM in keys)
    arrays = {source.array for source in known}
    _refuse(file, "lacks", [source.array for source in known if source.array not in keys])
    _refuse(file, "has unknown", [key for name, key in keys.items() if name not in arrays])
    headers = {name: file.header(keys[name]) for name in keys}
    sizes = _sizes(file, known, headers)
    return _Contents(_config(file, sizes, POST_NORM in keys, headers[TABLE].dtype), known, keys, headers)


def _keys(file: NpzFile) -> dict[str, str]:
    """Names without params/, and those in the file; the optimizer's arrays are left out."""
    keys: dict[str, str] = {}
    for key in file.names:
        name = key.removeprefix("params/")
        if name in keys:
            raise CheckpointError(f"{file.path}: {shown(name)} is there twice (also under params/); remove one of the two")
        if not key.startswith("opt/"):
            keys[name] = key
    return keys


def _refuse(file: NpzFile, problem: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(f"{file.path} {problem} {shown(names[0])}{more}; it is no PaliGemma checkpoint of big_vision")


def _sizes(file: NpzFile, known: Sequence[Source], headers: Mapping[str, NpzHeader]) -> dict[str, int]:
    """The size of each axis, on which all arrays must agree."""
    sizes = {digit: int(digit) for digit in "123"}
    for source in known:
        shape = headers[source.array].shape
        complaint = f"{file.path}: {source.array} has shape {shape}"
        if len(shape) != len(source.axes) or 0 in shape:
            raise CheckpointError(f"{complaint}; it should have {len(source.axes)} axes and no empty one: save the model again")
        wanted = tuple(sizes.setdefault(axis, size) for axis, size in zip(source.axes, shape, strict=True))
        if wanted != shape:
            raise CheckpointError(f"{complaint}, other arrays ask for {wanted}; they do not belong together")
    return sizes


def _config(file: NpzFile, sizes: Mapping[str, int], gemma2: bool, dtype: str) -> PaliGemmaConfig:
    problem = _problem(sizes)
    try:
        if not problem:
            return PaliGemmaConfig.from_dict(_config_json(sizes, gemma2) | {"dtype": dtype})
    except CheckpointError as error:
        problem = str(error).removeprefix("config.json: ")
    raise CheckpointError(f"{file.path}: the shapes are those of no PaliGemma ({problem}); give another checkpoint")


def _problem(sizes: Mapping[str, int]) -> str:
    """What no PaliGemma can have, and config.json cannot even say."""
    if sizes["d"] != sizes["n"] * sizes["h"]:
        return f"{sizes['n']} vision heads of {sizes['h']} do not make a hidden_size of {sizes['d']}"
    if sizes["y"] != sizes["x"] or isqrt(sizes["s"]) ** 2 != sizes["s"]:
        return f"{sizes['s']} patches of {sizes['y']} x {sizes['x']} pixels make no square picture"
    most = max(sizes["L"], sizes["l"])
    return f"{most} layers" if most > MOST_LAYERS else ""


def _config_json(sizes: Mapping[str, int], gemma2: bool) -> dict[str, object]:
    text = {"model_type": "gemma2" if gemma2 else "gemma", "vocab_size": _rows(sizes["V"]), "hidden_size": sizes["D"],
            "intermediate_size": sizes["F"], "num_hidden_layers": sizes["L"], "num_attention_heads": sizes["N"],
            "num_key_value_heads": sizes["K"], "head_dim": sizes["H"]}  # fmt: skip
    vision = {"image_size": isqrt(sizes["s"]) * sizes["y"], "patch_size": sizes["y"], "hidden_size": sizes["d"],
              "intermediate_size": sizes["f"], "num_hidden_layers": sizes["l"], "num_attention_heads": sizes["n"]}  # fmt: skip
    return {"model_type": "paligemma", "text_config": text, "vision_config": vision, "image_token_index": sizes["V"]}


def _rows(tokens: int) -> int:
    """Rows of our embedding table: for the tokens, the image token, and one more, up to the next multiple."""
    return -(-(tokens + 2) // ROW_MULTIPLE) * ROW_MULTIPLE


def _blocks(file: NpzFile, contents: _Contents, source: Source) -> Iterator[np.ndarray]:
    """The layers of a stacked array, or the whole of another."""
    key, header = contents.keys[source.array], contents.headers[source.array]
    if source.stacked:
        yield from file.layers(key)
        return
    rows = contents.config.text.vocab_size if source.names == (EMBEDDING,) else header.shape[0]
    whole = header.empty((rows, *header.shape[1:]))
    given = whole[: header.shape[0]]
    file.read_into(given, key)
    if rows > len(given):
        whole[len(given) :] = _mean_row(given)  # its logit is the mean of all logits, and so never the largest
    yield whole


def _mean_row(table: np.ndarray) -> np.ndarray:
    """[V, D] -> [D], summed in float32."""
    starts = range(0, len(table), _MEAN_ROWS)
    total = sum(_widen(table[start : start + _MEAN_ROWS]).sum(0, dtype=np.float32) for start in starts)
    mean = np.asarray(total / np.float32(len(table)), np.float32)
    return _round_to_bfloat16(mean) if table.dtype == np.uint16 else mean.astype(table.dtype)


def _widen(numbers: np.ndarray) -> np.ndarray:
    """float32, float16, or bfloat16 as uint16 -> float32."""
    if numbers.dtype != np.uint16:
        return numbers.astype(np.float32, copy=False)
    return (numbers.astype(np.uint32) << 16).view(np.float32)


def _round_to_bfloat16(numbers: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 as uint16, to the nearest, ties to even."""
    bits = numbers.view(np.uint32)
    return (bits + (0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
