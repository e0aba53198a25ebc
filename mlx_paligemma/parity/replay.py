"""MLX's modules, one by one, on what the reference's modules of the same name were given.

An error shows at the module that makes it, and at no later one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn
import numpy as np

from ..model.kv_cache import KVCache, LayerCache
from . import budgets
from .call import MASK_CODEC, CacheState, Call, LayerState
from .capturing import capturing
from .distance import WRONG, Distance, distance
from .report import InputStatistics, ModuleParity
from .stages import CACHE, LAYER, TEXT, Handed, cache_distance, caches_of


@dataclass(frozen=True)
class Replayer:
    """The MLX networks by the names of their modules, and the numbers that they compute in."""

    modules: Mapping[str, mlx.nn.Module]
    dtype: mx.Dtype
    size: budgets.Size
    handed: Handed = field(default_factory=Handed)

    @classmethod
    def of(cls, model: mlx.nn.Module, codec: mlx.nn.Module | None = None, positions: int = 0) -> Replayer:
        """For a model, or a mask codec, or both; `positions` are the tokens of the longest row."""
        modules = dict(model.named_modules())
        if codec is not None:
            modules |= {f"{MASK_CODEC}.{name}".removesuffix("."): module for name, module in codec.named_modules()}
        if not hasattr(model, "language_model"):
            return cls(modules, mx.float32, budgets.Size())
        dtype = model.language_model.norm.weight.dtype  # norms are never quantised
        return cls(modules, dtype, budgets.Size(model.config.text.hidden_size, positions))

    def compare(self, call: Call) -> Iterator[ModuleParity]:
        """One module or method on the recorded arguments; before it what is no module, but shows there: masks, positions, cache."""
        dtype = mx.float32 if call.name.startswith(MASK_CODEC) else self.dtype
        given = as_mlx(call.arguments, dtype)
        self.handed.note(call)
        with self._listening(call):
            output = self.resolve(call.name)(*given, **as_mlx(call.named, dtype))
        if call.name == TEXT:
            yield from (self._stage(name, found, budgets.EXACT) for name, found in self.handed.compare())
        kept = cache_distance(caches_of(given), call)
        if kept is not None:
            yield self._stage(CACHE, kept, self._budget(call.name, dtype))
        yield self._module(call, output, dtype)

    @contextmanager
    def _listening(self, call: Call) -> Iterator[None]:
        """The text model hands masks and positions to its layers: these are looked at."""
        if call.name != TEXT:
            yield
            return
        with capturing(self.modules[TEXT], LAYER, self.handed.capture):
            yield

    def _module(self, call: Call, output: mx.array, dtype: mx.Dtype) -> ModuleParity:
        value = as_numpy(output)
        found = distance(call.compared(value), call.compared(call.output)) if value.shape == call.output.shape else WRONG
        finite = bool(np.isfinite(call.compared(value)).all())
        return ModuleParity(
            call.name,
            tuple(value.shape),
            str(output.dtype).removeprefix("mlx.core."),
            found,
            self._budget(call.name, dtype),
            None if finite else input_statistics(call),
        )

    def _stage(self, name: str, found: Distance, budget: float) -> ModuleParity:
        return ModuleParity(name, (), "", found, budget)

    def _budget(self, name: str, dtype: mx.Dtype) -> float:
        return budgets.module_budget(str(dtype).removeprefix("mlx.core."), name, self.size)

    def resolve(self, name: str) -> Callable[..., mx.array]:
        """A module by the reference's name for it, or a method of one."""
        if name in self.modules:
            return self.modules[name]
        path, _, method = name.rpartition(".")
        return getattr(self.modules[path], method)


def compare_each(
    calls: Iterable[Call], model: mlx.nn.Module, codec: mlx.nn.Module | None = None, positions: int = 0
) -> Iterator[ModuleParity]:
    """Each call's module, in the order of `calls`, and the stages between them."""
    replayer = Replayer.of(model, codec, positions)
    return (found for call in calls for found in replayer.compare(call))


def as_mlx(value: Any, dtype: mx.Dtype) -> Any:
    """Recorded arguments as an MLX module takes them, floating numbers in `dtype`; caches are new and may be written to."""
    match value:
        case tuple():
            return tuple(as_mlx(item, dtype) for item in value)
        case dict():
            return {key: as_mlx(item, dtype) for key, item in value.items()}
        case np.ndarray():
            array = mx.array(np.asarray(value))
            return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array
        case LayerState():
            return _layer_cache(value, dtype)
        case CacheState():
            cache = KVCache.__new__(KVCache)
            cache.layers = [_layer_cache(layer, dtype) for layer in value.layers]
            cache.padding = None if value.padding is None else mx.array(np.asarray(value.padding))
            return cache
    return value


def as_numpy(array: mx.array) -> np.ndarray:
    """An MLX array in NumPy, which has no bfloat16."""
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


def input_statistics(call: Call) -> InputStatistics:
    """Of a call's first argument that is an array of floating numbers."""
    values = [*call.arguments, *call.named.values()]
    arrays = [value for value in values if isinstance(value, np.ndarray) and value.dtype.kind == "f"]
    if not arrays:
        return InputStatistics(None, None, None, None, 0)
    finite = arrays[0][np.isfinite(arrays[0])].astype(np.float64)
    odd = int(arrays[0].size - finite.size)
    if not finite.size:
        return InputStatistics(None, None, None, None, odd)
    return InputStatistics(float(finite.min()), float(finite.max()), float(finite.mean()), float(finite.std()), odd)


def _layer_cache(state: LayerState, dtype: mx.Dtype) -> LayerCache:
    batch, heads, offset, size = state.keys.shape
    cache = LayerCache((batch, heads, state.capacity, size), dtype)
    if offset:
        cache.keys[:, :, :offset] = as_mlx(state.keys, dtype)
        cache.values[:, :, :offset] = as_mlx(state.values, dtype)
    cache.offset = offset
    return cache
