"""What a checkpoint's config.json says, with every default that published files leave out.

The published files omit many keys, and the defaults of the transformers classes are wrong for several of them
(patch size 16, vision MLP 4096, image token 256000). The values here are those of the released weights.
Papers: PaliGemma, arXiv:2407.07726; PaliGemma 2, arXiv:2412.03555.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from reprlib import repr as brief  # of a damaged file's value, which may be as long as the file
from typing import Any

from .errors import CheckpointError

LARGEST_FILE = 1 << 24  # bytes; published ones have some thousand
LARGEST_NUMBER, MOST_LAYERS = 1 << 32, 1000  # no size, id or constant of a model comes near
GEMMA2_27B_HIDDEN_SIZE = 4608  # the only released text model with heads of 128 and a query scale of 144 ** -0.5
LAYER_TYPES = ("sliding_attention", "full_attention")
TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")  # three names of the tanh approximation


@dataclass(frozen=True)
class SiglipConfig:
    """The picture encoder: SigLIP So400m/14 unless a checkpoint says otherwise."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224  # pixels; pictures are square
    patch_size: int = 14  # pixels
    layer_norm_eps: float = 1e-6

    @property
    def num_patches(self) -> int:
        """Patches of one picture, which is also its number of image tokens."""
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SiglipConfig:
        """Read `vision_config`. Raises CheckpointError for values that no PaliGemma has.

        `num_positions` and `num_image_tokens` are ignored: published files hold wrong ones.
        """
        if data.get("vision_use_head"):
            raise CheckpointError("config.json asks for a vision pooling head (vision_use_head); PaliGemma has none")
        if _first(data, "hidden_act", default=TANH_GELU[0]) not in TANH_GELU:
            raise CheckpointError(f"config.json: vision hidden_act {brief(data['hidden_act'])} is not the tanh GELU of SigLIP")
        config = cls(**_pick(data, cls))
        _require_numbers("vision_config", config)
        if config.hidden_size % config.num_attention_heads:
            raise CheckpointError("config.json: vision hidden_size is not a multiple of its num_attention_heads")
        if config.image_size % config.patch_size:
            raise CheckpointError("config.json: vision image_size is not a multiple of its patch_size")
        return config


@dataclass(frozen=True)
class GemmaConfig:
    """The text decoder: Gemma (`model_type` "gemma") or Gemma 2 ("gemma2")."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    model_type: str = "gemma"
    num_attention_heads: int = 8
    num_key_value_heads: int = 1
    head_dim: int = 256  # not hidden_size / num_attention_heads
    vocab_size: int = 257216  # rows of the embedding
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    query_pre_attn_scalar: float = 256.0  # queries are scaled by this ** -0.5
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    sliding_window: int | None = None  # keys that a suffix token sees in a sliding layer; None: all
    layer_types: tuple[str, ...] = ()  # "sliding_attention" or "full_attention" per layer; Gemma 2 only

    @property
    def query_scale(self) -> float:
        """Factor on the query-key products."""
        return float(self.query_pre_attn_scalar**-0.5)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GemmaConfig:
        """Read `text_config`. Raises CheckpointError when a size is missing or the model is not Gemma or Gemma 2."""
        model_type = _first(data, "model_type", default="gemma")
        if model_type not in ("gemma", "gemma2"):
            raise CheckpointError(f"config.json: text model_type {brief(model_type)} is unknown; PaliGemma has gemma or gemma2")
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers"):
            if data.get(name) is None:
                raise CheckpointError(f"config.json: text_config has no {name}; copy the file again from the checkpoint")
        if data.get("attention_bias"):
            raise CheckpointError("config.json: attention_bias is true; no PaliGemma has biases in its text model")
        if data.get("use_bidirectional_attention") not in (None, True):
            raise CheckpointError("config.json: use_bidirectional_attention is off; every PaliGemma has it on")
        values = _text_defaults(model_type, data) | _pick(data, cls)
        if model_type == "gemma":  # the caps, the window and the query scalar belong to Gemma 2 alone
            values |= _text_defaults(model_type, data, only_fixed=True)
        values["rope_theta"] = _rope_theta(data)
        config = cls(**values | {"layer_types": ()})
        _require_numbers("text_config", config)
        if config.num_attention_heads % config.num_key_value_heads:
            raise CheckpointError("config.json: num_attention_heads is not a multiple of num_key_value_heads")
        return replace(config, layer_types=_layer_types(config, data.get("layer_types")))


@dataclass(frozen=True)
class PaliGemmaConfig:
    """A whole PaliGemma: picture encoder, projector, text decoder and special token ids."""

    text: GemmaConfig
    vision: SiglipConfig
    projection_dim: int
    image_token_index: int = 257152
    bos_token_id: int = 2
    eos_token_id: int = 1
    pad_token_id: int = 0
    tie_word_embeddings: bool = True
    dtype: str | None = None  # as the file names it ("bfloat16"); the tensors decide

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PaliGemmaConfig:
        """Read a whole config.json.

        The top-level `hidden_size` (2048 in every PaliGemma 2 file) and the text model's own `eos_token_id`
        ([1, 107], inherited from a chat model) are ignored on purpose.

        Raises:
            CheckpointError: the file is of another model, or lacks what has no safe default.
        """
        if data.get("model_type") != "paligemma":
            raise CheckpointError(
                f"config.json: model_type is {brief(data.get('model_type'))}, not 'paligemma'; choose another folder"
            )
        text_data, vision_data = data.get("text_config"), _first(data, "vision_config", default={})
        if not isinstance(text_data, Mapping) or not isinstance(vision_data, Mapping):
            name = "vision_config" if isinstance(text_data, Mapping) else "text_config"
            raise CheckpointError(f"config.json has no usable {name}; copy the file again from the checkpoint")
        text = GemmaConfig.from_dict(text_data)
        projection_dim = data.get("projection_dim") or text.hidden_size
        if projection_dim != text.hidden_size:
            raise CheckpointError(
                f"config.json: projection_dim {brief(projection_dim)} is not the text hidden_size {text.hidden_size}"
            )
        return cls(
            text=text,
            vision=SiglipConfig.from_dict(vision_data),
            projection_dim=text.hidden_size,
            image_token_index=_token_id(data, "image_token_index", "image_token_id", default=257152),
            bos_token_id=_token_id(data, "bos_token_id", default=2),
            eos_token_id=_token_id(data, "eos_token_id", default=1),
            pad_token_id=_token_id(data, "pad_token_id", default=0),
            tie_word_embeddings=bool(_first({**text_data, **data}, "tie_word_embeddings", default=True)),
            dtype=_first(data, "dtype", "torch_dtype", default=None),
        )

    @classmethod
    def from_folder(cls, folder: Path) -> PaliGemmaConfig:
        """Read `folder/config.json`. Raises CheckpointError when it is missing, not JSON or not a PaliGemma's."""
        path = folder / "config.json"
        try:
            if path.exists() and not (path.is_file() and path.stat().st_size <= LARGEST_FILE):
                raise ValueError("it is no file, or a very large one")
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{folder} has no config.json; --model wants a folder with a PaliGemma checkpoint") from None
        except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number or a nesting without end
            raise CheckpointError(f"{path} cannot be read as JSON ({error}); copy it again") from None
        if not isinstance(data, dict):
            raise CheckpointError(f"{path} is not a JSON object; copy it again")
        try:
            return cls.from_dict(data)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from None


def _text_defaults(model_type: str, data: Mapping[str, Any], only_fixed: bool = False) -> dict[str, Any]:
    """What a text_config means where it is silent; with `only_fixed`, what Gemma 1 means whatever the file says."""
    is_27b = data["hidden_size"] == GEMMA2_27B_HIDDEN_SIZE
    head_dim = data.get("head_dim") or (128 if is_27b and model_type == "gemma2" else 256)
    if model_type == "gemma":
        fixed = {
            "query_pre_attn_scalar": head_dim,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "sliding_window": None,
        }
        return fixed if only_fixed else fixed | {"head_dim": head_dim}
    return {
        "head_dim": head_dim,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 144.0 if is_27b else 256.0,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
    }


def _layer_types(config: GemmaConfig, given: Any) -> tuple[str, ...]:
    layers = config.num_hidden_layers
    if config.model_type == "gemma":
        return ("full_attention",) * layers
    if given is None:
        return tuple(LAYER_TYPES[i % 2] for i in range(layers))
    if not isinstance(given, list | tuple) or len(given) != layers or any(kind not in LAYER_TYPES for kind in given):
        raise CheckpointError(f"config.json: layer_types does not name {' or '.join(LAYER_TYPES)} for each of {layers} layers")
    return tuple(given)


def _rope_theta(data: Mapping[str, Any]) -> Any:
    parameters = _first(data, "rope_parameters", default={})
    if not isinstance(parameters, Mapping) or parameters.get("rope_type", "default") != "default" or data.get("rope_scaling"):
        raise CheckpointError("config.json asks for scaled rotary positions; no PaliGemma uses them")
    return _first(parameters, "rope_theta", default=_first(data, "rope_theta", default=10000.0))


def _pick(data: Mapping[str, Any], cls: type[SiglipConfig | GemmaConfig]) -> dict[str, Any]:
    """The keys of `data` that are fields of `cls`. A null sticks only where None is a value (a cap, a window)."""
    optional = ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window")
    names = [field.name for field in fields(cls) if field.name in data]
    return {name: data[name] for name in names if data[name] is not None or name in optional}


def _first(data: Mapping[str, Any], *names: str, default: Any) -> Any:
    return next((data[name] for name in names if data.get(name) is not None), default)


def _token_id(data: Mapping[str, Any], *names: str, default: int) -> int:
    value = _first(data, *names, default=default)
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < LARGEST_NUMBER:
        raise CheckpointError(f"config.json: {names[0]} is {brief(value)}; it must be a token id")
    return value


def _require_numbers(section: str, config: SiglipConfig | GemmaConfig) -> None:
    for field in fields(config):
        kind, value = str(field.type), getattr(config, field.name)  # the annotation, "int" or "float | None"
        if not kind.startswith(("int", "float")) or (value is None and kind.endswith("None")):
            continue
        whole = kind.startswith("int")
        right_type = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        limit = MOST_LAYERS if field.name == "num_hidden_layers" else LARGEST_NUMBER
        if not right_type or not 0 < value < limit:
            wanted = "whole number" if whole else "number"
            raise CheckpointError(
                f"config.json: {section}.{field.name} is {brief(value)}; it must be a positive {wanted} below {limit}"
            )
