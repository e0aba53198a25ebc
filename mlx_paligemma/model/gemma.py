"""Gemma and Gemma 2 text decoders, MLX. Mirror of torch_ref/gemma.py.

Papers: Gemma, arXiv:2403.08295; Gemma 2, arXiv:2408.00118; RMSNorm, arXiv:1910.07467; RoPE, arXiv:2104.09864;
grouped key-value heads, arXiv:2305.13245; the prefix mask, PaliGemma, arXiv:2407.07726, section 3.
Axes: B rows, S new tokens (queries), L all tokens (keys), D hidden_size, N heads, K key-value heads, G = N / K, H head_dim.
Positions count from 1; columns of left padding have positions of 0 and below.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..common.config import GemmaConfig
from .kv_cache import KVCache, LayerCache


def soft_cap(x: mx.array, cap: float) -> mx.array:
    """Squeeze values smoothly into (-cap, cap)."""
    return cap * mx.tanh(x / cap)


def prefix_lm_mask(start: mx.array, queries: int, keys: int, prefix_length: mx.array, window: int | None = None) -> mx.array:
    """Who may look at whom: bool [B, 1, queries, keys], True where a query sees a key.

    start [B] is the position of the first key column, prefix_length [B] the number of tokens that see one another
    freely; the queries are the last columns. A prefix query sees the whole prefix, a later one itself and everything
    before it, or with a window its last `window` tokens; nobody sees padding.
    """
    key = (start[:, None] + mx.arange(keys))[:, None, None, :]
    query = (start[:, None] + mx.arange(keys - queries, keys))[:, None, :, None]
    prefix = prefix_length[:, None, None, None]
    seen = (key >= 1) & (key <= mx.maximum(query, prefix))
    if window is not None:
        seen &= (key > query - window) | ((query <= prefix) & (key <= prefix))
    return seen


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight), all of it in float32, and only the result in the dtype of x."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = mx.zeros(size)
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """[..., D] -> [..., D]."""
        scale = 1.0 + self.weight.astype(mx.float32)
        return mx.fast.rms_norm(x.astype(mx.float32), scale, self.eps).astype(x.dtype)


class GemmaMLP(nn.Module):
    """Gated MLP with the tanh GELU."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """[B, S, D] -> [B, S, D]."""
        return self.down_proj(nn.gelu_approx(self.gate_proj(x)) * self.up_proj(x))


class GemmaAttention(nn.Module):
    """Grouped-query attention with rotary positions. Query head n reads key-value head n // G."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.scale = config.query_scale
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)
        self.rope: Any = nn.RoPE(self.head_dim, traditional=False, base=config.rope_theta)

    def __call__(self, x: mx.array, offset: mx.array, mask: mx.array | None, cache: LayerCache | None) -> mx.array:
        """[B, S, D], the position [B] of its first token, mask [B, 1, S, L] or None -> [B, S, D]."""
        q = self.rope(self._heads(self.q_proj(x)), offset)
        k = self.rope(self._heads(self.k_proj(x)), offset)
        v = self._heads(self.v_proj(x))
        if cache is not None:
            k, v = cache.update(k, v)
        return self.o_proj(self._attend(q, k, v, mask).transpose(0, 2, 1, 3).flatten(2))

    def _heads(self, x: mx.array) -> mx.array:
        """[B, S, heads * H] -> [B, heads, S, H]."""
        return mx.unflatten(x, -1, (-1, self.head_dim)).transpose(0, 2, 1, 3)

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
        """Q [B, N, S, H], k and v [B, K, L, H] -> [B, N, S, H]."""
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=mask)


class Gemma2Attention(GemmaAttention):
    """Gemma 2 caps the scores before the mask, which the fused kernel cannot. The G heads of a group are rows of one product."""

    def __init__(self, config: GemmaConfig):
        super().__init__(config)
        self.cap = config.attn_logit_softcapping

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
        """Q [B, N, S, H], k and v [B, K, L, H] -> [B, N, S, H]."""
        if self.cap is None:
            return super()._attend(q, k, v, mask)
        rows = mx.unflatten(q, 1, (self.num_kv_heads, -1)).flatten(2, 3) * self.scale
        scores = mx.unflatten(soft_cap(rows @ k.swapaxes(-1, -2), self.cap), 2, (-1, q.shape[2]))
        if mask is not None:
            scores = mx.where(mask[:, :, None], scores, mx.finfo(scores.dtype).min)
        weights = mx.softmax(scores, axis=-1, precise=True)
        return (weights.flatten(2, 3) @ v).reshape(q.shape)


class GemmaLayer(nn.Module):
    """Pre-norm block: a norm before the attention and one before the MLP."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = GemmaAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GemmaMLP(config)

    def __call__(self, x: mx.array, offset: mx.array, mask: mx.array | None, cache: LayerCache | None) -> mx.array:
        """[B, S, D] -> [B, S, D]; the other arguments are those of the attention."""
        x = x + self.self_attn(self.input_layernorm(x), offset, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Gemma2Layer(nn.Module):
    """Sandwich block: each of attention and MLP has a norm before and one after it."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Gemma2Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GemmaMLP(config)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, x: mx.array, offset: mx.array, mask: mx.array | None, cache: LayerCache | None) -> mx.array:
        """[B, S, D] -> [B, S, D]; the other arguments are those of the attention."""
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), offset, mask, cache))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class GemmaModel(nn.Module):
    """Token embedding, the stack of layers and the final norm."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        layer = Gemma2Layer if config.model_type == "gemma2" else GemmaLayer
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [layer(config) for _ in range(config.num_hidden_layers)]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def embed(self, input_ids: mx.array) -> mx.array:
        """Int [B, S] -> [B, S, D]: table rows times sqrt(D), the factor rounded to the table's dtype first."""
        rows = self.embed_tokens(input_ids)
        return rows * mx.array(self.config.hidden_size**0.5, dtype=rows.dtype)

    def __call__(
        self, x: mx.array, padding: mx.array | None = None, prefix_length: mx.array | None = None, cache: KVCache | None = None
    ) -> mx.array:
        """Embedded tokens [B, S, D] -> normed hidden states [B, S, D].

        padding [B]: empty columns at each row's left, None for none. prefix_length [B]: tokens that see one another
        freely, None for all of them (or, once the cache holds tokens, for none of the new ones).
        """
        before = 0 if cache is None else cache.offset
        start = mx.ones(x.shape[0], dtype=mx.int32)
        start = start if padding is None else start - padding
        masks = self._masks(x.shape[1], before + x.shape[1], start, padding is not None, prefix_length)
        caches = [None] * len(self.layers) if cache is None else cache.layers
        for layer, kind, layer_cache in zip(self.layers, self.config.layer_types, caches, strict=True):
            x = layer(x, start + before, masks[kind], layer_cache)
        return self.norm(x)

    def _masks(
        self, queries: int, keys: int, start: mx.array, padded: bool, prefix_length: mx.array | None
    ) -> dict[str, mx.array | None]:
        """The mask of each kind of layer, None where nothing is hidden."""
        later = keys > queries  # the prefix is in the cache already
        window = self.config.sliding_window
        slides = window is not None and keys > window and (later or prefix_length is not None)
        hides = padded or prefix_length is not None or (later and queries > 1)
        if prefix_length is None:
            prefix_length = mx.zeros_like(start) if later else start + keys - 1
        full = prefix_lm_mask(start, queries, keys, prefix_length) if hides else None
        sliding = prefix_lm_mask(start, queries, keys, prefix_length, window) if slides else full
        return {"full_attention": full, "sliding_attention": sliding}
