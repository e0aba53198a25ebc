"""MLX: its device, its products against NumPy's, and its memory limits."""

from __future__ import annotations

import sys
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from ..common.memory import gigabytes
from .check import Check, Probes, failed, guarded, ok, warning
from .rounding import judged, relative_error

WRONG = "pip install --upgrade mlx; if that does not help, report it to github.com/ml-explore/mlx"
TF32 = "set MLX_ENABLE_TF32=0 where you compare backends in float32; for answers alone it does no harm"
DTYPES = ("float32", "float16", "bfloat16")
BITS = (8, 4)


def mlx_probes() -> Probes:
    """Device, one product per dtype, quantised products, memory."""
    try:
        import mlx.core  # noqa: F401 - to see whether it is there
    except ModuleNotFoundError as error:
        return {"mlx": partial(_missing, str(error))}
    products: Probes = {f"mlx matmul, {dtype}": partial(_product, dtype) for dtype in DTYPES}
    quantised: Probes = {f"mlx matmul, {bits}-bit": partial(_quantised, bits) for bits in BITS}
    found = {"mlx": _device} | products | quantised | {"mlx memory": _memory}
    return {title: partial(guarded, probe, WRONG) for title, probe in found.items()}


def device_kind() -> str:
    """What MLX computes on by default: "Metal", "CUDA" or "CPU"."""
    import mlx.core as mx

    from ..device import on_gpu

    if not on_gpu():
        return "CPU"
    return "Metal" if mx.metal.is_available() else "CUDA"


def _missing(reason: str) -> Check:
    wanted = "mlx" if sys.platform == "darwin" else "mlx[cpu]"
    return failed(f"not installed ({reason})", f"pip install '{wanted}'; until then use --backend torch")


def _device() -> Check:
    import mlx.core as mx

    kind, info = device_kind(), mx.device_info()
    detail = f"{version('mlx')} on {kind}: {info.get('device_name', info.get('architecture', 'unknown'))}"
    if kind != "CPU":
        return ok(detail)
    if sys.platform == "darwin":
        return warning(detail, "MLX finds no Metal: run outside of virtual machines and containers, with a Python for arm64")
    return ok(f"{detail}; right, but slow")


def _product(dtype: str) -> Check:
    import mlx.core as mx

    left, right = (mx.array(array).astype(getattr(mx, dtype)) for array in _matrices())
    error = relative_error(_numpy(left @ right.T), _numpy(left) @ _numpy(right).T)
    return judged({dtype: error}, WRONG, TF32)


def _quantised(bits: int) -> Check:
    """The product with quantised weights against that with what they stand for."""
    import mlx.core as mx

    left, right = (mx.array(array) for array in _matrices())
    packed = mx.quantize(right, bits=bits)
    error = relative_error(
        _numpy(mx.quantized_matmul(left, *packed, bits=bits)), _numpy(left) @ _numpy(mx.dequantize(*packed, bits=bits)).T
    )
    return judged({"float32": error}, WRONG, TF32)


def _memory() -> Check:
    import mlx.core as mx

    from ..memory import memory_budget

    info, budget = mx.device_info(), memory_budget()
    largest = info.get("max_buffer_length")
    array = f", the largest array {gigabytes(int(largest))}" if largest else ""
    return ok(f"a model may take {gigabytes(budget)}; MLX's own limit is {gigabytes(mx.get_memory_limit())}{array}")


def _matrices() -> tuple[np.ndarray, np.ndarray]:
    """float32 [64, 512] and [48, 512]."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((64, 512), dtype=np.float32), rng.standard_normal((48, 512), dtype=np.float32)


def _numpy(array: Any) -> np.ndarray:
    import mlx.core as mx

    return np.array(array.astype(mx.float32)).astype(np.float64)
