"""What MLX computes on. Twin of torch_ref/device.py."""

from __future__ import annotations

import mlx.core as mx


def on_gpu() -> bool:
    """Whether it is a GPU by default, Metal's or CUDA's."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)
