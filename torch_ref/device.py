"""Which device the reference runs on, and what it knows of its memory."""

from __future__ import annotations

import resource
import sys

import torch

from mlx_paligemma.common.errors import OptionError


def choose_device(name: str = "auto") -> torch.device:
    """With "auto": CUDA, else Apple's MPS, else the CPU. Raises OptionError for a device that is not here."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, there in available.items() if there))
    if not available.get(name, False):
        raise OptionError(
            f"device {name!r} is not available here; choose {', '.join(d for d, there in available.items() if there)} or auto"
        )
    return torch.device(name)


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
