"""The figures of a comparison of recipes, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Values = Mapping[str, Sequence[float]]  # 0..1, by measure


@dataclass(frozen=True)
class Figure:
    """One measure of a model, and what it has lost or won against the unquantised model."""

    value: float  # mean, 0..1
    count: int  # of answers, or of objects
    difference: float  # points: hundredths of `value`
    standard_error: float | None  # points, of the difference, which both models' answers to the same prompts give; None: one value

    @classmethod
    def of(cls, values: Sequence[float], baseline: Sequence[float]) -> Figure:
        """Of the values, and the unquantised model's, in the same order."""
        differences = 100 * (np.array(values) - np.array(baseline))
        error = float(differences.std(ddof=1) / len(differences) ** 0.5) if len(differences) > 1 else None
        return cls(float(np.mean(values)), len(values), float(differences.mean()), error)


@dataclass(frozen=True)
class Row:
    """A model: the unquantised one, or one of a recipe."""

    name: str
    recipe: str  # in words
    nbytes: int  # of its weights in files
    divergence: float | None  # from the unquantised model, nats, mean over answer positions; None: there are none
    figures: Mapping[str, Figure]  # by measure; one that counts nothing is left out

    @classmethod
    def of(cls, name: str, recipe: str, nbytes: int, divergence: float | None, values: Values, baseline: Values) -> Row:
        """From the values of each measure, and those that the unquantised model has."""
        figures = {measure: Figure.of(found, baseline[measure]) for measure, found in values.items() if found}
        return cls(name, recipe, nbytes, divergence, figures)


@dataclass(frozen=True)
class Report:
    """A comparison."""

    model: str
    dtype: str  # of the activations
    against: str  # "truth": the right answers; "unquantised": that model's answers
    prompts: int  # that each model answered
    unquantised: Row
    recipes: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
