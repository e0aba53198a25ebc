"""The decoding step of a fused model: one graph for every position, compiled once for each size of the cache.

The position is an array and not a number, so that no step differs from the one before it; the cache is handed in and given back,
and written in place. Axes: B rows, S new tokens, C columns of the cache, K key-value heads, H head_dim, V vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from .device import on_gpu
from .model.kv_cache import KVCache

if TYPE_CHECKING:
    from .fusion import FusedPaliGemma

BLOCK = 256  # columns: capacities are multiples, so that requests of about one length share a compiled step
Arrays = list[mx.array]
Rows = tuple[int, int]  # of the output layer, first and past the last


def capacity_for(tokens: int) -> int:
    """Columns of the cache for so many tokens."""
    return -(-tokens // BLOCK) * BLOCK


class DecodeStep:
    """Runs S new tokens through the filled cache."""

    def __init__(self, model: FusedPaliGemma, compiled: bool | None = None):
        """`compiled` None: where MLX computes on a GPU. For the CPU a compiler would have to be started for each new kernel."""
        self.model = model
        self.traces = 0  # graphs that were compiled: one per shape of tokens and cache
        self._compiles = on_gpu() if compiled is None else compiled
        self._compiled: dict[Rows | None, Callable[..., tuple[mx.array, Arrays, Arrays]]] = {}

    def __call__(
        self, tokens: mx.array, offset: mx.array, padding: mx.array | None, keys: Arrays, values: Arrays, rows: Rows | None = None
    ) -> tuple[mx.array, Arrays, Arrays]:
        """As `plain`. The arrays of the cache must not be used afterwards, or they are copied."""
        if not self._compiles:
            return self.plain(tokens, offset, padding, keys, values, rows)
        if rows not in self._compiled:
            self._compiled[rows] = mx.compile(partial(self._traced, rows=rows))
        return self._compiled[rows](tokens, offset, padding, keys, values)

    def plain(
        self, tokens: mx.array, offset: mx.array, padding: mx.array | None, keys: Arrays, values: Arrays, rows: Rows | None = None
    ) -> tuple[mx.array, Arrays, Arrays]:
        """One step, not compiled.

        Args:
            tokens: int [B, S].
            offset: int32 [1], columns that are filled.
            padding: int [B], empty columns at the left of each row; None: none.
            keys: of each layer [B, K, C, H].
            values: likewise.
            rows: those of the output layer that are wanted; None: all V.

        Returns:
            Logits [B, S, V or wanted rows] and the written cache.
        """
        text: Any = self.model.language_model
        caches = [ColumnCache(*pair, offset) for pair in zip(keys, values, strict=True)]
        first = mx.broadcast_to(offset + 1, (len(tokens),)) if padding is None else offset + 1 - padding
        masks = self._masks(tokens.shape[1], keys[0].shape[2], offset, padding)
        x = text.embed(tokens)
        for layer, kind, cache in zip(text.layers, text.config.layer_types, caches, strict=True):
            x = layer(x, first, masks[kind], cache)
        return self.model.logits(text.norm(x), rows), [cache.keys for cache in caches], [cache.values for cache in caches]

    def _traced(self, *given: Any, rows: Rows | None) -> tuple[mx.array, Arrays, Arrays]:
        self.traces += 1
        tokens, offset, padding, keys, values = given
        return self.plain(tokens, offset, padding, keys, values, rows)

    def _masks(self, queries: int, columns: int, offset: mx.array, padding: mx.array | None) -> dict[str, mx.array]:
        """Bool [B or 1, 1, S, C] for each kind of layer: a query sees itself and what is before it, within its window."""
        key, query = mx.arange(columns), (offset if queries == 1 else offset + mx.arange(queries))[:, None]
        seen = (key <= query)[None, None]
        if padding is not None:
            seen = seen & (key >= padding[:, None, None, None])
        window = self.model.config.text.sliding_window
        sliding = seen if window is None or columns <= window else seen & (key > query - window)
        return {"full_attention": seen, "sliding_attention": sliding}


class ColumnCache:
    """One layer's keys and values during a step, as `LayerCache`, with the column to write to as an array."""

    def __init__(self, keys: mx.array, values: mx.array, offset: mx.array):
        self.keys, self.values, self.offset = keys, values, offset

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write keys and values [B, K, S, H]; return all columns, [B, K, C, H] each."""
        self.keys = mx.slice_update(self.keys, keys, self.offset, axes=(2,))
        self.values = mx.slice_update(self.values, values, self.offset, axes=(2,))
        return self.keys, self.values


class Decoding:
    """Decoding after a prefill: the cache, and how far it is filled. Rows share their columns; `padding` tells them apart."""

    def __init__(self, step: DecodeStep, cache: KVCache):
        self._step, self._padding = step, cache.padding
        self._offset = mx.array([cache.offset])
        self._keys, self._values = ([getattr(layer, name) for layer in cache.layers] for name in ("keys", "values"))
        cache.layers.clear()  # the step is to be the arrays' only owner, so that it may write to them

    def __call__(self, tokens: mx.array, rows: Rows | None = None) -> mx.array:
        """The next tokens, int [B, S]; logits [B, S, V], or of the wanted `rows` of the output layer alone."""
        keys, values = self._keys, self._values
        self._keys = self._values = []
        logits, self._keys, self._values = self._step(tokens, self._offset, self._padding, keys, values, rows)
        self._offset = self._offset + tokens.shape[1]
        return logits

    def back(self, columns: int) -> None:
        """Forget the last columns: the next tokens are written over them."""
        self._offset = self._offset - columns
