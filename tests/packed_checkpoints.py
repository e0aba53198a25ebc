"""Quantised checkpoints as mlx-community has them: names of the Hub, packed by MLX itself, whatever our converter does.

Two generations of mlx-vlm are in use. The older one packed all matrices, even the position table, and made the vision MLP wider
with zeros so that a group fills its columns; the newer one packs the text model alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from checkpoints import in_layout, vocabulary
from parity import tiny_models

from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.tensors import EMBEDDING, HEAD, PATCHES, WEIGHT
from torch_ref.paligemma import PaliGemma as Reference

VISION = {"hidden_size": 128, "intermediate_size": 100, "num_hidden_layers": 1, "num_attention_heads": 4}
TEXT = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 32}
PADDED = 128  # neurons of the vision MLP, of which 28 do nothing
TABLE, OWN_HEAD = EMBEDDING.removesuffix(WEIGHT), HEAD.removesuffix(WEIGHT)
Settings = Mapping[str, Any]
Weights = dict[str, mx.array]


def affine(bits: int, group_size: int = 64) -> dict[str, Any]:
    return {"group_size": group_size, "bits": bits, "mode": "affine"}


def of_mode(mode: str) -> dict[str, Any]:
    return {"mxfp4": {"group_size": 32, "bits": 4}, "mxfp8": {"group_size": 32, "bits": 8},
            "nvfp4": {"group_size": 16, "bits": 4}}[mode] | {"mode": mode}  # fmt: skip


def config_json(generation: int, vision: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Widths that groups of 128 divide, save for the vision MLP's."""
    data = tiny_models.config_json(generation, **TEXT)
    return data | {"vision_config": data["vision_config"] | VISION | dict(vision)}


def weights(data: Mapping[str, Any], head: str = "tied", seed: int = 0) -> Weights:
    """float32 by our names, in PyTorch layout; `head` is "tied", "equal" to the embedding, or an "own" one."""
    config = PaliGemmaConfig.from_dict(dict(data) | {"tie_word_embeddings": head != "own"})
    model = Reference(config)
    tiny_models.fill(model, seed)
    made = {name: mx.array(tensor.numpy()) for name, tensor in model.state_dict().items()}
    return made | ({HEAD: made[EMBEDDING]} if head == "equal" else {})


def with_wide_mlp(made: Weights) -> Weights:
    """The vision MLP made wider by neurons that do nothing."""
    return {name: mx.array(_wider(name, np.array(array))) for name, array in made.items()}


def pack(made: Weights, form: Callable[[str], Settings | None], dtype: mx.Dtype) -> Weights:
    """With the modules packed for which `form` gives how; the patch kernel is channels-last."""
    found: Weights = {}
    for name, array in made.items():
        module, number = name.removesuffix(WEIGHT), array.astype(dtype)
        settings = form(module) if name.endswith(WEIGHT) and array.ndim == 2 else None
        if settings is None:
            found[name] = number.transpose(0, 2, 3, 1) if name == PATCHES else number
            continue
        parts = mx.quantize(number, **settings)
        found |= {f"{module}.{part}": values for part, values in zip(("weight", "scales", "biases"), parts, strict=False)}
    return found


def dequantised(made: Weights, form: Callable[[str], Settings | None], dtype: mx.Dtype) -> Weights:
    """float32 in PyTorch layout: the numbers that the packed weights stand for."""
    packed, found = pack(made, form, dtype), {}
    for name in made:
        module = name.removesuffix(WEIGHT)
        array = packed[name].astype(mx.float32) if packed[name].dtype != mx.uint32 else packed[name]
        if array.dtype == mx.uint32:
            scales, biases = packed[f"{module}.scales"], packed.get(f"{module}.biases")
            wide = (scales, None) if biases is None else (scales.astype(mx.float32), biases.astype(mx.float32))
            array = mx.dequantize(array, *wide, **form(module)).astype(mx.float32)
        found[name] = array.transpose(0, 3, 1, 2) if name == PATCHES else array
    return found


def write_packed(folder: Path, packed: Weights, data: Mapping[str, Any], quantization: Settings | None, shards: int = 1) -> Path:
    """A folder of the Hub; `quantization` is what its config.json says, true or not."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {} if quantization is None else {"quantization": dict(quantization)}
    (folder / "config.json").write_text(json.dumps(dict(data) | said))
    (folder / "tokenizer.model").write_bytes(vocabulary())
    named = {in_layout(name, "hub"): array for name, array in packed.items()}
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)] if shards > 1 else ["model.safetensors"]
    files = {file: list(named)[i::shards] for i, file in enumerate(names)}
    for file, keys in files.items():
        mx.save_safetensors(str(folder / file), {key: named[key] for key in keys}, metadata={"format": "mlx"})
    if shards > 1:
        weight_map = {key: file for file, keys in files.items() for key in keys}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def everything(settings: Settings) -> Callable[[str], Settings | None]:
    """mlx-vlm up to 0.1.6."""
    return lambda module: settings


def text_alone(settings: Settings) -> Callable[[str], Settings | None]:
    """mlx-vlm today."""
    return lambda module: settings if module.startswith(("language_model.", OWN_HEAD)) else None


def _wider(name: str, array: np.ndarray) -> np.ndarray:
    if not name.startswith("vision_tower.") or ".mlp." not in name or name.endswith("fc2.bias"):
        return array
    axis = 1 if name.endswith("fc2.weight") else 0
    more = [(0, PADDED - array.shape[axis] if each == axis else 0) for each in range(array.ndim)]
    return np.pad(array, more)
