"""Checking a checkpoint: which tensors lie in which file, under which of our names, in which shape.

Only headers are read here; each backend reads the tensors itself.
A tensor that is missing, unknown or of another shape is an error, always.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from .big_vision import read_big_vision
from .config import PaliGemmaConfig
from .errors import CheckpointError, OptionError
from .npz_pieces import find_npz
from .packed import PARTS, Packing, read_packing
from .safetensors_files import read_headers
from .tensors import (
    BYTES,
    DTYPES,
    EMBEDDING,
    HEAD,
    PACKED_DTYPES,
    PATCHES,
    WEIGHT,
    TensorInfo,
    canonical_name,
    expected_shapes,
)

APART = "do not belong together: copy both from one checkpoint"
LAST_NORM = "language_model.norm.weight"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A folder that has passed all checks. `tensors` is complete, by our names."""

    folder: Path
    config: PaliGemmaConfig
    tensors: Mapping[str, TensorInfo]
    packings: Mapping[str, Packing] = field(default_factory=dict)  # of modules whose weights are packed, by our names
    npz: Path | None = None  # big_vision's file, where the tensors lie in one; `folder` is then its folder

    @property
    def dtype(self) -> str:
        """That of the embedding table, which stands for the whole; where the table is packed, that of the last norm."""
        return self.tensors[LAST_NORM if EMBEDDING.removesuffix(WEIGHT) in self.packings else EMBEDDING].dtype

    @property
    def path(self) -> Path:
        """What `read_checkpoint` takes to find it again."""
        return self.npz or self.folder

    @property
    def channels_last(self) -> bool:
        """Whether the patch kernel is stored [out, height, width, in], as MLX folders have it."""
        return self.tensors[PATCHES].shape[-1] == self.config.vision.num_channels

    def weight_bytes(self, dtype: str) -> int:
        """What the loaded model takes, with its floats in `dtype`."""
        infos = [info for name, info in self.tensors.items() if not (name == HEAD and self.config.tie_word_embeddings)]
        return sum(info.nbytes if is_packed(info) else prod(info.shape) * BYTES[dtype] for info in infos)

    def files(self) -> dict[Path, dict[str, TensorInfo]]:
        """The tensors of each file, by our names."""
        files: dict[Path, dict[str, TensorInfo]] = {}
        for name, info in self.tensors.items():
            files.setdefault(info.file, {})[name] = info
        return files

    def largest_first(self) -> list[tuple[str, TensorInfo]]:
        """All tensors by our names: the embedding, to which a head is compared, the head, then the others, the largest first."""
        tables = [(name, self.tensors[name]) for name in (EMBEDDING, HEAD) if name in self.tensors]
        others = sorted(self.tensors.items(), key=lambda item: -prod(item[1].shape))
        return list(dict([*tables, *others]).items())


def read_checkpoint(path: Path) -> Checkpoint:
    """Read config.json and all headers, and check every name and shape.

    Args:
        path: a folder, or the .npz file (or a piece of it) of a big_vision checkpoint, which needs no config.json.

    Raises:
        CheckpointError: anything is missing, unreadable, unknown or of another shape; the message names the file.
    """
    npz = find_npz(path)
    if npz and (path.is_file() or not any(path.glob("*.safetensors"))):
        config, infos = read_big_vision(npz[0])
        return Checkpoint(npz[0].parent, config, infos, npz=npz[0])
    return _read_folder(path)


def check_dtype(dtype: str) -> str:
    """`dtype` if it is one that a model can compute in. Raises OptionError."""
    if dtype not in DTYPES.values():
        raise OptionError(f"dtype {dtype!r} is unknown; choose float32, bfloat16 or float16")
    return dtype


def is_packed(info: TensorInfo) -> bool:
    """Whether these are codes or scales that have no dtype to be cast to."""
    return info.dtype in PACKED_DTYPES.values()


def _read_folder(folder: Path) -> Checkpoint:
    config = PaliGemmaConfig.from_folder(folder)
    if config.image_token_index >= config.text.vocab_size:
        raise CheckpointError(
            f"{folder / 'config.json'}: image_token_index {config.image_token_index} lies outside the vocabulary of "
            f"{config.text.vocab_size} rows; copy the file again from the checkpoint"
        )
    found = _read_headers(folder)
    if config.text.num_hidden_layers + config.vision.num_hidden_layers > len(found):  # before a name is made for each
        problem = f"asks for more layers than there are tensors ({len(found)}) in the weights"
        raise CheckpointError(f"{folder / 'config.json'} {problem}; they {APART}")
    shapes = expected_shapes(config)
    shapes |= {HEAD: shapes[EMBEDDING]} if HEAD in found or not config.tie_word_embeddings else {}
    _check_names(folder, found, shapes)
    packings = {module: _packing(module, found, shapes) for module in _packed_modules(found)}
    for name, info in found.items():
        if name.rpartition(".")[0] not in packings or name.endswith(".bias"):
            _check_plain(name, info, shapes[name])
    return Checkpoint(folder, config, found, packings)


def _read_headers(folder: Path) -> dict[str, TensorInfo]:
    found: dict[str, TensorInfo] = {}
    for info in read_headers(folder):
        name = canonical_name(info.key)
        if name in found:
            other = f"{found[name].key} in {found[name].file.name}"
            raise CheckpointError(f"{info.file}: {info.key} is there twice (also as {other}); remove one of the two")
        if name is not None:
            found[name] = info
    return found


def _packed_modules(found: Mapping[str, TensorInfo]) -> list[str]:
    return [name.removesuffix(".scales") for name in found if name.endswith(".scales")]


def _check_names(folder: Path, found: Mapping[str, TensorInfo], shapes: Mapping[str, Shape]) -> None:
    """A packed module has scales and biases beside its weight, all three or none of which are there."""
    parts = {f"{module}.{part}" for module in _packed_modules(found) if len(shapes.get(module + WEIGHT, ())) == 2 for part in PARTS}
    missing = [f"{folder} lacks {name}" for name in shapes if name not in found]
    unknown = [f"{info.file} has unknown {info.key}" for name, info in found.items() if name not in shapes and name not in parts]
    problems = missing or unknown
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise CheckpointError(f"{problems[0]}{more}; its weights and its config.json {APART}")


def _packing(module: str, found: Mapping[str, TensorInfo], shapes: Mapping[str, Shape]) -> Packing:
    infos = {part: found[name] for part in ("weight", *PARTS) if (name := f"{module}.{part}") in found}
    weight, (rows, width) = infos["weight"], shapes[module + WEIGHT]
    packing = read_packing(f"{weight.file}: {weight.key}", {part: info.shape for part, info in infos.items()}, width)
    numbers = "uint8" if packing.mode != "affine" else None
    for part, info in infos.items():
        wanted = "uint32" if part == "weight" else numbers
        if info.dtype != wanted if wanted else is_packed(info):
            right = f"weights packed as {packing.mode} have {wanted or 'floats'} there"
            raise CheckpointError(f"{info.file}: {info.key} is {info.dtype}, and {right}; convert the checkpoint again")
    if weight.shape[0] != rows:
        raise CheckpointError(f"{weight.file}: {weight.key} has {weight.shape[0]} rows, config.json asks for {rows}; they {APART}")
    return packing


def _check_plain(name: str, info: TensorInfo, wanted: Shape) -> None:
    if is_packed(info):
        kinds = "weights must be float32, bfloat16 or float16, or packed and with scales; save the model in one of these"
        raise CheckpointError(f"{info.file}: {info.key} is {info.dtype}; {kinds}")
    out, channels, height, width = wanted if name == PATCHES else (0, 0, 0, 0)
    if info.shape != wanted and not (name == PATCHES and info.shape == (out, height, width, channels)):
        raise CheckpointError(f"{info.file}: {info.key} has shape {info.shape}, config.json asks for {wanted}; they {APART}")
