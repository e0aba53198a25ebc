"""Which models fit here: bytes that each variant needs in each precision, against what there is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .machine import memory_bytes

PARAMETERS = {"PaliGemma 3B": 2.92e9, "PaliGemma 2 3B": 3.03e9, "PaliGemma 2 10B": 9.66e9, "PaliGemma 2 28B": 27.66e9}
VISION = 0.41e9  # parameters among them; quantised models keep them in bfloat16
BITS = {"float32": 32.0, "bfloat16": 16.0, "8-bit": 8.5, "4-bit": 4.5}  # per weight, with scale and bias of each 64
FIXED_WORK, WORK = 0.25e9, 0.03  # bytes, and bytes per parameter, of activations and cache at 448 pixels, in 16 bits
TIGHT = 0.85  # a model above this share of the memory leaves other programs none


class Verdict(StrEnum):
    """Whether a model fits."""

    yes = "yes"
    tight = "tight"
    no = "no"


@dataclass(frozen=True)
class Fit:
    """One variant in one precision."""

    model: str
    precision: str
    bytes: int  # needed to answer about one picture of 448 pixels
    fits: Verdict


def fits(budget: int) -> list[Fit]:
    """All variants and precisions, given the bytes that a model may take."""
    needs = {(model, precision): needed_bytes(model, precision) for model in PARAMETERS for precision in BITS}
    return [Fit(model, precision, needed, _verdict(needed, budget)) for (model, precision), needed in needs.items()]


def memory_budget() -> int:
    """Bytes that a model may take here: where MLX computes, else what is free."""
    try:
        from .on_mlx import memory_budget as of_mlx

        return of_mlx()
    except Exception:  # noqa: BLE001 - an MLX that is broken has a line of its own
        return memory_bytes()[1]


def needed_bytes(model: str, precision: str) -> int:
    """Weights, activations and cache."""
    count, bits = PARAMETERS[model], BITS[precision]
    weights = (count - VISION) * bits + VISION * max(bits, 16)
    return int(weights / 8 + (FIXED_WORK + WORK * count) * max(bits, 16) / 16)


def _verdict(needed: int, budget: int) -> Verdict:
    if needed > budget:
        return Verdict.no
    return Verdict.tight if needed > TIGHT * budget else Verdict.yes
