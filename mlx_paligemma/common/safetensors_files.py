"""The safetensors files of a checkpoint's folder, and what their headers say. No tensor is read here.

Format: https://huggingface.co/docs/safetensors; several files have an index (a JSON object whose `weight_map` gives the file of
each tensor). Names that stand in a file come into an error message only where they are short and printable.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .errors import CheckpointError
from .hub_files import PICKLES
from .tensors import DTYPES, PACKED_DTYPES, TensorInfo, canonical_name

INDEX_NAME = "model.safetensors.index.json"
LARGEST_INDEX = 1 << 26  # bytes; published ones have some hundred thousand at most
LONGEST_TEXT = 150  # characters of a message that come from a file
MOST_AXES = 4  # of a tensor: the patch kernel's
LARGEST_HEADER = 1 << 22  # bytes; the largest PaliGemma has 947 tensors, of some 150 bytes each in the header
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
_FILE_NAME = re.compile(r"[\w .()+@=-]{1,200}\.safetensors")
_TENSOR_NAME = re.compile(r"[!-~]{1,200}")


def weight_files(folder: Path) -> list[Path]:
    """The files that the index names, or all in the folder where there is no index.

    Raises:
        CheckpointError: there is none, one is missing or cannot be read, or the index is no index of this folder.
    """
    index = folder / INDEX_NAME
    try:
        files = _indexed_files(index) if os.path.lexists(index) else _files_without_index(folder)
        if not files:
            pickles = any(file.suffix in PICKLES for file in folder.iterdir())
            hint = "pickled weights are not read, since they can run programs; save the model with safetensors"
            raise CheckpointError(f"{folder} has no .safetensors file; {hint if pickles else 'copy the weights there'}")
        for file in files:
            _check_file(file)
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder} cannot be read ({error.strerror}); check its permissions") from None
    return files


def read_headers(folder: Path) -> list[TensorInfo]:
    """Every tensor of the folder that has a name of ours.

    Raises:
        CheckpointError: as `weight_files` and `read_header`, and where the index says of a file what is not in it.
    """
    infos = [info for path in weight_files(folder) for info in read_header(path)]
    index, held = folder / INDEX_NAME, {(info.key, info.file.name) for info in infos}
    for key, name in _read_index(index).items() if index.is_file() else ():
        if canonical_name(key) is not None and (key, name) not in held:
            raise CheckpointError(f"{folder / name} lacks {_quoted(key)}, which {INDEX_NAME} says is in it; copy both again")
    return infos


def read_header(path: Path) -> list[TensorInfo]:
    """Every tensor of a file that has a name of ours.

    Raises:
        CheckpointError: the file is not whole, or a tensor has a name, axes or a dtype that no checkpoint has.
    """
    _check_header_size(path)
    try:
        with safe_open(path, framework="numpy") as file:
            keys = [_checked_name(path, key) for key in file.keys()]  # noqa: SIM118 - no dict
            slices = {key: file.get_slice(key) for key in keys if canonical_name(key) is not None}
            infos = [(key, tuple(part.get_shape()), str(part.get_dtype())) for key, part in slices.items()]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({_legible(str(error))}); copy it again") from None
    known = DTYPES | PACKED_DTYPES
    for key, shape, dtype in infos:
        if len(shape) > MOST_AXES:
            raise CheckpointError(f"{path}: {key} has {len(shape)} axes, which no tensor of a checkpoint has; copy it again")
        if dtype not in known:
            wanted = "weights must be float32, bfloat16 or float16; save the model in one of these"
            raise CheckpointError(f"{path}: {key} is {dtype}; {wanted}")
    return [TensorInfo(path, key, shape, known[dtype]) for key, shape, dtype in infos]


def _indexed_files(index: Path) -> list[Path]:
    names = sorted(set(_read_index(index).values()))
    if not names:
        raise CheckpointError(f"{index} names no file; copy it again from the checkpoint")
    for name in names:
        if not _FILE_NAME.fullmatch(name):
            problem = f"names {_quoted(name)}, which is no .safetensors file of this folder"
            raise CheckpointError(f"{index} {problem}; copy the index again")
    return [index.parent / name for name in names]


def _read_index(index: Path) -> dict[str, str]:
    """The file of each tensor, by the names that stand there."""
    try:
        if not index.is_file() or index.stat().st_size > LARGEST_INDEX:
            raise ValueError
        return {key: str(name) for key, name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{index} cannot be read; copy it again from the checkpoint") from None


def _files_without_index(folder: Path) -> list[Path]:
    """All safetensors files, none of whose shards is missing."""
    files = set(folder.glob("*.safetensors"))
    for stem, count in {match.groups() for file in files if (match := _SHARD.fullmatch(file.name))}:
        shards = (folder / f"{stem}-{i:05d}-of-{count}.safetensors" for i in range(1, int(count) + 1))
        missing = next((shard for shard in shards if shard not in files), None)
        if missing is not None:  # one is enough: a name may claim thousands
            raise CheckpointError(f"{missing} is missing; copy this shard from the checkpoint again")
    return sorted(files)


def _check_file(file: Path) -> None:
    """Raises CheckpointError where there is no such file, or the OSError of looking it up."""
    if not os.path.lexists(file):
        raise CheckpointError(f"{file} is missing; copy this shard from the checkpoint again")
    if not file.is_file():
        problem = "is not a file" if file.exists() else "is a link that leads to no file"
        raise CheckpointError(f"{file} {problem}; copy the file itself from the checkpoint")


def _check_header_size(path: Path) -> None:
    """The library takes up to 100 MB, over which it needs half a minute, and calls every error of opening a missing file."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions, or copy it again") from None
    if size > LARGEST_HEADER:
        raise CheckpointError(f"{path} is not a whole safetensors file (its header claims {size} bytes); copy it again")


def _checked_name(path: Path, key: str) -> str:
    if not _TENSOR_NAME.fullmatch(key):
        raise CheckpointError(f"{path} has a tensor called {_quoted(key)}, as no checkpoint has; copy it again")
    return key


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]!r}..."


def _legible(text: str) -> str:
    """In one line of printable characters, without the quotes that `ascii` adds, and not without end."""
    return ascii(" ".join(text.split()))[1:-1][:LONGEST_TEXT]
