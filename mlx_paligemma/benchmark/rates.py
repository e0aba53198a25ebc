"""What this machine can do at best, found out in the same run: the rates that every result is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from ..doctor.speed import fastest
from .setup import random_matrix

VECTOR = (65536, 4096)  # outputs and inputs of the matrix-vector product: half a gigabyte in 16 bits, more than any cache holds
SIZES = (512, 1024, 2048, 4096)  # of the matrix product, the next as long as one is fast
FAST = 0.2  # seconds
REPEATS = 5


@dataclass(frozen=True)
class Rates:
    """The machine's own limits."""

    gemv_bytes_s: float  # weights read per second by a matrix-vector product
    gemm_flops: float  # floating-point operations per second of a matrix product
    gemm_size: int  # rows and columns of its matrices


def measure_rates(dtype: mx.Dtype) -> Rates:
    """Both rates in `dtype`, each the best of a few after one that warms up. Takes seconds, and gives back its memory."""
    bandwidth = VECTOR[0] * VECTOR[1] * dtype.size / fastest(_product(1, *VECTOR, dtype), REPEATS)
    for size in SIZES:
        seconds = fastest(_product(size, size, size, dtype), REPEATS)
        if seconds > FAST:
            break
    mx.clear_cache()
    return Rates(bandwidth, 2 * size**3 / seconds, size)


def _product(rows: int, outputs: int, inputs: int, dtype: mx.Dtype) -> Callable[[], None]:
    """What multiplies [rows, inputs] by weights [outputs, inputs], as a linear layer does."""
    key = mx.random.key(0)
    left, weights = mx.random.normal((rows, inputs), key=key).astype(dtype), random_matrix((outputs, inputs), dtype, key)
    mx.eval(left, weights)
    return lambda: mx.eval(left @ weights.T)
