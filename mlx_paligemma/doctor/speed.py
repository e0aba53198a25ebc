"""Small rates: how fast matrices are multiplied, and how fast their bytes are read."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .check import Check, Probes, ok, skipped

SIZES = (256, 512, 1024, 2048, 4096, 8192)
LONG_ENOUGH = 0.03  # seconds; a larger size is tried as long as one product is faster
REPEATS = 3
SLOW = 10e9  # floating-point operations per second; the BLAS that comes with MLX for the CPU stays below
PRELOAD = "for runs of MLX alone, preload OpenBLAS: apt install libopenblas0-pthread, then LD_PRELOAD=libopenblas.so.0"

Make = Callable[[int], Callable[[], object]]  # given n, what multiplies by an n x n matrix


@dataclass(frozen=True)
class Products:
    """Products with square matrices on one device."""

    dtype: str
    itemsize: int  # bytes of a number
    matrix: Make  # times a matrix of the same size
    vector: Make  # times one row
    advice: str = ""  # where they are slow


def speed_probes() -> Probes:
    """One rate per backend."""
    return {"speed of mlx": partial(_rates, _mlx), "speed of torch": partial(_rates, _torch)}


def _rates(open_products: Callable[[], Products]) -> Check:
    try:
        products = open_products()
    except ModuleNotFoundError as error:
        return skipped(f"not installed ({error})")
    n, seconds = _largest(products.matrix)
    rate = 2 * n**3 / seconds
    matrix = f"{products.dtype}: matrix times matrix {rate / 1e9:.0f} GFLOP/s (n = {n})"
    n, seconds = _largest(products.vector)
    vector = f"times vector {n * n * products.itemsize / seconds / 1e9:.1f} GB/s (n = {n})"
    return ok(f"{matrix}, {vector}", products.advice if rate < SLOW else "")


def _largest(make: Make) -> tuple[int, float]:
    """The first size that takes long enough, and its seconds."""
    for n in SIZES:
        seconds = fastest(make(n))
        if seconds >= LONG_ENOUGH:
            break
    return n, seconds


def fastest(multiply: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds: the best of `repeats`, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _mlx() -> Products:
    import mlx.core as mx

    from ..device import on_gpu

    is_gpu = on_gpu()
    dtype = mx.bfloat16 if is_gpu else mx.float32

    def product(rows: int | None, n: int) -> Callable[[], object]:
        left, right = mx.random.normal((rows or n, n)).astype(dtype), mx.random.normal((n, n)).astype(dtype)
        mx.eval(left, right)
        return lambda: mx.eval(left @ right.T)

    advice = PRELOAD if sys.platform == "linux" and not is_gpu else ""
    return Products("bfloat16" if is_gpu else "float32", dtype.size, partial(product, None), partial(product, 1), advice)


def _torch() -> Products:
    import torch

    from torch_ref.device import choose_device

    device = choose_device()
    dtype = torch.float32 if device.type == "cpu" else torch.float16

    def product(rows: int | None, n: int) -> Callable[[], object]:
        left, right = (torch.randn(count, n, device=device).to(dtype) for count in (rows or n, n))

        def multiply() -> object:
            return (left @ right.T)[0, 0].item()  # reading a value waits for the device

        return multiply

    return Products(str(dtype).removeprefix("torch."), dtype.itemsize, partial(product, None), partial(product, 1))
