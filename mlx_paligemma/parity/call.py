"""One call of a module as plain NumPy values, which belong to neither backend and can lie on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

DECODED = "decoded"  # no module, but the logits [B, 1 + T, V] after the prompts and after each of the decoded tokens
MASK_CODEC = "mask_codec"  # the codec is a network of its own; its modules bear this in front


@dataclass(frozen=True, eq=False)
class LayerState:
    """What a layer's cache held when the call began."""

    keys: np.ndarray  # [B, K, offset, H]
    values: np.ndarray
    capacity: int  # columns that it has room for


@dataclass(frozen=True, eq=False)
class CacheState:
    """The caches of all layers."""

    layers: tuple[LayerState, ...]
    padding: np.ndarray | None  # int [B]


@dataclass(frozen=True, eq=False)
class Call:
    """What one module or method of the reference was given, and what it made of it."""

    name: str  # path of the module or method, "" for the whole model
    arguments: tuple[Any, ...]  # arrays in MLX's layout, cache states, numbers, None
    output: np.ndarray
    named: dict[str, Any] = field(default_factory=dict)
    scene: str = ""  # during which run: "forward", "prefill", "decode", "masks"
    real: np.ndarray | None = None  # bool [B, L], False on padding, where any result is right; None: all are compared
    after: tuple[LayerState, ...] = ()  # what the caches among an attention's arguments held when it returned

    def mapped(self, change: Callable[[Any], Any]) -> Call:
        """The same call with every array changed."""
        arguments = mapped(self.arguments, change), mapped(self.named, change)
        after = mapped(self.after, change)
        return replace(self, arguments=arguments[0], named=arguments[1], output=change(self.output), after=after)

    def compared(self, array: np.ndarray) -> np.ndarray:
        """The part of an output that counts: positions of hidden states that are padding do not."""
        real = self.real
        return array if real is None or array.ndim != 3 or array.shape[:2] != real.shape else array[real]


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value with `change` applied to everything that is no container and no cache state."""
    match value:
        case tuple():
            return tuple(mapped(item, change) for item in value)
        case dict():
            return {key: mapped(item, change) for key, item in value.items()}
        case LayerState():
            return replace(value, keys=change(value.keys), values=change(value.values))
        case CacheState():
            padding = None if value.padding is None else change(value.padding)
            return CacheState(tuple(mapped(layer, change) for layer in value.layers), padding)
    return change(value)
