"""Which models fit here: bytes that each variant needs in each precision, against what there is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..common import memory
from ..published import Size, published_config

SIZES = {
    "PaliGemma 3B": Size.pg1_3b, "PaliGemma 2 3B": Size.pg2_3b, "PaliGemma 2 10B": Size.pg2_10b, "PaliGemma 2 28B": Size.pg2_28b,
}  # fmt: skip
RESOLUTION = 448  # pixels
BITS = {"float32": 32, "bfloat16": 16, "8-bit": 8, "4-bit": 4}  # of a weight; the embedding table has 8 at least
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
    needs = {(model, precision): needed_bytes(model, precision) for model in SIZES for precision in BITS}
    return [Fit(model, precision, needed, _verdict(needed, budget)) for (model, precision), needed in needs.items()]


def memory_budget() -> int:
    """Bytes that a model may take here: where MLX computes, else what is free."""
    try:
        from ..memory import memory_budget as of_mlx

        return of_mlx()
    except Exception:  # noqa: BLE001 - an MLX that is broken has a line of its own
        return memory.memory_bytes()[1]


def needed_bytes(model: str, precision: str) -> int:
    """Weights, activations and cache."""
    bits, table = (memory.quantised_bits(least) for least in (BITS[precision], max(BITS[precision], 8)))
    return memory.needed_bytes(published_config(SIZES[model], RESOLUTION), bits, table_bits=table)


def _verdict(needed: int, budget: int) -> Verdict:
    if needed > budget:
        return Verdict.no
    return Verdict.tight if needed > TIGHT * budget else Verdict.yes
