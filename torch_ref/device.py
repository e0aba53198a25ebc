"""Which device the reference runs on, what it computes in there, and what it knows of its memory."""

from __future__ import annotations

import resource
import sys

import torch

from mlx_paligemma.common.errors import OptionError


def available_devices() -> tuple[str, ...]:
    """The devices that are here, the one that "auto" takes first: CUDA, Apple's MPS, the CPU."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return tuple(name for name, is_there in there.items() if is_there)


def choose_device(name: str = "auto") -> torch.device:
    """With "auto": CUDA, else Apple's MPS, else the CPU. Raises OptionError for a device that is not here."""
    available = available_devices()
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise OptionError(f"device {name!r} is not available here; choose {', '.join(available)} or auto")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device, is_asked: bool = True) -> torch.dtype:
    """What to compute in. A bfloat16 that nobody asked for becomes float32 where the device has none.

    Raises:
        OptionError: bfloat16 is asked of a device that has none.
    """
    dtype: torch.dtype = getattr(torch, name)
    if dtype != torch.bfloat16 or has_bfloat16(device):
        return dtype
    if is_asked:
        raise OptionError(f"device {device.type!r} has no bfloat16 here; choose --dtype float32 or float16")
    return torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, found out by trying: MPS does so from macOS 14 on."""
    try:
        one = torch.ones(1, dtype=torch.bfloat16, device=device)
        return (one + one).item() == 2
    except (RuntimeError, TypeError):
        return False


def reset_peak_memory(device: torch.device) -> None:
    """Start counting anew, where the device can (CUDA)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the peak on CUDA, what the driver holds now on MPS, the process's largest resident size on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory() -> None:
    """Give back what torch holds on a GPU but does not use. Does nothing where the CPU alone computes."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
