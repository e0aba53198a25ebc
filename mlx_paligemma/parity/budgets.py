"""How large an error may be, by numbers computed in, stage and size: measured, not chosen to pass.

An error is the largest difference from the float32 reference by the largest reference value. A module's is measured on equal
inputs, which are rounded too where MLX computes in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .call import MASK_CODEC

FACTOR = 3.0  # budget by measured maximum: other weights, pictures and machines than those measured
FROM_PIXELS = "from pixels"  # the logits of MLX's own run, in which the roundings of all modules add up
WIDE = 256  # text models of this width and above sum hundreds of products and more where narrow ones sum dozens

# Largest error of any module of a stage, (narrow, wide), from tests/parity/measure_budgets.py: torch_ref in float32 against
# MLX 0.32.4, both on the CPU, padded batches of 30 to 54 tokens, decoding steps of one token and of three.
# Narrow: 16 random models (4 seeds, PaliGemma 1 and 2, widths 48 and 96) and the bundled demo (width 192).
# Wide: 6 random models of width 384, and in float32 and bfloat16 one each of the published widths of PaliGemma 1 (2048, one
# layer) and PaliGemma 2 (2304, two layers) with a vision layer of width 1152. Where the wide ones happened to err less than the
# narrow ones, the larger figure stands for both.
MEASURED: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "float32": {
        "norm": (4.4e-07, 1.2e-06), "linear": (1.1e-06, 5.6e-06), "rope": (4.7e-06, 4.7e-06), "embedding": (2.7e-07, 2.7e-07),
        "attention": (1.0e-06, 2.9e-06), "mlp": (1.1e-06, 6.0e-06), "layer": (1.4e-06, 1.4e-06), "stack": (2.8e-06, 4.1e-06),
        "model": (3.0e-06, 2.0e-05), "masks": (3.5e-06, 3.5e-06), FROM_PIXELS: (2.5e-06, 2.0e-05),
    },
    "bfloat16": {
        "norm": (1.0e-02, 1.0e-02), "linear": (9.6e-03, 1.1e-02), "rope": (9.9e-03, 9.9e-03), "embedding": (6.6e-03, 6.6e-03),
        "attention": (2.3e-02, 2.5e-02), "mlp": (1.1e-02, 1.1e-02), "layer": (2.3e-02, 2.3e-02), "stack": (5.0e-02, 5.0e-02),
        "model": (8.2e-02, 8.9e-02), "masks": (3.5e-06, 3.5e-06), FROM_PIXELS: (8.2e-02, 8.9e-02),
    },
    "float16": {
        "norm": (1.2e-03, 1.2e-03), "linear": (1.2e-03, 1.2e-03), "rope": (1.3e-03, 1.3e-03), "embedding": (7.9e-04, 7.9e-04),
        "attention": (3.2e-03, 3.2e-03), "mlp": (1.5e-03, 1.5e-03), "layer": (2.9e-03, 2.9e-03), "stack": (5.0e-03, 5.0e-03),
        "model": (9.0e-03, 1.1e-02), "masks": (3.5e-06, 3.5e-06), FROM_PIXELS: (9.0e-03, 1.1e-02),
    },
}  # fmt: skip
# Rotary angles are positions times frequencies, and the two backends' frequencies differ in the last bit: the error grows with
# the position. Measured on rotary modules of 20 to 256 numbers per head at 32 to 4200 positions: 7e-8 per position at most.
ANGLE = 7e-8
_ROTATED = ("rope", "attention", "layer", "stack", "model", FROM_PIXELS)
EXACT = 1e-6  # for what is no arithmetic: token ids, masks, positions; and for pixels, which are rounded once
_STAGES = {
    "rope": ("rope",),
    "embedding": ("embed", "embed_tokens"),  # the vision tower's "embeddings" is a convolution: linear
    "attention": ("self_attn",),
    "mlp": ("mlp",),
    "stack": ("encoder", "vision_tower", "language_model", "encode_images"),
    "model": ("", "prefill", "decode"),
}
TIE = 1e-4  # in float32, logits closer than this may swap places between backends, whatever their size


@dataclass(frozen=True)
class Size:
    """What errors grow with."""

    width: int = 0  # hidden_size of the text model
    positions: int = 0  # tokens of the longest row


def stage_of(name: str) -> str:
    """The stage of a module: "norm", "linear", "rope", "embedding", "attention", "mlp", "layer", "stack", "model", "masks"."""
    last = name.rpartition(".")[2]
    if name.startswith(MASK_CODEC):
        return "masks"
    if last.isdigit():
        return "layer"
    if "norm" in last:
        return "norm"
    return next((stage for stage, names in _STAGES.items() if last in names), "linear")


def module_budget(dtype: str, name: str, size: Size) -> float:
    """For one module or method on equal inputs."""
    return _budget(dtype, stage_of(name), size)


def logits_budget(dtype: str, size: Size) -> float:
    """For the logits of MLX's own run."""
    return _budget(dtype, FROM_PIXELS, size)


def tie(dtype: str, size: Size, largest: float, error: float) -> float:
    """The gap below which either of two tokens may win: both logits may be off, one up, one down.

    By what the logits of this very run are off at most (`error`), or by their budget times the largest logit, if that is less.
    """
    return max(TIE, 2 * float(np.fmin(error, logits_budget(dtype, size) * largest)))


def _budget(dtype: str, stage: str, size: Size) -> float:
    measured = MEASURED[dtype][stage][size.width >= WIDE]
    return FACTOR * (max(measured, ANGLE * size.positions) if stage in _ROTATED else measured)
