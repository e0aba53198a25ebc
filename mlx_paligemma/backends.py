"""The two backends behind one door. This is one of the few places that may import torch_ref, and only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .common.errors import BackendError, OptionError

if TYPE_CHECKING:
    from .common.decoding import Generation
    from .common.memory import Row

NAMES = ("mlx", "torch")


@dataclass(frozen=True)
class Backend:
    """What both backends offer, with the same arguments and results."""

    name: str
    load: Callable[..., tuple[Any, Any]]
    start: Callable[..., Generation]
    free_bytes: Callable[[], int]  # memory that a model may still take
    row: Row  # what one prompt about one picture takes
    free: Callable[[], None]  # gives back memory that is held but not used; between batches of a long run
    fitting_rows: Callable[[Any, Row], int]  # how many such rows can be answered together beside the loaded network


def open_backend(name: str = "mlx") -> Backend:
    """A backend by name: "mlx", or "torch" for the PyTorch reference.

    Raises:
        OptionError: the name is unknown.
        BackendError: what the backend needs is not installed.
    """
    if name not in NAMES:
        raise OptionError(f"backend {name!r} is unknown; choose {' or '.join(NAMES)}")
    package = "mlx_paligemma" if name == "mlx" else "torch_ref"
    try:
        weights, generation, memory = (import_module(f"{package}.{name}") for name in ("weights", "generation", "memory"))
        free = import_module("mlx.core").clear_cache if name == "mlx" else import_module("torch_ref.device").free_memory
    except ModuleNotFoundError as error:
        wanted = "mlx" if name == "mlx" else "mlx-paligemma[torch]"
        if error.name is None or error.name.split(".")[0] not in ("mlx", "torch", "torch_ref"):
            raise
        raise BackendError(f"the {name} backend needs the package {error.name}; install it with: pip install '{wanted}'") from None
    return Backend(name, weights.load, generation.start, memory.free_bytes, memory.ROW, free, memory.fitting_rows)
