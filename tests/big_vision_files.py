"""Tiny checkpoints as big_vision writes them: einsum kernels with an axis for the heads, layers stacked, in one npz.

A kernel is found from what its einsum must compute: fed with unit vectors, it gives the outputs that the linear map gives for
them. Only the definition of a linear map, y = x W^T, is taken for granted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from mlx_paligemma.common.config import PaliGemmaConfig

Arrays = dict[str, np.ndarray]


def responses(weight: np.ndarray) -> np.ndarray:
    """[out, in] -> [in, out]: what the linear map gives for each unit vector."""
    out, width = weight.shape
    given = np.empty((width, out), weight.dtype)
    for i in range(width):
        given[i] = weight[:, i]
    return given


def into_heads(weight: np.ndarray, heads: int) -> np.ndarray:
    """[N * H, D] -> [D, N, H], for a Dense of ViT whose features are (N, H): y[t, n, h] = x[t, d] w[d, n, h]."""
    given = responses(weight)
    return given.reshape(len(given), heads, -1)


def out_of_heads(weight: np.ndarray, heads: int) -> np.ndarray:
    """[D, N * H] -> [N, H, D], for a Dense over the axes (N, H): y[t, d] = x[t, n, h] w[n, h, d]."""
    given = responses(weight)
    return given.reshape(heads, -1, given.shape[-1])


def head_by_head(weight: np.ndarray, heads: int) -> np.ndarray:
    """[N * H, D] -> [N, D, H], for BTD,NDH->BTNH."""
    return np.stack(np.split(responses(weight), heads, axis=1))


def patch_kernel(weight: np.ndarray) -> np.ndarray:
    """[D, 3, y, x] -> [y, x, 3, D], for a convolution with channels last."""
    return np.moveaxis(weight, (0, 1), (3, 2))


def arrays(tensors: Mapping[str, np.ndarray], config: PaliGemmaConfig, tokens: int) -> Arrays:
    """The arrays of a checkpoint with these tensors, of which the embedding's first rows stand for `tokens`."""
    made = {
        "img/embedding/kernel": patch_kernel(tensors["vision_tower.embeddings.patch_embedding.weight"]),
        "img/embedding/bias": tensors["vision_tower.embeddings.patch_embedding.bias"],
        "img/pos_embedding": tensors["vision_tower.embeddings.position_embedding.weight"][None],
        "img/Transformer/encoder_norm/scale": tensors["vision_tower.post_layernorm.weight"],
        "img/Transformer/encoder_norm/bias": tensors["vision_tower.post_layernorm.bias"],
        "img/head/kernel": responses(tensors["multi_modal_projector.linear.weight"]),
        "img/head/bias": tensors["multi_modal_projector.linear.bias"],
        "llm/embedder/input_embedding": tensors["language_model.embed_tokens.weight"][:tokens],
        "llm/final_norm/scale": tensors["language_model.norm.weight"],
    }
    vision = [_vision_layer(_under(tensors, f"vision_tower.encoder.layers.{i}."), config)
              for i in range(config.vision.num_hidden_layers)]  # fmt: skip
    text = [_text_layer(_under(tensors, f"language_model.layers.{i}."), config) for i in range(config.text.num_hidden_layers)]
    for prefix, layers in (("img/Transformer/encoderblock/", vision), ("llm/layers/", text)):
        made |= {f"{prefix}{name}": np.stack([layer[name] for layer in layers]) for name in layers[0]}
    return {name: np.ascontiguousarray(array) for name, array in made.items()}


def write_npz(path: Path, made: Mapping[str, np.ndarray], *, prefix: str = "params/", deflated: bool = False) -> Path:
    """As big_vision does: uint16 stands for bfloat16, which NumPy saves as raw pairs of bytes."""
    named = {f"{prefix}{name}": array.view("V2") if array.dtype == np.uint16 else array for name, array in made.items()}
    save: Callable = np.savez_compressed if deflated else np.savez
    with path.open("wb") as file:
        save(file, **named)
    return path


def cut(path: Path, ends: list[int], digits: int = 2, first: int = 0) -> list[Path]:
    """Cut a file into pieces that end at these bytes, and remove it."""
    content = path.read_bytes()
    starts = [0, *ends]
    pieces = [path.with_name(f"{path.name}.part{i + first:0{digits}d}") for i in range(len(starts))]
    for piece, start, end in zip(pieces, starts, [*ends, None], strict=True):
        piece.write_bytes(content[start:end])
    path.unlink()
    return pieces


def as_numpy(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    """bfloat16 as uint16."""
    return {name: (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
            for name, tensor in tensors.items()}  # fmt: skip


def _under(tensors: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _vision_layer(layer: Mapping[str, np.ndarray], config: PaliGemmaConfig) -> Arrays:
    heads = config.vision.num_attention_heads
    made = {}
    for theirs, ours in (("MlpBlock_0/Dense_0", "mlp.fc1"), ("MlpBlock_0/Dense_1", "mlp.fc2")):
        made |= {f"{theirs}/kernel": responses(layer[f"{ours}.weight"]), f"{theirs}/bias": layer[f"{ours}.bias"]}
    for theirs, ours in (("LayerNorm_0", "layer_norm1"), ("LayerNorm_1", "layer_norm2")):
        made |= {f"{theirs}/scale": layer[f"{ours}.weight"], f"{theirs}/bias": layer[f"{ours}.bias"]}
    attention = "MultiHeadDotProductAttention_0/"
    for theirs, ours in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        made[f"{attention}{theirs}/kernel"] = into_heads(layer[f"self_attn.{ours}.weight"], heads)
        made[f"{attention}{theirs}/bias"] = np.stack(np.split(layer[f"self_attn.{ours}.bias"], heads))
    made[f"{attention}out/kernel"] = out_of_heads(layer["self_attn.out_proj.weight"], heads)
    return made | {f"{attention}out/bias": layer["self_attn.out_proj.bias"]}


def _text_layer(layer: Mapping[str, np.ndarray], config: PaliGemmaConfig) -> Arrays:
    heads, groups = config.text.num_attention_heads, config.text.num_key_value_heads
    made = {
        "attn/q_einsum/w": head_by_head(layer["self_attn.q_proj.weight"], heads),
        "attn/kv_einsum/w": np.stack([head_by_head(layer[f"self_attn.{side}_proj.weight"], groups) for side in "kv"]),
        "attn/attn_vec_einsum/w": out_of_heads(layer["self_attn.o_proj.weight"], heads),
        "mlp/gating_einsum": np.stack([responses(layer[f"mlp.{side}_proj.weight"]) for side in ("gate", "up")]),
        "mlp/linear": responses(layer["mlp.down_proj.weight"]),
        "pre_attention_norm/scale": layer["input_layernorm.weight"],
    }
    if config.text.model_type == "gemma":
        return made | {"pre_ffw_norm/scale": layer["post_attention_layernorm.weight"]}
    return made | {"post_attention_norm/scale": layer["post_attention_layernorm.weight"],
                   "pre_ffw_norm/scale": layer["pre_feedforward_layernorm.weight"],
                   "post_ffw_norm/scale": layer["post_feedforward_layernorm.weight"]}  # fmt: skip
