"""The reference: PaliGemma and PaliGemma 2 in plain PyTorch, on the CPU, CUDA or Apple's MPS.

Mirror of mlx_paligemma, file by file and name by name. Public names are resolved on first use.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "load": "weights",
    "generate": "generation",
    "stream_generate": "generation",
    "batch_generate": "generation",
    "as_torch": "generation",
}
__all__ = ["as_torch", "batch_generate", "generate", "load", "stream_generate"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
