"""The tensors of a model: our names, whatever a file calls them, their shapes, and where each of them lies.

Four layouts of names are in use (files of the hub; transformers 4.52 to 4.57; 5.x; 5.x saved from scratch): `canonical_name`
maps all of them to ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from .config import GemmaConfig, PaliGemmaConfig, SiglipConfig

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' names and ours
PACKED_DTYPES = {"U32": "uint32", "U8": "uint8"}
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint32": 4, "uint8": 1}
WEIGHT = ".weight"
HEAD_MODULE = "lm_head"
POSITIONS = "vision_tower.embeddings.position_embedding"
HEAD, EMBEDDING, PATCHES = "lm_head.weight", "language_model.embed_tokens.weight", "vision_tower.embeddings.patch_embedding.weight"
_UNUSED = (".position_ids", ".rotary_emb.inv_freq")  # buffers that old files carry


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies."""

    file: Path
    key: str  # its name in the file
    shape: tuple[int, ...]
    dtype: str  # "float32", "float16" or "bfloat16"; of packed weights (see packed.py) "uint32" and "uint8"

    @property
    def nbytes(self) -> int:
        """What it takes in the file."""
        return prod(self.shape) * BYTES[self.dtype]


def canonical_name(key: str) -> str | None:
    """Our name of a tensor in any of the four layouts; None for buffers that nobody needs."""
    if key.endswith(_UNUSED):
        return None
    name = key.removeprefix("model.")
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    for long, short in (("vision_tower.vision_model.", "vision_tower."), ("language_model.model.", "language_model.")):
        if name.startswith(long):
            return short + name.removeprefix(long)
    return name


def hub_name(name: str) -> str:
    """What files of the Hub, and those of MLX's converters, call a tensor of ours. The reverse of `canonical_name`."""
    for short, long in (("vision_tower.", "vision_tower.vision_model."), ("language_model.", "language_model.model.")):
        if name.startswith(short):
            return long + name.removeprefix(short)
    return f"language_model.{name}" if name.startswith(HEAD_MODULE) else name


def expected_shapes(config: PaliGemmaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model, without a head of its own: our name and its shape in PyTorch layout."""
    text, vision = config.text, config.vision
    shapes: dict[str, tuple[int, ...]] = {
        PATCHES: (vision.hidden_size, vision.num_channels, vision.patch_size, vision.patch_size),
        "vision_tower.embeddings.patch_embedding.bias": (vision.hidden_size,),
        "vision_tower.embeddings.position_embedding.weight": (vision.num_patches, vision.hidden_size),
        "vision_tower.post_layernorm.weight": (vision.hidden_size,),
        "vision_tower.post_layernorm.bias": (vision.hidden_size,),
        "multi_modal_projector.linear.weight": (config.projection_dim, vision.hidden_size),
        "multi_modal_projector.linear.bias": (config.projection_dim,),
        EMBEDDING: (text.vocab_size, text.hidden_size),
        "language_model.norm.weight": (text.hidden_size,),
    }
    for i in range(vision.num_hidden_layers):
        shapes |= {f"vision_tower.encoder.layers.{i}.{name}": shape for name, shape in _vision_layer(vision).items()}
    for i in range(text.num_hidden_layers):
        shapes |= {f"language_model.layers.{i}.{name}": shape for name, shape in _text_layer(text).items()}
    return shapes


def shapes_with_head(config: PaliGemmaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model, also a head where it has one of its own: our name and its shape in PyTorch layout."""
    shapes = expected_shapes(config)
    return shapes if config.tie_word_embeddings else shapes | {HEAD: shapes[EMBEDDING]}


def _vision_layer(config: SiglipConfig) -> dict[str, tuple[int, ...]]:
    d, wide = config.hidden_size, config.intermediate_size
    linears = {f"self_attn.{name}": (d, d) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    linears |= {"mlp.fc1": (wide, d), "mlp.fc2": (d, wide)}
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in linears.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    return shapes | {f"{norm}.{part}": (d,) for norm in ("layer_norm1", "layer_norm2") for part in ("weight", "bias")}


def _text_layer(config: GemmaConfig) -> dict[str, tuple[int, ...]]:
    d, wide = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if config.model_type == "gemma2" else []
    return {
        "self_attn.q_proj.weight": (queries, d), "self_attn.k_proj.weight": (keys, d), "self_attn.v_proj.weight": (keys, d),
        "self_attn.o_proj.weight": (d, queries), "mlp.gate_proj.weight": (wide, d), "mlp.up_proj.weight": (wide, d),
        "mlp.down_proj.weight": (d, wide),
    } | {f"{norm}.weight": (d,) for norm in norms}  # fmt: skip
