"""Tensors that arrive one after the other, written to safetensors files of a bounded size and their index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from .common.safetensors_files import INDEX_NAME
from .tensor_reader import Tensors


class ShardWriter:
    """Collects tensors until a file is full, and writes it."""

    def __init__(self, folder: Path, max_bytes: int, kind: str):
        """`kind` is the "format" in each file's metadata: "mlx", or "pt" for transformers."""
        self.folder, self.max_bytes, self.kind = folder, max_bytes, kind
        self._held: Tensors = {}
        self._shards: list[list[str]] = []
        self.total_bytes = 0

    def add(self, tensors: Mapping[str, mx.array]) -> None:
        """Tensors that belong together come into one file. One that is larger than a file gets a file of its own."""
        size = sum(array.nbytes for array in tensors.values())
        if self._held and sum(array.nbytes for array in self._held.values()) + size > self.max_bytes:
            self._write()
        mx.eval(list(tensors.values()))
        self._held |= tensors
        self.total_bytes += size

    def finish(self) -> None:
        """Write the rest; name the files by their number and write the index, where there are several."""
        self._write()
        count = len(self._shards)
        names = ["model.safetensors"] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        for number, name in enumerate(names):
            self._part(number).rename(self.folder / name)
        if count > 1:
            weight_map = {key: name for name, keys in zip(names, self._shards, strict=True) for key in keys}
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
            (self.folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _write(self) -> None:
        mx.save_safetensors(str(self._part(len(self._shards))), self._held, metadata={"format": self.kind})
        self._shards.append(list(self._held))
        self._held = {}
        mx.clear_cache()

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number}.safetensors"
