"""Every operation of the reference, written a second time in NumPy and float64.

Axes: B rows, S tokens, D width, N heads, K key-value heads, H head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..common.config import GemmaConfig
from .rounding import relative_error

if TYPE_CHECKING:
    import torch

EPS = 1e-6
CAP = 3.0
BASE = 10000.0
TOKENS, PREFIX = 6, 3  # of the attention
HEADS = GemmaConfig(32, 64, 1, num_attention_heads=4, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8.0)
LIKELY = np.array([0.4, 0.0, 0.3, 0.2, 0.1])  # to be drawn from
DRAWS = 4000
DRAWS_LIMIT = 0.1  # of the largest share: five standard deviations of what 4000 draws give
PATCH = 14

Array = np.ndarray


@dataclass(frozen=True)
class Operation:
    """One operation, and what it must give for random inputs of these shapes."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    run: Callable[..., torch.Tensor]
    expect: Callable[..., Array]
    limit: float | None = None  # None: that of the dtype
    float32_only: bool = False

    def error(self, device: torch.device, dtype: torch.dtype) -> float:
        """How far the device is from NumPy, relative to the largest value, for inputs that both have exactly."""
        import torch

        rng = np.random.default_rng(0)
        tensors = [torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(dtype) for shape in self.shapes]
        with torch.inference_mode():
            found = self.run(*(tensor.to(device) for tensor in tensors)).float().cpu().numpy()
        return relative_error(found, self.expect(*(tensor.float().numpy().astype(np.float64) for tensor in tensors)))


def operations() -> list[Operation]:
    """All of them, in the order in which a picture and a prompt meet them."""
    attention = ((2, TOKENS, 32), (32, 32), (16, 32), (16, 32), (32, 32))
    return [
        Operation("convolution", ((2, 3, 28, 28), (8, 3, PATCH, PATCH), (8,)), _conv, _conv_expected),
        Operation("linear", ((5, 64), (32, 64), (32,)), _linear, lambda x, weight, bias: x @ weight.T + bias),
        Operation("layer norm", ((4, 64), (64,), (64,)), _layer_norm, _layer_norm_expected),
        Operation("GELU", ((4, 64),), _gelu, _gelu_expected),
        Operation("embedding", ((97, 16),), _embedding, lambda table: table[_ids()]),
        Operation("RMS norm", ((4, 64), (64,)), _rms_norm, _rms_norm_expected),
        Operation("RoPE", ((2, 3, TOKENS, 16),), _rope, _rope_expected),
        Operation("masked attention", attention, _attention, _attention_expected),
        Operation("soft cap", ((4, 64),), _soft_cap, lambda x: CAP * np.tanh(x / CAP)),
        Operation("argmax", ((4, 257216),), _largest, lambda x: x.max(-1), limit=0.0),
        Operation("multinomial", ((1,),), _drawn, lambda _: LIKELY, limit=DRAWS_LIMIT, float32_only=True),
    ]


def _ids() -> Array:
    return np.array([[0, 96, 5], [7, 7, 42]])


def _conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional as F

    return F.conv2d(x, weight, bias, stride=PATCH)


def _conv_expected(x: Array, weight: Array, bias: Array) -> Array:
    patches = x.reshape(len(x), 3, 2, PATCH, 2, PATCH)
    return np.einsum("bcipjq,ocpq->boij", patches, weight) + bias[:, None, None]


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional as F

    return F.linear(x, weight, bias)


def _layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional as F

    return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def _layer_norm_expected(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS) * weight + bias


def _gelu(x: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional as F

    return F.gelu(x, approximate="tanh")


def _gelu_expected(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _embedding(table: torch.Tensor) -> torch.Tensor:
    import torch
    from torch.nn import functional as F

    return F.embedding(torch.from_numpy(_ids()).to(table.device), table)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    from torch_ref.gemma import RMSNorm

    norm = RMSNorm(x.shape[-1], EPS)
    norm.load_state_dict({"weight": weight}, assign=True)
    return norm(x)


def _rms_norm_expected(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * (1 + weight)


def _rope(x: torch.Tensor) -> torch.Tensor:
    import torch

    from torch_ref.gemma import RoPE

    return RoPE(x.shape[-1], BASE)(x, torch.ones(len(x), dtype=torch.long, device=x.device))


def _rope_expected(x: Array) -> Array:
    """[B, heads, S, H], positions from 1 -> the same, turned."""
    half = x.shape[-1] // 2
    angles = np.arange(1, x.shape[2] + 1)[:, None] * BASE ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _attention(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    """The reference's own, with a mask that lets the prefix alone see ahead."""
    import torch

    from torch_ref.gemma import GemmaAttention, prefix_lm_mask

    with torch.device("meta"):
        attention = GemmaAttention(HEADS)
    names = [f"{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    attention.load_state_dict(dict(zip(names, weights, strict=True)), assign=True)
    start = torch.ones(len(x), dtype=torch.long, device=x.device)
    return attention(x, start, prefix_lm_mask(start, TOKENS, TOKENS, PREFIX * start), None)


def _attention_expected(x: Array, query: Array, key: Array, value: Array, out: Array) -> Array:
    q, k, v = ((x @ weight.T).reshape(len(x), TOKENS, -1, HEADS.head_dim).transpose(0, 2, 1, 3) for weight in (query, key, value))
    shared = HEADS.num_attention_heads // HEADS.num_key_value_heads
    k, v = np.repeat(_rope_expected(k), shared, axis=1), np.repeat(v, shared, axis=1)
    scores = _rope_expected(q) @ k.swapaxes(-1, -2) * HEADS.query_scale
    place = np.arange(TOKENS)
    seen = place <= np.maximum(place[:, None], PREFIX - 1)
    weights = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    mixed = weights / weights.sum(-1, keepdims=True) @ v
    return mixed.transpose(0, 2, 1, 3).reshape(len(x), TOKENS, -1) @ out.T


def _soft_cap(x: torch.Tensor) -> torch.Tensor:
    from torch_ref.gemma import soft_cap

    return soft_cap(x, CAP)


def _largest(x: torch.Tensor) -> torch.Tensor:
    """The value where argmax points: of equal ones any will do."""
    return x.gather(-1, x.argmax(-1, keepdim=True))[:, 0]


def _drawn(x: torch.Tensor) -> torch.Tensor:
    """How often each class was drawn; all of them wrong if an impossible one was. Of x the device alone matters."""
    import torch

    noise = torch.Generator(x.device).manual_seed(0)
    likely = torch.from_numpy(LIKELY).float().to(x.device)
    shares = torch.multinomial(likely, DRAWS, replacement=True, generator=noise).bincount(minlength=len(LIKELY)) / DRAWS
    return shares + shares[1].ceil()
