"""One network against another: module by module on the same inputs, and from pixels to logits.

`record` runs the reference once and keeps what went into and came out of every module. `compare` hands each MLX module
of the same name the same arguments, so an error shows at the module that makes it and at no later one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn
import numpy as np
import torch
from torch import nn

from mlx_paligemma.common.processor import ModelInputs
from mlx_paligemma.generation import as_mlx
from mlx_paligemma.model import kv_cache as mlx_kv_cache
from torch_ref import kv_cache as torch_kv_cache
from torch_ref.generation import as_torch
from torch_ref.mask_decoder import ResidualBlock

# One module in float32 on equal inputs: only the order of summation differs, measured at 1e-6 and below. Planted faults
# start at 1e-5 (an epsilon). Relative to the largest reference value.
MODULE_LIMIT = 5e-6
# From pixels to logits the roundings of all modules add up, measured at 3e-6 and below.
LOGITS_LIMIT = 1e-5
# Logits closer than this may swap places between backends (DESIGN.md 3).
TIE = 1e-4

METHODS = ("embed", "encode_images", "logits", "prefill", "decode", "encode", "nearest")  # what does work outside a module's call
CHANNELS_FIRST = (nn.Conv2d, nn.ConvTranspose2d, nn.ReLU, ResidualBlock)  # PyTorch's layout of pictures; MLX has channels last


@dataclass(frozen=True)
class Call:
    """What one module or method of the reference was given, and what it made of it."""

    name: str  # path of the module or method, "" for the whole model
    arguments: tuple[Any, ...]  # as MLX takes them
    named: dict[str, Any]
    output: np.ndarray


@dataclass(frozen=True)
class Difference:
    """How far one MLX module is from the reference, over all its calls."""

    name: str
    shape: tuple[int, ...]  # of its first output
    relative_error: float  # largest difference by largest reference value

    @property
    def fails(self) -> bool:
        return not self.relative_error <= MODULE_LIMIT  # NaN fails


def record(model: nn.Module, run: Callable[[], Any]) -> list[Call]:
    """The calls of all modules and methods while `run` runs, in the order in which they returned."""
    calls: list[Call] = []
    with _hooks(model, calls), torch.no_grad():
        run()
    return calls


def compare(calls: list[Call], model: mlx.nn.Module) -> list[Difference]:
    """Each of the MLX model's modules on the recorded arguments, in the order of `calls`."""
    modules = dict(model.named_modules())
    found: dict[str, Difference] = {}
    for call in calls:
        output = np.array(_resolve(modules, call.name)(*deepcopy(call.arguments), **deepcopy(call.named)))
        error = relative_error(output, call.output)
        if call.name in found:
            error = max(error, found[call.name].relative_error, key=lambda value: (np.isnan(value), value))
        found[call.name] = Difference(call.name, found[call.name].shape if call.name in found else call.output.shape, error)
    return list(found.values())


def blamed(differences: list[Difference]) -> str | None:
    """The first module that fails: the one that makes the error, since parts return before the whole."""
    return next((difference.name or "model" for difference in differences if difference.fails), None)


def worst(differences: list[Difference]) -> Difference:
    """The module with the largest error."""
    return max(differences, key=lambda difference: difference.relative_error)


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference by the largest reference value."""
    assert value.shape == reference.shape
    return float(np.abs(value.astype(np.float64) - reference).max() / np.abs(reference).max())


def torch_logits(model: nn.Module, inputs: ModelInputs) -> np.ndarray:
    """The reference's logits [B, L, V]."""
    with torch.no_grad():
        return model(**as_torch(inputs)).numpy()


def mlx_logits(model: mlx.nn.Module, inputs: ModelInputs) -> np.ndarray:
    """MLX's logits [B, L, V]."""
    return np.array(model(**as_mlx(inputs)))


def torch_decoded(model: nn.Module, inputs: ModelInputs, suffix: np.ndarray, chunks: list[int]) -> np.ndarray:
    """The reference's logits [B, 1 + T, V] after the prompt and after each of the suffix tokens [B, T], through the cache."""
    with torch.no_grad():
        tensors = as_torch(inputs)
        capacity = inputs.input_ids.shape[1] + suffix.shape[1]
        cache = torch_kv_cache.KVCache(model.config.text, len(suffix), capacity, torch.float32, tensors.get("padding"))
        parts = [model.prefill(tensors["input_ids"], model.encode_images(tensors["pixel_values"]), cache)]
        parts += [model.decode(torch.from_numpy(part), cache) for part in _split(suffix, chunks)]
        return torch.cat(parts, dim=1).numpy()


def mlx_decoded(model: mlx.nn.Module, inputs: ModelInputs, suffix: np.ndarray, chunks: list[int]) -> np.ndarray:
    """MLX's logits [B, 1 + T, V] after the prompt and after each of the suffix tokens [B, T], through the cache."""
    arrays = as_mlx(inputs)
    capacity = inputs.input_ids.shape[1] + suffix.shape[1]
    cache = mlx_kv_cache.KVCache(model.config.text, len(suffix), capacity, mx.float32, arrays.get("padding"))
    parts = [model.prefill(arrays["input_ids"], model.encode_images(arrays["pixel_values"]), cache)]
    parts += [model.decode(mx.array(part), cache) for part in _split(suffix, chunks)]
    return np.array(mx.concatenate(parts, axis=1))


def _split(suffix: np.ndarray, chunks: list[int]) -> list[np.ndarray]:
    assert sum(chunks) == suffix.shape[1]
    return np.split(suffix, np.cumsum(chunks)[:-1], axis=1)


@contextmanager
def _hooks(model: nn.Module, calls: list[Call]) -> Iterator[None]:
    """While this lasts, every call of a module or method is appended to `calls` when it returns."""
    given: list[tuple[tuple, dict]] = []  # of the calls that have not returned yet; a cache is copied before it grows
    handles, methods = [], []

    def before(module, arguments, named):
        first = isinstance(module, CHANNELS_FIRST)
        given.append((tuple(_as_mlx(value, first) for value in arguments), {key: _as_mlx(value) for key, value in named.items()}))

    def after(name):
        def hook(module, arguments, named, output):
            calls.append(Call(name, *given.pop(), _as_numpy(output, isinstance(module, CHANNELS_FIRST))))

        return hook

    def watched(module, name, method):
        def call(*arguments, **named):
            before(module, arguments, named)
            output = method(*arguments, **named)
            after(name)(module, arguments, named, output)
            return output

        return call

    for name, module in model.named_modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)):  # PyTorch's containers; plain lists in MLX
            continue
        handles += [module.register_forward_pre_hook(before, with_kwargs=True)]
        handles += [module.register_forward_hook(after(name), with_kwargs=True)]
        for method in METHODS:
            if hasattr(module, method):
                setattr(module, method, watched(module, f"{name}.{method}".removeprefix("."), getattr(module, method)))
                methods.append((module, method))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, method in methods:
            delattr(module, method)


def _resolve(modules: dict[str, mlx.nn.Module], name: str) -> Callable[..., mx.array]:
    """An MLX module by the reference's name for it, or a method of one."""
    if name in modules:
        return modules[name]
    path, _, method = name.rpartition(".")
    return getattr(modules[path], method)


def _as_mlx(value: Any, channels_first: bool = False) -> Any:
    """An argument of a PyTorch module as its MLX twin takes it."""
    match value:
        case torch.Tensor():
            return mx.array(_as_numpy(value, channels_first))
        case torch_kv_cache.LayerCache():
            layer = mlx_kv_cache.LayerCache(tuple(value.keys.shape), mx.float32)
            layer.keys, layer.values, layer.offset = _as_mlx(value.keys), _as_mlx(value.values), value.offset
            return layer
        case torch_kv_cache.KVCache():
            cache = mlx_kv_cache.KVCache.__new__(mlx_kv_cache.KVCache)
            cache.layers, cache.padding = [_as_mlx(layer) for layer in value.layers], _as_mlx(value.padding)
            return cache
    return value


def _as_numpy(tensor: torch.Tensor, channels_first: bool) -> np.ndarray:
    return (tensor.permute(0, 2, 3, 1) if channels_first else tensor).detach().numpy().copy()
