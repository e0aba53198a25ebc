"""The config.json of a folder that is written: complete, so that no program falls back on a default of its own.

transformers 5.23 takes a patch for 16 pixels, a vision MLP for 4096, an image token for 256000; it wants whole numbers and
fractions as its classes type them. vLLM and mlx-vlm scale the picture's rows by the top-level `hidden_size`, which published
PaliGemma 2 files leave at 2048 whatever the text model's width. Keys with two names (`dtype` and `torch_dtype`, `rope_theta`
and `rope_parameters`, `image_token_index` and `image_token_id`) stand there twice, for readers before and since transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .config import TANH_GELU, GemmaConfig, PaliGemmaConfig, SiglipConfig

ARCHITECTURE = "PaliGemmaForConditionalGeneration"
GEMMA2_KEYS = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window", "layer_types")
OUTDATED = {  # what a source says of its own weights or files, by section; the writer of packed weights adds what is true of them
    "top": ("quantization", "quantization_config", "auto_map", "text_config", "vision_config"),
    "text_config": ("quantization", "quantization_config", "auto_map", "rope_scaling", *GEMMA2_KEYS),
    "vision_config": ("quantization", "quantization_config", "auto_map", "skip_vision", "num_positions"),
}


def config_json(config: PaliGemmaConfig, dtype: str, source: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The whole file for weights of `dtype`. `source` is the config.json that they come with: its further keys are kept.

    `PaliGemmaConfig.from_dict` of it is `config` with that dtype.
    """
    return (
        _kept(source, "top")
        | _top(config)
        | _stored_as(dtype)
        | {
            "text_config": _kept(source, "text_config") | _text(config) | _stored_as(dtype),
            "vision_config": _kept(source, "vision_config") | _vision(config) | _stored_as(dtype),
        }
    )


def _kept(source: Mapping[str, Any] | None, section: str) -> dict[str, Any]:
    data = source or {}
    data = data if section == "top" else data.get(section) or {}
    return {key: value for key, value in data.items() if key not in OUTDATED[section]}


def _stored_as(dtype: str) -> dict[str, str]:
    return {"dtype": dtype, "torch_dtype": dtype}


def _special_ids(config: PaliGemmaConfig) -> dict[str, int]:
    return {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}


def _top(config: PaliGemmaConfig) -> dict[str, Any]:
    return _special_ids(config) | {
        "architectures": [ARCHITECTURE],
        "model_type": "paligemma",
        "hidden_size": config.text.hidden_size,
        "projection_dim": config.projection_dim,
        "vocab_size": config.text.vocab_size,
        "image_token_index": config.image_token_index,
        "image_token_id": config.image_token_index,
        "ignore_index": -100,  # labels that are not trained
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def _text(config: PaliGemmaConfig) -> dict[str, Any]:
    text = config.text
    values = _numbers(text) | {
        "hidden_act": TANH_GELU[0],  # Gemma's name of it in transformers
        "hidden_activation": TANH_GELU[0],  # Gemma 2's, and mlx-vlm's of both
        "rope_parameters": {"rope_type": "default", "rope_theta": float(text.rope_theta)},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_bidirectional_attention": True,
        "num_image_tokens": config.vision.num_patches,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    values = {key: value for key, value in values.items() if text.model_type == "gemma2" or key not in GEMMA2_KEYS}
    return values | _special_ids(config)


def _vision(config: PaliGemmaConfig) -> dict[str, Any]:
    return _numbers(config.vision) | {
        "model_type": "siglip_vision_model",
        "hidden_act": TANH_GELU[0],
        "attention_dropout": 0.0,
        "vision_use_head": False,
        "num_image_tokens": config.vision.num_patches,
        "projection_dim": config.projection_dim,
    }


def _numbers(config: GemmaConfig | SiglipConfig) -> dict[str, Any]:
    """All fields, as transformers types them: 1 is no fraction and 256.0 no whole number there."""
    values = {field.name: (str(field.type), getattr(config, field.name)) for field in fields(config)}
    numbers = {name: _number(name, kind, value) for name, (kind, value) in values.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in numbers.items()}


def _number(name: str, kind: str, value: Any) -> Any:
    if name == "query_pre_attn_scalar":  # a whole number there, in all published models too
        return int(value) if value == int(value) else value
    return float(value) if kind.startswith("float") and value is not None else value
