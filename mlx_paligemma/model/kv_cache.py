"""Keys and values of the tokens seen so far, MLX. Mirror of torch_ref/kv_cache.py.

Paper: Fast Transformer Decoding, arXiv:1911.02150.
Axes: B rows, K key-value heads, L cached tokens, H head size.
"""

import mlx.core as mx

from ..common.config import GemmaConfig


class LayerCache:
    """One layer's keys and values, in arrays of a fixed capacity that are filled from the left."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: mx.Dtype):
        self.keys = mx.zeros(shape, dtype=dtype)
        self.values = mx.zeros(shape, dtype=dtype)
        self.offset = 0

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values [B, K, new, H]; return all so far, [B, K, L, H] each."""
        end = self.offset + keys.shape[2]
        self.keys[:, :, self.offset : end] = keys
        self.values[:, :, self.offset : end] = values
        self.offset = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """The caches of all layers. `padding` [B] counts the empty columns at the left of each row (None: none anywhere)."""

    def __init__(self, config: GemmaConfig, batch: int, capacity: int, dtype: mx.Dtype, padding: mx.array | None = None):
        shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        self.layers = [LayerCache(shape, dtype) for _ in range(config.num_hidden_layers)]
        self.padding = padding

    @property
    def offset(self) -> int:
        """Columns filled so far."""
        return self.layers[-1].offset
