"""The cache of rows that decode together, although each began and ends on its own.

Rows share their columns: the newest token of all lies in the same one, and what is empty lies at the left of a row. A row only
knows how far its tokens are from each other, so it can be moved along the columns: newcomers are set beside the others' newest
tokens, and what is empty in all rows is cut off. Continuous batching: Orca, OSDI 2022.
Axes: B rows, K key-value heads, C columns, H head_dim, V vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..decode_step import Arrays, DecodeStep, capacity_for
from ..model.kv_cache import KVCache


@dataclass(frozen=True)
class Columns:
    """Keys and values of some rows, in each layer [B, K, C, H], of which `filled` columns are in use."""

    keys: Arrays
    values: Arrays
    filled: int
    padding: tuple[int, ...]  # of each row, empty columns at its left

    @classmethod
    def of(cls, cache: KVCache) -> Columns:
        """What a prefill of one row has left."""
        keys, values = ([getattr(layer, name) for layer in cache.layers] for name in ("keys", "values"))
        return cls(keys, values, cache.offset, (0,))

    def rows(self, places: Sequence[int]) -> Columns:
        """These rows alone, in this order, without columns that are empty in all of them."""
        empty = min(self.padding[place] for place in places)
        index = mx.array(list(places))
        keys, values = ([array[index, :, empty : self.filled] for array in arrays] for arrays in (self.keys, self.values))
        return Columns(keys, values, self.filled - empty, tuple(self.padding[place] - empty for place in places))

    def beside(self, other: Columns) -> Columns:
        """These rows and those of `other`, their newest tokens in one column."""
        filled = max(self.filled, other.filled)
        parts = [part._in_columns(filled, filled) for part in (self, other)]
        pairs = [zip(*(getattr(part, name) for part in parts), strict=True) for name in ("keys", "values")]
        keys, values = ([mx.concatenate(list(pair)) for pair in of_layers] for of_layers in pairs)
        return Columns(keys, values, filled, parts[0].padding + parts[1].padding)

    def with_room(self, columns: int) -> Columns:
        """In arrays of so many columns."""
        return self._in_columns(self.filled, columns)

    def _in_columns(self, filled: int, columns: int) -> Columns:
        left, right = filled - self.filled, columns - filled
        keys, values = (
            [mx.pad(array[:, :, : self.filled], [(0, 0), (0, 0), (left, right), (0, 0)]) for array in arrays]
            for arrays in (self.keys, self.values)
        )
        return Columns(keys, values, filled, tuple(empty + left for empty in self.padding))


class SharedRows:
    """Rows that decode together, by the keys under which they were added."""

    def __init__(self, step: DecodeStep):
        self._step = step
        self._columns: Columns | None = None
        self._left: list[int] = []  # tokens that each row may still add
        self._padding, self._offset = mx.array([0]), mx.array([0])

    def __len__(self) -> int:
        return len(self._left)

    def add(self, cache: KVCache, new_tokens: int) -> None:
        """A row whose prefill is done, as the last one. `new_tokens`: steps that it may take at most."""
        row, others = Columns.of(cache), self._columns
        together = row if others is None else others.rows(range(len(self))).beside(row)
        self._left.append(new_tokens)
        self._settle(together)

    def keep(self, places: Sequence[int]) -> None:
        """Let go of all rows but these."""
        self._left = [self._left[place] for place in places]
        assert self._columns is not None
        if places:
            self._settle(self._columns.rows(places))
        else:
            self._columns = None

    def __call__(self, tokens: mx.array) -> mx.array:
        """The next token of every row, int [B]; logits [B, 1, V]."""
        columns, rows = self._columns, len(self)
        assert columns is not None
        self._columns = None  # the step is to be the arrays' only owner, so that it may write to them
        filled, padding, keys, values = columns.filled, columns.padding, columns.keys, columns.values
        del columns
        spare = mx.broadcast_to(tokens[:1], (len(padding) - rows,))
        logits, keys, values = self._step(mx.concatenate([tokens, spare])[:, None], self._offset, self._padding, keys, values)
        self._columns = Columns(keys, values, filled + 1, padding)
        self._offset = self._offset + 1
        self._left = [left - 1 for left in self._left]
        return logits[:rows]

    def _settle(self, columns: Columns) -> None:
        """Room for what is to come, and a number of rows for which a step may have been compiled: 1, 2, 4, 8 ..."""
        size = 1 << (len(self) - 1).bit_length()
        spare = size - len(self)
        whole = columns.rows([*range(len(self)), *[0] * spare]) if spare else columns
        room = capacity_for(whole.filled + max(self._left))
        self._columns = whole.with_room(room)
        self._padding, self._offset = mx.array(self._columns.padding), mx.array([self._columns.filled])
        mx.eval(self._columns.keys, self._columns.values)
