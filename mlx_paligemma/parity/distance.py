"""How far one array is from another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

PIECE = 1 << 22  # numbers that are taken to float64 at a time


@dataclass(frozen=True)
class Distance:
    """Of a result from the reference's."""

    relative_error: float  # largest difference by largest reference value
    max_abs_error: float
    cosine: float  # of the two arrays as long vectors; 1 for two that are zero


WRONG = Distance(float("inf"), float("inf"), 0.0)  # of what has another shape


@dataclass
class Tally:
    """The distance of arrays that come piece by piece."""

    largest_difference: float = 0.0
    largest_reference: float = 0.0
    product: float = 0.0
    squares: float = 0.0
    reference_squares: float = 0.0

    def add(self, value: np.ndarray, reference: np.ndarray) -> None:
        """Arrays of one shape. NaN anywhere makes the result NaN."""
        assert value.shape == reference.shape, f"{value.shape} is not {reference.shape}"
        for found, wanted in zip(_pieces(value), _pieces(reference), strict=True):
            self.largest_difference = _larger(self.largest_difference, np.abs(found - wanted).max())
            self.largest_reference = _larger(self.largest_reference, np.abs(wanted).max())
            self.product += float(found @ wanted)
            self.squares += float(found @ found)
            self.reference_squares += float(wanted @ wanted)

    @property
    def distance(self) -> Distance:
        """Over all that was added."""
        relative, lengths = self.largest_difference, (self.squares * self.reference_squares) ** 0.5
        if self.largest_difference:
            relative = self.largest_difference / self.largest_reference if self.largest_reference else float("inf")
        cosine = self.product / lengths if lengths else float(self.squares == self.reference_squares)
        return Distance(relative, self.largest_difference, cosine)


def distance(value: np.ndarray, reference: np.ndarray) -> Distance:
    """Of two arrays of one shape."""
    tally = Tally()
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are findings, not accidents
        tally.add(value, reference)
    return tally.distance


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference by the largest reference value."""
    return distance(value, reference).relative_error


def worst_distance(found: Iterable[Distance]) -> Distance:
    """The one with the largest relative error; NaN is the largest."""
    return max(found, key=lambda item: (np.isnan(item.relative_error), item.relative_error))


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    flat = np.asarray(array).reshape(-1)
    return (flat[start : start + PIECE].astype(np.float64) for start in range(0, flat.size, PIECE))


def _larger(one: float, other: float) -> float:
    """The larger of the two; NaN is the largest."""
    return float(np.maximum(one, other))
