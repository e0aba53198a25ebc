"""Random checkpoints in the Hub's first layout, which every implementation reads: small ones, and ones of released sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.safetensors_files import INDEX_NAME
from mlx_paligemma.common.tensors import expected_shapes
from mlx_paligemma.published import published_config

SHARD_BYTES = 2_000_000_000
SMALL_VISION = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
SMALL_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8, "head_dim": 64}
SMALL = {  # 183 and 185 million weights, most of them in the real vocabulary's 257,216 rows
    "small-pg1": SMALL_TEXT | {"model_type": "gemma", "num_key_value_heads": 1},
    "small-pg2": SMALL_TEXT | {"model_type": "gemma2", "num_key_value_heads": 4, "query_pre_attn_scalar": 64},
}


def config_of(size: str, resolution: int) -> PaliGemmaConfig:
    """One of SMALL, or a released size."""
    if size not in SMALL:
        return published_config(size, resolution)
    vision = SMALL_VISION | {"image_size": resolution}
    return PaliGemmaConfig.from_dict({"model_type": "paligemma", "text_config": SMALL[size], "vision_config": vision})


def config_json(config: PaliGemmaConfig, dtype: str) -> dict[str, Any]:
    """A config.json that says everything: the defaults of other implementations differ."""
    text = {name: value for name, value in asdict(config.text).items() if value is not None}
    kinds = {} if config.text.model_type == "gemma" else {"layer_types": list(config.text.layer_types)}
    names = ("image_token_index", "bos_token_id", "eos_token_id", "pad_token_id", "projection_dim")
    return {
        "model_type": "paligemma",
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "torch_dtype": dtype,
        "hidden_size": config.text.hidden_size,
        "vocab_size": config.text.vocab_size,
        "text_config": text | {"layer_types": None, "hidden_activation": "gelu_pytorch_tanh", "torch_dtype": dtype} | kinds,
        "vision_config": asdict(config.vision)
        | {"model_type": "siglip_vision_model", "projection_dim": config.projection_dim, "vision_use_head": False},
    } | {name: getattr(config, name) for name in names}


def write_checkpoint(folder: Path, config: PaliGemmaConfig, dtype: str = "bfloat16", shard_bytes: int = SHARD_BYTES) -> None:
    """config.json and weights that all matter, in shards."""
    (folder / "config.json").write_text(json.dumps(config_json(config, dtype), indent=1))
    generator, kind = torch.Generator().manual_seed(0), getattr(torch, dtype)
    shards = list(_shards(expected_shapes(config), shard_bytes // kind.itemsize))
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({_hub_name(name): _random(name, shape, generator).to(kind) for name, shape in shard.items()}, folder / file)
        weight_map |= {_hub_name(name): file for name in shard}
    if len(shards) > 1:
        (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _shards(shapes: Mapping[str, tuple[int, ...]], numbers: int) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if shard and sum(map(math.prod, [*shard.values(), shape])) > numbers:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        offset = 1.0 if "vision_tower" in name and "norm" in name and name.endswith("weight") else 0.0
        return offset + 0.2 * values
    return values * (0.03 if "embed" in name else math.prod(shape[1:]) ** -0.5)


def _hub_name(name: str) -> str:
    tower, text = "vision_tower.", "language_model."
    if name.startswith(tower):
        return f"{tower}vision_model.{name.removeprefix(tower)}"
    return f"{text}model.{name.removeprefix(text)}" if name.startswith(text) else name
