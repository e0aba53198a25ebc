"""torch: its devices, and on each of them every operation that the reference uses."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..common.memory import gigabytes
from .check import Check, Probes, guarded, ok, warning
from .rounding import judged

if TYPE_CHECKING:
    import torch

    from .operations import Operation

OLDEST = (2, 6)
INSTALL = "pip install 'mlx-paligemma[torch]', if you want the reference and the comparisons with it"
TF32 = "set torch.backends.cudnn.allow_tf32 = False where you compare backends in float32; for answers alone it does no harm"
WRONG = {
    "cpu": "pip install --upgrade torch",
    "cuda": "update torch and the driver (nvidia-smi tells its version), or use the CPU",
    "mps": "update torch and macOS, try --mps-fallback, or use the CPU; PYTORCH_MPS_* variables set by hand can do this too",
}


def torch_probes() -> Probes:
    """PyTorch itself, its devices, and the operations on each."""
    try:
        import torch
    except ModuleNotFoundError as error:
        return {"torch": partial(warning, f"not installed ({error})", INSTALL)}
    from torch_ref.device import available_devices

    from .operations import operations

    probes: Probes = {"torch": _itself}
    for name in reversed(available_devices()):
        device = torch.device(name)
        found: Probes = {f"torch on {name}": partial(_device, device)}
        found |= {f"torch on {name}, {operation.name}": partial(_operation, operation, device) for operation in operations()}
        probes |= {title: partial(guarded, probe, WRONG[name]) for title, probe in found.items()}
    return probes


def _itself() -> Check:
    import torch

    from torch_ref.device import available_devices

    devices = available_devices()
    detail = f"{torch.__version__}, devices {', '.join(devices)}; auto takes {devices[0]}"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST:
        return warning(detail, f"update it to {'.'.join(map(str, OLDEST))} or later: pip install --upgrade torch")
    return ok(detail)


def _device(device: torch.device) -> Check:
    import torch

    from torch_ref.device import has_bfloat16
    from torch_ref.memory import free_bytes

    names = {
        "cuda": lambda: torch.cuda.get_device_name(device),
        "mps": lambda: "Apple's GPU",
        "cpu": torch.backends.cpu.get_cpu_capability,
    }
    detail = f"{names[device.type]()}, {gigabytes(free_bytes(device))} to use"
    if has_bfloat16(device):
        return ok(f"{detail}, has bfloat16")
    return warning(f"{detail}, has no bfloat16", "on a Mac update to macOS 14; until then models compute in float32")


def _operation(operation: Operation, device: torch.device) -> Check:
    import torch

    from torch_ref.device import has_bfloat16

    dtypes = ["float32"] + ["bfloat16"] * (not operation.float32_only and has_bfloat16(device))
    errors = {dtype: operation.error(device, getattr(torch, dtype)) for dtype in dtypes}
    return judged(errors, WRONG[device.type], TF32, dict.fromkeys(dtypes, operation.limit) if operation.limit is not None else None)
