"""The arrays of a big_vision checkpoint of PaliGemma, and the tensors that are made of them.

The layers of a stack lie in one array, and heads have an axis of their own.
Source: github.com/google-research/big_vision, models/vit.py and models/ppp/gemma.py.
Axes of the text model: L layers, V tokens, D hidden_size, N heads, K key-value heads, H head_dim, F intermediate_size.
Axes of the picture encoder: l layers, d hidden_size, n heads, h head size, f intermediate_size, s patches, y and x pixels of one.
A digit is an axis of that size: 3 colours; in front, the 1 or 2 tensors that lie side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .tensors import EMBEDDING, PATCHES

TABLE = "llm/embedder/input_embedding"
POST_NORM = "llm/layers/post_attention_norm/scale"  # Gemma 2 has it, Gemma has not


@dataclass(frozen=True)
class Source:
    """One array, and the tensors that are made of it."""

    array: str
    axes: str
    order: str  # the axes of one tensor as PyTorch has them, before some of them are joined
    names: tuple[str, ...]  # ours; {} stands for the layer

    @property
    def stacked(self) -> bool:
        """Whether the first axis is that of the layers."""
        return self.axes[0] in "lL"

    def tensors(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """The tensors of the whole array or, where it is stacked, of one layer, as `names` has them: views, axes as in `order`."""
        axes = self.axes.lstrip("lL")
        side_by_side = axes[0].isdigit()
        axes = axes[1:] if side_by_side else axes
        for part in block if side_by_side else [block]:
            yield part.transpose([axes.index(axis) for axis in self.order])


def sources(gemma2: bool) -> tuple[Source, ...]:
    """All arrays of a checkpoint of PaliGemma 2 or 1, the largest first."""
    return (Source(TABLE, "VD", "VD", (EMBEDDING,)), *_text(gemma2), *_vision())


def _text(gemma2: bool) -> Iterator[Source]:
    layer = "language_model.layers.{}."
    attention, mlp = f"{layer}self_attn.", f"{layer}mlp."
    yield Source("llm/layers/attn/q_einsum/w", "LNDH", "NHD", (f"{attention}q_proj.weight",))
    yield Source("llm/layers/attn/kv_einsum/w", "L2KDH", "KHD", (f"{attention}k_proj.weight", f"{attention}v_proj.weight"))
    yield Source("llm/layers/attn/attn_vec_einsum/w", "LNHD", "DNH", (f"{attention}o_proj.weight",))
    yield Source("llm/layers/mlp/gating_einsum", "L2DF", "FD", (f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight"))
    yield Source("llm/layers/mlp/linear", "LFD", "DF", (f"{mlp}down_proj.weight",))
    norms = {"pre_attention_norm": "input_layernorm", "pre_ffw_norm": "post_attention_layernorm"}
    if gemma2:  # where post_attention_layernorm is what its name says
        norms |= {"post_attention_norm": "post_attention_layernorm", "pre_ffw_norm": "pre_feedforward_layernorm",
                  "post_ffw_norm": "post_feedforward_layernorm"}  # fmt: skip
    for theirs, ours in norms.items():
        yield Source(f"llm/layers/{theirs}/scale", "LD", "D", (f"{layer}{ours}.weight",))
    yield Source("llm/final_norm/scale", "D", "D", ("language_model.norm.weight",))


def _vision() -> Iterator[Source]:
    yield Source("img/embedding/kernel", "yx3d", "d3yx", (PATCHES,))
    yield Source("img/embedding/bias", "d", "d", ("vision_tower.embeddings.patch_embedding.bias",))
    yield Source("img/pos_embedding", "1sd", "sd", ("vision_tower.embeddings.position_embedding.weight",))
    theirs, ours = "img/Transformer/encoderblock/", "vision_tower.encoder.layers.{}."
    for side in ("query", "key", "value"):
        array, name = f"{theirs}MultiHeadDotProductAttention_0/{side}", f"{ours}self_attn.{side[0]}_proj"
        yield from _linear(array, name, ("ldnh", "nhd"), ("lnh", "nh"))
    yield from _linear(f"{theirs}MultiHeadDotProductAttention_0/out", f"{ours}self_attn.out_proj", ("lnhd", "dnh"), ("ld", "d"))
    yield from _linear(f"{theirs}MlpBlock_0/Dense_0", f"{ours}mlp.fc1", ("ldf", "fd"), ("lf", "f"))
    yield from _linear(f"{theirs}MlpBlock_0/Dense_1", f"{ours}mlp.fc2", ("lfd", "df"), ("ld", "d"))
    yield from _layer_norm(f"{theirs}LayerNorm_0", f"{ours}layer_norm1", "ld")
    yield from _layer_norm(f"{theirs}LayerNorm_1", f"{ours}layer_norm2", "ld")
    yield from _layer_norm("img/Transformer/encoder_norm", "vision_tower.post_layernorm", "d")
    yield from _linear("img/head", "multi_modal_projector.linear", ("dD", "Dd"), ("D", "D"))


def _linear(array: str, name: str, kernel: tuple[str, str], bias: tuple[str, str]) -> Iterator[Source]:
    yield Source(f"{array}/kernel", *kernel, (f"{name}.weight",))
    yield Source(f"{array}/bias", *bias, (f"{name}.bias",))


def _layer_norm(array: str, name: str, axes: str) -> Iterator[Source]:
    for theirs, ours in (("scale", "weight"), ("bias", "bias")):
        yield Source(f"{array}/{theirs}", axes, "d", (f"{name}.{ours}",))
