"""What is compared: the question, the two checkpoints and their agreement, versions, devices and hashes."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum, auto
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image

from ..common.checkpoint import Checkpoint
from ..common.errors import CheckpointError
from .report import Origin

PACKAGES = ("mlx-paligemma", "mlx", "torch", "transformers", "numpy")
HASHED = ("*.json", "*.safetensors", "*.npz", "*.npz.part*", "*tokenizer.model")
BLOCK = 1 << 24  # bytes that are hashed at a time


class Against(StrEnum):
    """Who can be the reference, in float32."""

    torch_ref = auto()
    transformers = auto()


@dataclass(frozen=True)
class Question:
    """What the user wants compared."""

    images: tuple[Image.Image, ...]
    image_names: tuple[str, ...]
    prompt: str
    model: str | None = None  # folder or Hub id, None for the bundled demo
    revision: str | None = None
    reference: str | None = None  # the reference's checkpoint; None: the same
    against: Against = Against.torch_ref
    dtype: str | None = None  # None: as stored; the bundled demo: float32
    device: str = "cpu"  # of the reference
    padded: bool = True  # a second row, so that one is padded
    max_tokens: int = 20


def check_same_model(one: Checkpoint, other: Checkpoint) -> None:
    """Raises CheckpointError where two checkpoints are not of the same model: sizes, layers, caps, ids."""
    values = [_flat(asdict(checkpoint.config)) for checkpoint in (one, other)]
    for name in values[0]:
        if values[0][name] != values[1].get(name) and name not in ("dtype", "tie_word_embeddings"):
            found = f"{name} is {values[0][name]} in {one.folder} and {values[1].get(name)} in {other.folder}"
            raise CheckpointError(f"the two checkpoints are not the same model: {found}; compare two forms of one model")


def describe(question: Question, checkpoint: Checkpoint, other: Checkpoint, dtype: str, devices: dict[str, str]) -> Origin:
    """All that a reader needs to repeat the comparison."""
    folders = {checkpoint.folder: "", other.folder: "reference/"}  # one entry where they are the same
    folders[checkpoint.folder] = ""
    hashes = {f"{mark}{file.name}": _hash(_blocks(file)) for folder, mark in folders.items() for file in _files(folder)}
    for name, image in zip(question.image_names, question.images, strict=True):
        hashes[f"{name} (as RGB)"] = _hash([image.tobytes()])
    return Origin(
        question.model or "the bundled demo",
        question.reference or question.model or "the bundled demo",
        question.against.value,
        dtype,
        question.prompt,
        question.image_names,
        _versions(),
        devices,
        hashes,
        checkpoint.config.text.hidden_size,
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(file for pattern in HASHED for file in folder.glob(pattern))


def _hash(blocks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _blocks(file: Path) -> Iterable[bytes]:
    with file.open("rb") as source:
        while block := source.read(BLOCK):
            yield block


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
