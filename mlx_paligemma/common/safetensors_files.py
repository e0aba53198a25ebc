"""The safetensors files of a checkpoint's folder, and what their headers say. No tensor is read here."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .errors import CheckpointError
from .tensors import DTYPES, PACKED_DTYPES, TensorInfo, canonical_name

INDEX_NAME = "model.safetensors.index.json"
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")


def weight_files(folder: Path) -> list[Path]:
    """The files that the index names, or all in the folder where there is no index.

    Raises:
        CheckpointError: there is none, one is missing, or the index is no index of this folder.
    """
    index = folder / INDEX_NAME
    files = _indexed_files(index) if index.is_file() else _files_without_index(folder)
    if not files:
        pickles = any(file.suffix in (".bin", ".pt", ".pth", ".ckpt") for file in folder.iterdir())
        hint = "pickled weights are not read, since they can run programs; save the model with safetensors"
        raise CheckpointError(f"{folder} has no .safetensors file; {hint if pickles else 'copy the weights there'}")
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; copy this shard from the checkpoint again")
    return files


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{index} cannot be read; copy it again from the checkpoint") from None
    if not names:
        raise CheckpointError(f"{index} names no file; copy it again from the checkpoint")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name!r}, which is no .safetensors file of this folder; copy the index again")
    return [index.parent / name for name in names]


def _files_without_index(folder: Path) -> list[Path]:
    """All safetensors files, and the shards that must lie beside those that are there."""
    files = set(folder.glob("*.safetensors"))
    for stem, count in {match.groups() for file in files if (match := _SHARD.fullmatch(file.name))}:
        files |= {folder / f"{stem}-{i:05d}-of-{count}.safetensors" for i in range(1, int(count) + 1)}
    return sorted(files)


def read_header(path: Path) -> list[TensorInfo]:
    """Every tensor of a file that has a name of ours.

    Raises:
        CheckpointError: the file is not whole, or a tensor has a dtype that no checkpoint has.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys() if canonical_name(key)}  # noqa: SIM118 - no dict
            infos = [(key, tuple(part.get_shape()), str(part.get_dtype())) for key, part in slices.items()]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({' '.join(str(error).split())}); copy it again") from None
    known = DTYPES | PACKED_DTYPES
    for key, _, dtype in infos:
        if dtype not in known:
            wanted = "weights must be float32, bfloat16 or float16; save the model in one of these"
            raise CheckpointError(f"{path}: {key} is {dtype}; {wanted}")
    return [TensorInfo(path, key, shape, known[dtype]) for key, shape, dtype in infos]
