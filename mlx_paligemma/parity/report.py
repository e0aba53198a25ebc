"""What a comparison found, as a frozen value, and its form in JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from .distance import Distance

Verdict = Literal["pass", "fail", "interrupted"]
WHOLE = "model"  # the name in reports of the whole model, whose path is empty


@dataclass(frozen=True)
class InputStatistics:
    """Of what a module was given; None where it was given no floating numbers."""

    smallest: float | None
    largest: float | None
    mean: float | None
    std: float | None
    not_finite: int  # numbers left out of the others


@dataclass(frozen=True)
class ModuleParity:
    """How far one MLX module is from the reference on equal inputs, in the worst of its calls."""

    name: str  # path, "" for the whole model
    shape: tuple[int, ...]  # of its output
    dtype: str  # of its output
    distance: Distance
    budget: float  # for the relative error
    not_finite: InputStatistics | None = None  # its inputs, where its output has NaN or infinity

    @property
    def relative_error(self) -> float:
        """Largest difference by largest reference value."""
        return self.distance.relative_error

    @property
    def fails(self) -> bool:
        """Whether the error is beyond its budget; NaN is."""
        return not self.relative_error <= self.budget

    @property
    def severity(self) -> tuple[bool, float]:
        """For sorting: the error as a share of the budget; NaN is the largest."""
        return math.isnan(self.relative_error), self.relative_error / self.budget


@dataclass(frozen=True)
class Drift:
    """How far a layer's output has come from the reference's when MLX runs from the pixels on its own."""

    name: str
    relative_error: float


@dataclass(frozen=True)
class LogitsParity:
    """The logits of every position that is not padding, from the pixels."""

    distance: Distance
    positions: int
    top1_agreement: float  # share of positions with the same best token, 0..1
    margin: float  # median gap between the reference's two best logits
    largest_gap_flipped: float | None  # largest such gap at a position whose best token differs; None: there is none
    budget: float  # for the relative error

    @property
    def fails(self) -> bool:
        """Whether the error is beyond its budget; NaN is."""
        return not self.distance.relative_error <= self.budget


@dataclass(frozen=True)
class GreedyParity:
    """The likeliest tokens, one after the other, of the user's own prompt. Neither list has eos."""

    tokens: tuple[int, ...]
    reference_tokens: tuple[int, ...]
    first_divergence: int | None  # index of the first token that differs; None: they are the same
    gap: float | None  # between the reference's two best logits there
    tie: float  # gaps below this may go either way
    text: str = ""
    problem: str = ""  # why MLX gave no answer

    @property
    def near_tie(self) -> bool:
        """Whether the first difference is where either token may win."""
        return self.gap is not None and self.gap <= self.tie

    @property
    def fails(self) -> bool:
        """Whether the answers differ where they must not."""
        return bool(self.problem) or (self.first_divergence is not None and not self.near_tie)


@dataclass(frozen=True)
class Origin:
    """What was compared, where and with what."""

    model: str
    reference: str  # the other checkpoint's name where there are two, else the same
    against: str
    dtype: str
    prompt: str
    images: tuple[str, ...]
    versions: dict[str, str]
    devices: dict[str, str]
    hashes: dict[str, str]  # sha256 of checkpoint and inputs, by file name
    width: int = 0  # of the text model


@dataclass(frozen=True)
class ParityReport:
    """A whole comparison, or the part of it that an interruption left."""

    origin: Origin
    modules: tuple[ModuleParity, ...] = ()  # in the order in which the reference's modules first returned
    blamed: str | None = None  # the first module to go beyond its budget, in the order of all calls
    drift: tuple[Drift, ...] = ()  # in the order of the layers
    logits: LogitsParity | None = None
    decoding: LogitsParity | None = None  # of the prompts' last position and the tokens after it, through the cache
    greedy: GreedyParity | None = None
    interrupted: bool = False
    seconds: float = 0.0
    moved: tuple[str, ...] = field(default=())  # against a stored run, one line each

    @property
    def not_finite(self) -> ModuleParity | None:
        """The first module whose output has NaN or infinity."""
        return next((module for module in self.modules if module.not_finite is not None), None)

    @property
    def first_failure(self) -> str | None:
        """The first module with NaN; else the first beyond its budget: parts return before the whole; else the stage."""
        first = self.blamed if self.not_finite is None else self.not_finite.name
        if first is not None:
            return first or WHOLE
        stages = (("logits", self.logits), ("decoding", self.decoding), ("greedy", self.greedy))
        return next((name for name, stage in stages if stage is not None and stage.fails), None)

    @property
    def verdict(self) -> Verdict:
        """A failure that was found stands, also where the run was cut off."""
        if self.first_failure is not None:
            return "fail"
        return "interrupted" if self.interrupted else "pass"

    def worst(self, count: int) -> list[ModuleParity]:
        """The modules that use up most of their budget."""
        return sorted(self.modules, key=lambda module: module.severity, reverse=True)[:count]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: no NaN and no infinity, which it cannot hold, but null."""
        return {
            "modules": [_module(module) for module in self.modules],
            "logits": None if self.logits is None else _logits(self.logits),
            "decoding": None if self.decoding is None else _logits(self.decoding),
            "greedy": None if self.greedy is None else _greedy(self.greedy),
            "verdict": self.verdict,
            "first_failure": self.first_failure,
            "drift": [{"name": drift.name, "relative_error": _number(drift.relative_error)} for drift in self.drift],
            "not_finite": None if self.not_finite is None else _not_finite(self.not_finite),
            "origin": vars(self.origin) | {"images": list(self.origin.images)},
            "seconds": round(self.seconds, 3),
        } | ({"moved": list(self.moved)} if self.moved else {})


def _module(module: ModuleParity) -> dict[str, Any]:
    return {
        "name": module.name or WHOLE,
        "shape": list(module.shape),
        "dtype": module.dtype,
        **_distance(module.distance),
        "budget": module.budget,
        "fails": module.fails,
    }


def _logits(logits: LogitsParity) -> dict[str, Any]:
    return _distance(logits.distance) | {
        "top1_agreement": logits.top1_agreement,
        "margin": _number(logits.margin),
        "largest_gap_flipped": _number(logits.largest_gap_flipped),
        "positions": logits.positions,
        "budget": logits.budget,
    }


def _greedy(greedy: GreedyParity) -> dict[str, Any]:
    return {
        "tokens": list(greedy.tokens),
        "first_divergence": greedy.first_divergence,
        "reference_tokens": list(greedy.reference_tokens),
        "gap": _number(greedy.gap),
        "near_tie": greedy.near_tie,
        "text": greedy.text,
        "problem": greedy.problem or None,
    }


def _not_finite(module: ModuleParity) -> dict[str, Any]:
    return {"name": module.name or WHOLE, "input": vars(module.not_finite)}


def _distance(distance: Distance) -> dict[str, Any]:
    return {name: _number(getattr(distance, name)) for name in ("relative_error", "max_abs_error", "cosine")}


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
