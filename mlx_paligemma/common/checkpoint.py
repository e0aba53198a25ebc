"""Checking a checkpoint: which tensors lie in which file, under which of our names, in which shape.

Only headers are read here; each backend reads the tensors itself.
A tensor that is missing, unknown or of another shape is an error, always.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .config import PaliGemmaConfig
from .errors import CheckpointError, OptionError
from .tensors import DTYPES, EMBEDDING, HEAD, PATCHES, TensorInfo, canonical_name, expected_shapes

INDEX_NAME = "model.safetensors.index.json"
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A folder that has passed all checks. `tensors` is complete, by our names."""

    folder: Path
    config: PaliGemmaConfig
    tensors: Mapping[str, TensorInfo]

    @property
    def dtype(self) -> str:
        """That of the embedding table, which stands for the whole."""
        return self.tensors[EMBEDDING].dtype

    @property
    def channels_last(self) -> bool:
        """Whether the patch kernel is stored [out, height, width, in], as MLX folders have it."""
        return self.tensors[PATCHES].shape[-1] == self.config.vision.num_channels

    def files(self) -> dict[Path, dict[str, TensorInfo]]:
        """The tensors of each file, by our names."""
        files: dict[Path, dict[str, TensorInfo]] = {}
        for name, info in self.tensors.items():
            files.setdefault(info.file, {})[name] = info
        return files

    def largest_first(self) -> list[tuple[str, TensorInfo]]:
        """All tensors by our names, the largest first, the embedding before a head."""
        return sorted(self.tensors.items(), key=lambda item: (-prod(item[1].shape), item[0] == HEAD))


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read config.json and all headers, and check every name and shape.

    Raises:
        CheckpointError: anything is missing, unreadable, unknown or of another shape; the message names the file.
    """
    config = PaliGemmaConfig.from_folder(folder)
    if config.image_token_index >= config.text.vocab_size:
        raise CheckpointError(
            f"{folder / 'config.json'}: image_token_index {config.image_token_index} lies outside the vocabulary of "
            f"{config.text.vocab_size} rows; copy the file again from the checkpoint"
        )
    found: dict[str, TensorInfo] = {}
    for path in _weight_files(folder):
        for info in _read_header(path):
            name = canonical_name(info.key)
            if name in found:
                other = f"{found[name].key} in {found[name].file.name}"
                raise CheckpointError(f"{path}: {info.key} is there twice (also as {other}); remove one of the two")
            if name is not None:
                found[name] = info
    _check(folder, found, expected_shapes(config), config)
    return Checkpoint(folder, config, found)


def check_dtype(dtype: str) -> str:
    """`dtype` if it is one that a model can compute in. Raises OptionError."""
    if dtype not in DTYPES.values():
        raise OptionError(f"dtype {dtype!r} is unknown; choose float32, bfloat16 or float16")
    return dtype


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that the index names, or all in the folder where there is no index."""
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


def _read_header(path: Path) -> list[TensorInfo]:
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys() if canonical_name(key)}  # noqa: SIM118 - no dict
            infos = [(key, tuple(part.get_shape()), str(part.get_dtype())) for key, part in slices.items()]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({' '.join(str(error).split())}); copy it again") from None
    quantised = [key for key, _, _ in infos if key.endswith(".scales")]
    if quantised:
        raise CheckpointError(
            f"{path} holds quantised weights ({quantised[0]}), which this version does not read; use an unquantised checkpoint"
        )
    for key, _, dtype in infos:
        if dtype not in DTYPES:
            wanted = "weights must be float32, bfloat16 or float16; save the model in one of these"
            raise CheckpointError(f"{path}: {key} is {dtype}; {wanted}")
    return [TensorInfo(path, key, shape, DTYPES[dtype]) for key, shape, dtype in infos]


def _check(folder: Path, found: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]], config: PaliGemmaConfig) -> None:
    _check_names(folder, found, expected if config.tie_word_embeddings else [*expected, HEAD])
    for name, info in found.items():
        wanted = expected[EMBEDDING] if name == HEAD else expected[name]
        out, channels, height, width = wanted if name == PATCHES else (0, 0, 0, 0)
        if info.shape != wanted and not (name == PATCHES and info.shape == (out, height, width, channels)):
            raise CheckpointError(
                f"{info.file}: {info.key} has shape {info.shape}, config.json asks for {wanted}; they do not belong together"
            )


def _check_names(folder: Path, found: Mapping[str, TensorInfo], expected: Collection[str]) -> None:
    known = {*expected, HEAD}
    missing = [name for name in expected if name not in found]
    unknown = [info.key for name, info in found.items() if name not in known]
    for problem, names in (("lacks", missing), ("has unknown", unknown)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{folder} {problem} {names[0]}{more}; its weights and its config.json do not belong together")
