"""What every module of the PyTorch reference is given and gives, taken from outside with hooks while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .call import CacheState, Call, LayerState

if TYPE_CHECKING:
    from torch import Tensor, nn

METHODS = ("embed", "encode_images", "logits", "prefill", "decode", "encode", "nearest")  # what does work outside a module's call


class Sink(Protocol):
    """Where calls go: a list, or a store on disk."""

    def append(self, call: Call, /) -> None:
        """Keep a call."""


class Recorder:
    """Hooks on all modules of a network. `scene` and `real` are noted with every call; `wanted` picks the names to keep."""

    def __init__(self, sink: Sink, prefix: str = "", wanted: Callable[[str], bool] = lambda name: True):
        self.sink, self.prefix, self.wanted = sink, prefix, wanted
        self.scene = ""
        self.real: np.ndarray | None = None
        self._given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []  # of the calls that have not returned yet

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """While this lasts, every call of a module or method is handed on when it returns."""
        from torch import nn

        handles, methods = [], []
        for name, module in model.named_modules():
            if isinstance(module, (nn.Sequential, nn.ModuleList)):  # PyTorch's containers; plain lists in MLX
                continue
            handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._after(name), with_kwargs=True))
            for method in METHODS:
                if hasattr(module, method):
                    path = f"{name}.{method}".removeprefix(".")
                    setattr(module, method, self._watched(module, path, getattr(module, method)))
                    methods.append((module, method))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module, method in methods:
                delattr(module, method)

    def _before(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            if not self.wanted(name):
                return
            first = _channels_first(module)
            given = tuple(plain(value, first) for value in arguments)  # copies: a cache grows during the call
            self._given.append((given, {key: plain(value, first) for key, value in named.items()}))

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
            if self.wanted(name):
                path = f"{self.prefix}.{name}".strip(".")
                given, by_name = self._given.pop()
                result = plain(output, _channels_first(module))
                after = _caches(arguments) if path.endswith("self_attn") else ()
                self.sink.append(Call(path, given, result, by_name, self.scene, self.real, after))

        return hook

    def _watched(self, module: nn.Module, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        before, after = self._before(name), self._after(name)

        def call(*arguments: Any, **named: Any) -> Any:
            before(module, arguments, named)
            output = method(*arguments, **named)
            after(module, arguments, named, output)
            return output

        return call


def record(model: nn.Module, run: Callable[[], Any]) -> list[Call]:
    """The calls of all modules and methods while `run` runs, in the order in which they returned."""
    import torch

    calls: list[Call] = []
    with Recorder(calls).watching(model), torch.no_grad():
        run()
    return calls


def plain(value: Any, channels_first: bool = False) -> Any:
    """An argument or a result of a PyTorch module in NumPy; pictures of `channels_first` in MLX's layout."""
    from torch import Tensor

    from torch_ref.kv_cache import KVCache, LayerCache

    match value:
        case Tensor():
            ordered = value.permute(0, 2, 3, 1) if channels_first else value
            return ordered.detach().cpu().numpy().copy()
        case LayerCache():
            keys, values = (plain(part[:, :, : value.offset]) for part in (value.keys, value.values))
            return LayerState(keys, values, value.keys.shape[2])
        case KVCache():
            return CacheState(tuple(plain(layer) for layer in value.layers), plain(value.padding))
    return value


def _caches(arguments: tuple[Any, ...]) -> tuple[LayerState, ...]:
    from torch_ref.kv_cache import LayerCache

    return tuple(plain(value) for value in arguments if isinstance(value, LayerCache))


def _channels_first(module: nn.Module) -> bool:
    """Whether a module takes and gives pictures in PyTorch's layout; MLX has channels last."""
    from torch import nn

    from torch_ref.mask_decoder import ResidualBlock

    return isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.ReLU, ResidualBlock))
