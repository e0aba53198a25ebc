"""The modules of a fused model: fewer and larger kernels than those of model/, and the same numbers.

Each takes over the weights of the module that it stands for. `fusion.py` puts them in; tests prove them equal.
Element-wise arithmetic is float32 within a kernel, whatever it reads and writes.
Axes: B rows, S new tokens, L all tokens, D hidden_size, N heads, K key-value heads, G = N / K, H head_dim, P patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .model.gemma import Gemma2Layer, GemmaAttention, GemmaLayer, RMSNorm
from .model.kv_cache import LayerCache
from .model.siglip import SiglipAttention, SiglipMLP, SiglipVisionEmbeddings
from .packed_layers import PackedLinear

QUERIES = 1536  # queries that attend at a time, at most: at 896 pixels the scores of all would take gigabytes


@partial(mx.compile, shapeless=True)
def gelu(x: mx.array) -> mx.array:
    """GELU with the tanh, as one kernel."""
    return _gelu(x.astype(mx.float32)).astype(x.dtype)


@partial(mx.compile, shapeless=True)
def geglu(gate: mx.array, up: mx.array) -> mx.array:
    """The gated activation of Gemma's MLP, as one kernel."""
    return (_gelu(gate.astype(mx.float32)) * up.astype(mx.float32)).astype(gate.dtype)


@partial(mx.compile, shapeless=True)
def capped(scores: mx.array, scale: float, cap: float) -> mx.array:
    """Attention scores scaled and soft-capped, as one kernel."""
    return _capped(scores, scale, cap)


@partial(mx.compile, shapeless=True)
def capped_and_masked(scores: mx.array, mask: mx.array, scale: float, cap: float) -> mx.array:
    """The same for scores [B, K, G, S, L], which lose all weight where mask [B, 1, S, L] is False."""
    return mx.where(mask[:, :, None], _capped(scores, scale, cap), mx.finfo(scores.dtype).min)


@partial(mx.compile, shapeless=True)
def plus_scaled(x: mx.array, normed: mx.array, weight: mx.array) -> mx.array:
    """X + normed * (1 + weight), as one kernel."""
    return (x.astype(mx.float32) + normed.astype(mx.float32) * (1 + weight.astype(mx.float32))).astype(x.dtype)


class PlainNorm(nn.Module):
    """RMS norm without a weight: the layers that read it have taken 1 + w into theirs."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """[..., D] -> [..., D]."""
        return mx.fast.rms_norm(x, None, self.eps)


class FoldedNorm(nn.Module):
    """RMS norm with 1 + w as one array of the model's dtype: the last norm, whose reader is often the embedding table too."""

    def __init__(self, norm: RMSNorm):
        super().__init__()
        self.weight = (1.0 + norm.weight.astype(mx.float32)).astype(norm.weight.dtype)
        self.eps = norm.eps

    def __call__(self, x: mx.array) -> mx.array:
        """[..., D] -> [..., D]."""
        return mx.fast.rms_norm(x, self.weight, self.eps)


class BranchEnd(nn.Module):
    """The end of a branch of Gemma: its last product, added to what the branch began with."""

    def __init__(self, proj: nn.Linear):
        super().__init__()
        self.proj = proj

    def __call__(self, x: mx.array, branch: mx.array) -> mx.array:
        """X [B, S, D] and branch [B, S, its width] -> [B, S, D]."""
        if isinstance(self.proj, nn.QuantizedLinear):
            return x + self.proj(branch)
        return mx.addmm(x, branch, self.proj.weight.T)


class NormedBranchEnd(nn.Module):
    """The end of a branch of Gemma 2: its last product, normed, and added to what the branch began with."""

    def __init__(self, proj: nn.Linear, norm: RMSNorm):
        super().__init__()
        self.proj, self.weight, self.eps = proj, norm.weight, norm.eps

    def __call__(self, x: mx.array, branch: mx.array) -> mx.array:
        """X [B, S, D] and branch [B, S, its width] -> [B, S, D]."""
        return plus_scaled(x, mx.fast.rms_norm(self.proj(branch), None, self.eps), self.weight)


class SideBySide(nn.Module):
    """Layers that cannot be one product, since their weights are packed in different forms."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = list(layers)

    def __call__(self, x: mx.array) -> mx.array:
        """[..., in] -> [..., all outs]."""
        return mx.concatenate([layer(x) for layer in self.layers], axis=-1)


class FusedLayer(nn.Module):
    """A layer of Gemma or Gemma 2. In prefill the output of the last one, like that of the model, is the last position's alone."""

    def __init__(self, layer: GemmaLayer | Gemma2Layer, is_last: bool = False, force_fused: bool = False):
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        if isinstance(layer, Gemma2Layer):
            before_mlp = layer.pre_feedforward_layernorm
            self.attention_end: nn.Module = NormedBranchEnd(attention.o_proj, layer.post_attention_layernorm)
            self.mlp_end: nn.Module = NormedBranchEnd(mlp.down_proj, layer.post_feedforward_layernorm)
        else:
            before_mlp = layer.post_attention_layernorm
            self.attention_end, self.mlp_end = BranchEnd(attention.o_proj), BranchEnd(mlp.down_proj)
        self.attention_norm = absorbed(layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj])
        self.mlp_norm = absorbed(before_mlp, [mlp.gate_proj, mlp.up_proj])
        self.attention = (LastAttention if is_last else FusedAttention)(attention, force_fused)
        self.gate_up_proj = joined([mlp.gate_proj, mlp.up_proj])

    def __call__(self, x: mx.array, offset: mx.array, mask: mx.array | None, cache: Any) -> mx.array:
        """[B, S, D] -> [B, S, D]; the last layer through an empty cache: [B, 1, D]. The other arguments are `GemmaLayer`'s."""
        normed = self.attention_norm(x)
        if isinstance(self.attention, LastAttention) and isinstance(cache, LayerCache) and not cache.offset:
            x, mixed = x[:, -1:], self.attention.last(normed, 1, offset, mask, cache)
        else:
            mixed = self.attention(normed, offset, mask, cache)
        x = self.attention_end(x, mixed)
        gate, up = mx.split(self.gate_up_proj(self.mlp_norm(x)), 2, axis=-1)
        return self.mlp_end(x, geglu(gate, up))


class FusedAttention(nn.Module):
    """Gemma's attention up to its last product: one product for queries, keys and values, one rotation for queries and keys."""

    def __init__(self, attention: GemmaAttention, force_fused: bool):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = attention.num_heads, attention.num_kv_heads, attention.head_dim
        self.attend, self.rope = Attend(attention, force_fused), attention.rope
        self.qkv_proj = joined([attention.q_proj, attention.k_proj, attention.v_proj])

    def __call__(self, x: mx.array, offset: mx.array, mask: mx.array | None, cache: Any) -> mx.array:
        """[B, S, D] -> [B, S, N * H]; the other arguments are `GemmaAttention`'s."""
        heads = _heads(self.qkv_proj(x), self.head_dim)
        rotated = self.rope(heads[:, : -self.num_kv_heads], offset)
        k, v = rotated[:, self.num_heads :], heads[:, -self.num_kv_heads :]
        if cache is not None:
            k, v = cache.update(k, v)
        return _side_by_side(self.attend(rotated[:, : self.num_heads], k, v, mask))


class LastAttention(nn.Module):
    """The attention of the last layer: in prefill only the last position has to ask, while all are asked."""

    def __init__(self, attention: GemmaAttention, force_fused: bool):
        super().__init__()
        self.num_kv_heads, self.head_dim = attention.num_kv_heads, attention.head_dim
        self.attend, self.rope = Attend(attention, force_fused), attention.rope
        self.q_proj, self.kv_proj = attention.q_proj, joined([attention.k_proj, attention.v_proj])

    def __call__(self, x: mx.array, offset: mx.array, mask: mx.array | None, cache: Any) -> mx.array:
        """As `FusedAttention`."""
        return self.last(x, x.shape[1], offset, mask, cache)

    def last(self, x: mx.array, count: int, offset: mx.array, mask: mx.array | None, cache: Any) -> mx.array:
        """The last `count` positions only: [B, S, D] -> [B, count, N * H]."""
        skipped = x.shape[1] - count
        q = self.rope(_heads(self.q_proj(x[:, skipped:]), self.head_dim), offset + skipped if skipped else offset)
        k, v = mx.split(_heads(self.kv_proj(x), self.head_dim), 2, axis=1)
        k = self.rope(k, offset)
        if cache is not None:
            k, v = cache.update(k, v)
        return _side_by_side(self.attend(q, k, v, None if mask is None else mask[:, :, skipped:]))


class Attend:
    """Queries, keys and values to their mixture. Heads that share keys and values are rows of one product."""

    def __init__(self, attention: GemmaAttention, force_fused: bool):
        self.num_kv_heads, self.scale, self.force_fused = attention.num_kv_heads, attention.scale, force_fused
        self.cap: float | None = getattr(attention, "cap", None)

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
        """Q [B, N, S, H], k and v [B, K, L, H], mask bool [B, 1, S, L] or None -> [B, N, S, H], QUERIES at a time."""
        if q.shape[2] <= QUERIES:
            return self._some(q, k, v, mask)
        parts = [self._some(q[:, :, cut], k, v, None if mask is None else mask[:, :, cut]) for cut in _pieces(q.shape[2])]
        return mx.concatenate(parts, axis=2)

    def _some(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
        if self.cap is not None:
            return self._capped(q, k, v, mask, self.cap)
        if q.shape[2] == 1 or mask is not None or self.force_fused:
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=mask, force_fused=self.force_fused)
        return mx.fast.scaled_dot_product_attention(self._rows(q), k, v, scale=self.scale).reshape(q.shape)

    def _capped(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None, cap: float) -> mx.array:
        """Gemma 2. The cap comes before the mask, which no kernel of MLX's knows."""
        scores = self._rows(q) @ k.swapaxes(-1, -2)
        if mask is None:
            scores = capped(scores, self.scale, cap)
        else:
            split = mx.unflatten(scores, 2, (-1, q.shape[2]))
            scores = capped_and_masked(split, mask, self.scale, cap).flatten(2, 3)
        return (mx.softmax(scores, axis=-1, precise=True) @ v).reshape(q.shape)

    def _rows(self, q: mx.array) -> mx.array:
        """[B, N, S, H] -> [B, K, G * S, H]."""
        return mx.unflatten(q, 1, (self.num_kv_heads, -1)).flatten(2, 3)


class FusedSiglipAttention(nn.Module):
    """The tower's attention with one product for queries, keys and values."""

    def __init__(self, attention: SiglipAttention):
        super().__init__()
        self.num_heads, self.scale = attention.num_heads, attention.scale
        self.qkv_proj = joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out_proj = attention.out_proj

    def __call__(self, x: mx.array) -> mx.array:
        """[B, P, D] -> [B, P, D]."""
        q, k, v = mx.split(_heads(self.qkv_proj(x), x.shape[-1] // self.num_heads), 3, axis=1)
        parts = [mx.fast.scaled_dot_product_attention(q[:, :, cut], k, v, scale=self.scale) for cut in _pieces(q.shape[2])]
        return self.out_proj(_side_by_side(mx.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]))


class FusedSiglipMLP(nn.Module):
    """The tower's MLP with the cheaper form of its GELU."""

    def __init__(self, mlp: SiglipMLP):
        super().__init__()
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2

    def __call__(self, x: mx.array) -> mx.array:
        """[B, P, D] -> [B, P, D]."""
        return self.fc2(gelu(self.fc1(x)))


class FusedPatches(nn.Module):
    """Patch embedding as one product: a patch is a row of its pixels."""

    def __init__(self, embeddings: SiglipVisionEmbeddings):
        super().__init__()
        kernel = embeddings.patch_embedding.weight
        self.side = kernel.shape[1]
        self.patch_embedding = _linear(kernel.reshape(kernel.shape[0], -1), embeddings.patch_embedding.bias)
        self.position_embedding = embeddings.position_embedding

    def __call__(self, pixel_values: mx.array) -> mx.array:
        """[B, height, width, 3] in [-1, 1] -> [B, P, D]."""
        count = pixel_values.shape[1] // self.side
        cut = mx.unflatten(mx.unflatten(pixel_values, 2, (count, self.side)), 1, (count, self.side))
        patches = cut.transpose(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
        return self.patch_embedding(patches.astype(self.patch_embedding.weight.dtype)) + self.position_embedding.weight


def absorbed(norm: RMSNorm, layers: Sequence[nn.Linear]) -> nn.Module:
    """The norm without its 1 + w, by which the inputs of the layers that read it are multiplied instead.

    In bfloat16 that rounds their weights. Kept beside the norm, 1 + w would be rounded, and the normed numbers twice: MLX's
    kernel rounds them before it multiplies. At the published widths, with random weights, logits of the fused PaliGemma 1 are
    2.3 % further from float32 than those of the model (six pictures), of PaliGemma 2 1 %, of the demo 2 % nearer. Exact norms
    would be three kernels each instead of one, and arrays of float32. Packed layers cannot take it.
    """
    if any(isinstance(layer, nn.QuantizedLinear) for layer in layers):
        return FoldedNorm(norm)
    scale = 1.0 + norm.weight.astype(mx.float32)
    for layer in layers:
        layer.weight = (layer.weight.astype(mx.float32) * scale).astype(layer.weight.dtype)
    return PlainNorm(norm.eps)


def joined(layers: Sequence[Any]) -> nn.Module:
    """One layer whose outputs are those of `layers`, linear ones, packed or not, one after the other."""
    if any(isinstance(layer, nn.QuantizedLinear) for layer in layers):
        alike = len({_form(layer) for layer in layers}) == 1
        return _joined_packed(layers) if alike else SideBySide(layers)
    weight = mx.concatenate([layer.weight for layer in layers])
    bias = mx.concatenate([layer.bias for layer in layers]) if "bias" in layers[0] else None
    return _linear(weight, bias)


def _form(layer: nn.Module) -> tuple[object, ...]:
    return tuple(getattr(layer, name, None) for name in ("bits", "group_size", "mode"))


def _joined_packed(layers: Sequence[nn.QuantizedLinear]) -> nn.QuantizedLinear:
    first = layers[0]
    joint = PackedLinear(128, 2, "bias" in first, first.group_size, first.bits, first.mode)
    joint.update({name: mx.concatenate([layer[name] for layer in layers]) for name in first.parameters()})
    return joint


def _linear(weight: mx.array, bias: mx.array | None) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=bias is not None)
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer


def _capped(scores: mx.array, scale: float, cap: float) -> mx.array:
    return (cap * mx.tanh(scores.astype(mx.float32) * (scale / cap))).astype(scores.dtype)


def _gelu(x: mx.array) -> mx.array:
    """With u = sqrt(2 / pi) * (x + 0.044715 x ** 3), 0.5 * (1 + tanh(u)) is 1 / (1 + exp(-2 u)), which takes half the work."""
    double = 2 * math.sqrt(2 / math.pi)
    return x / (1 + mx.exp(x * (-double - 0.044715 * double * (x * x))))


def _pieces(queries: int) -> list[slice]:
    """Pieces of about one size, QUERIES at most."""
    size = -(-queries // -(-queries // QUERIES))
    return [slice(start, start + size) for start in range(0, queries, size)]


def _heads(x: mx.array, size: int) -> mx.array:
    """[B, S, heads * H] -> [B, heads, S, H]."""
    return mx.unflatten(x, -1, (-1, size)).transpose(0, 2, 1, 3)


def _side_by_side(x: mx.array) -> mx.array:
    """[B, N, S, H] -> [B, S, N * H]."""
    return x.transpose(0, 2, 1, 3).flatten(2)
