"""One network against another: module by module on the same inputs, and from pixels to logits.

`record` runs the reference once and keeps what went into and came out of every module. `compare` hands each MLX module
of the same name the same arguments, so an error shows at the module that makes it and at no later one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn
import numpy as np
import torch
from checkpoints import IMAGE_TOKEN
from torch import nn

from mlx_paligemma.common.processor import ModelInputs
from mlx_paligemma.generation import as_mlx
from mlx_paligemma.model import kv_cache as mlx_kv_cache
from torch_ref import kv_cache as torch_kv_cache
from torch_ref.generation import as_torch
from torch_ref.mask_decoder import ResidualBlock

from .batches import random_inputs, tokens
from .tiny_models import Pair

# One module in float32 on equal inputs: only the order of summation differs, measured at 2e-6 and below, where planted
# faults start at 3e-5 (an epsilon). Relative to the largest reference value.
MODULE_LIMIT = 5e-6
# From pixels to logits the roundings of all modules add up, measured at 4e-6 and below.
LOGITS_LIMIT = 1e-5
# Logits closer than this may swap places between backends.
TIE = 1e-4

WHOLE = ("", "prefill", "decode")  # calls that are the whole model, pixels or tokens to logits
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
    """How far one MLX module is from the reference, in the worst of its calls."""

    name: str
    shape: tuple[int, ...]  # of its output
    relative_error: float  # largest difference by largest reference value

    @property
    def fails(self) -> bool:
        return not self.relative_error <= (LOGITS_LIMIT if self.name in WHOLE else MODULE_LIMIT)  # NaN fails


def record(model: nn.Module, run: Callable[[], Any]) -> list[Call]:
    """The calls of all modules and methods while `run` runs, in the order in which they returned."""
    calls: list[Call] = []
    with _hooks(model, calls), torch.no_grad():
        run()
    return calls


def compare(calls: list[Call], model: mlx.nn.Module) -> list[Difference]:
    """Each of the MLX model's modules on the recorded arguments, worst call of each, in the order of `calls`."""
    found: dict[str, Difference] = {}
    for difference in compare_each(calls, model):
        found[difference.name] = worst([found.get(difference.name, difference), difference])
    return list(found.values())


def compare_each(calls: list[Call], model: mlx.nn.Module) -> Iterator[Difference]:
    """The same call by call."""
    modules = dict(model.named_modules())
    for call in calls:
        arguments, named = _fresh(call.arguments), _fresh(call.named)
        output = np.array(_resolve(modules, call.name)(*arguments, **named))
        yield Difference(call.name, call.output.shape, relative_error(output, call.output))


def blamed(differences: list[Difference]) -> str | None:
    """The first module that fails: the one that makes the error, since parts return before the whole."""
    return next((difference.name or "model" for difference in differences if difference.fails), None)


def worst(differences: list[Difference]) -> Difference:
    """The module with the largest error; NaN is the largest."""
    return max(differences, key=lambda difference: (np.isnan(difference.relative_error), difference.relative_error))


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference by the largest reference value."""
    assert value.shape == reference.shape
    return float(np.abs(value.astype(np.float64) - reference).max() / np.abs(reference).max())


@dataclass(frozen=True)
class Scenario:
    """Everything at once: three rows of unlike lengths, one of them with two pictures; then the same prompts decoded."""

    inputs: ModelInputs  # with a suffix
    prompts: ModelInputs  # without
    suffix: np.ndarray  # int [3, 7]
    chunks: tuple[int, ...] = (1, 1, 4, 1)

    @classmethod
    def of(cls, pair: Pair) -> Scenario:
        inputs = random_inputs(pair.config, (12, 9, 5), (9, 4, 12), (1, 2, 1))
        prompts = random_inputs(pair.config, (12, 9, 5), None, (1, 2, 1))
        return cls(inputs, prompts, np.random.default_rng(1).integers(3, IMAGE_TOKEN, (3, 7)))

    def calls(self, pair: Pair) -> list[Call]:
        def run():
            pair.reference(**as_torch(self.inputs))
            torch_decoded(pair.reference, self.prompts, self.suffix, list(self.chunks))

        return record(pair.reference, run)

    def logits_error(self, pair: Pair, model) -> float:
        """The larger of the errors of the forward pass and of decoding, over all tokens that are not padding."""
        real = tokens(self.inputs)
        forward = relative_error(mlx_logits(model, self.inputs)[real], torch_logits(pair.reference, self.inputs)[real])
        run = (self.prompts, self.suffix, list(self.chunks))
        decoded = relative_error(mlx_decoded(model, *run), torch_decoded(pair.reference, *run))
        return max(forward, decoded, key=lambda value: (np.isnan(value), value))


def parity_table(pairs: dict[int, Pair]) -> str:
    """For the README: the worst module and the logits, for both generations."""
    lines = ["| model | modules | worst module | its error | logits error |", "|---|---|---|---|---|"]
    for generation, pair in pairs.items():
        scenario = Scenario.of(pair)
        parts = [part for part in compare(scenario.calls(pair), pair.model) if part.name not in WHOLE]
        top, logits = worst(parts), scenario.logits_error(pair, pair.model)
        lines.append(f"| PaliGemma {generation} | {len(parts)} | `{top.name}` | {top.relative_error:.1e} | {logits:.1e} |")
    return "\n".join(lines)


def report(text: str) -> None:
    """A line that pytest shows with -s."""
    sys.stdout.write(f"\n{text}")


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


def _fresh(value: Any) -> Any:
    """The same arguments, with caches that may be written to."""
    match value:
        case tuple():
            return tuple(_fresh(item) for item in value)
        case dict():
            return {key: _fresh(item) for key, item in value.items()}
        case mlx_kv_cache.LayerCache() | mlx_kv_cache.KVCache():
            return deepcopy(value)
    return value


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
