"""What a model's layers are given and give, taken from outside while it runs: the model's own files know nothing of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn

Capture = Callable[[str, tuple[Any, ...], mx.array], None]  # a module's name, its arguments by position, its output


@contextmanager
def capturing(model: mlx.nn.Module, names: re.Pattern[str], capture: Capture) -> Iterator[None]:
    """While this lasts, `capture` is told of every call of the modules below `model` whose names match."""
    changed = [(module, type(module), name) for name, module in model.named_modules() if names.fullmatch(name)]
    for module, kind, name in changed:
        module.__class__ = _telling(kind, name, capture)
    try:
        yield
    finally:
        for module, kind, _ in changed:
            module.__class__ = kind


def _telling(kind: type, name: str, capture: Capture) -> type:
    """A class of its own, which does as before and tells."""

    def call(self: Any, *arguments: Any, **named: Any) -> mx.array:
        output: mx.array = kind.__call__(self, *arguments, **named)
        capture(name, arguments, output)
        return output

    return type(kind.__name__, (kind,), {"__call__": call})
