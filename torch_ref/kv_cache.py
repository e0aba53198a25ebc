"""Keys and values of the tokens seen so far, PyTorch. Mirror of mlx_paligemma/model/kv_cache.py.

Paper: Fast Transformer Decoding, arXiv:1911.02150.
Axes: B rows, K key-value heads, L cached tokens, H head size.
"""

import torch
from torch import Tensor

from mlx_paligemma.common.config import GemmaConfig


class LayerCache:
    """One layer's keys and values, in arrays of a fixed capacity that are filled from the left."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device):
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.offset = 0

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, K, new, H]; return all so far, [B, K, L, H] each."""
        end = self.offset + keys.shape[2]
        self.keys[:, :, self.offset : end] = keys
        self.values[:, :, self.offset : end] = values
        self.offset = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """The caches of all layers. `padding` [B] counts the empty columns at the left of each row (None: none anywhere)."""

    def __init__(
        self,
        config: GemmaConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        padding: Tensor | None = None,
        device: torch.device = torch.device("cpu"),
    ):
        shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        self.layers = [LayerCache(shape, dtype, device) for _ in range(config.num_hidden_layers)]
        self.padding = padding

    @property
    def offset(self) -> int:
        """Columns filled so far."""
        return self.layers[-1].offset
