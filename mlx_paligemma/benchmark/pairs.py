"""Two ways of doing the same, measured in turn: the ratio of their costs, how sure it is, and whether the machine held still."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

MOST_DRIFT = 0.05  # that one side may change from the first half of its runs to the second
RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)  # percentiles

Run = TypeVar("Run")


@dataclass(frozen=True)
class Ratio:
    """How many times as much the other side costs (or gives) as this one, by pairs of runs that lie side by side."""

    value: float  # median of the pairs
    low: float  # of the 95 % interval of that median
    high: float
    pairs: int
    drift: float  # the larger of both sides: 0.05 is 5 %

    @property
    def is_steady(self) -> bool:
        """Whether the runs can be relied on. A machine that heats up or has other work changes while it is measured."""
        return self.drift <= MOST_DRIFT


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of theirs over ours, in the order in which they were measured."""
    ratios = np.array(theirs, dtype=np.float64) / np.array(ours, dtype=np.float64)
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), INTERVAL)
    return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios), max(drift(ours), drift(theirs)))


def drift(values: Sequence[float]) -> float:
    """How far the median of the second half is from that of the first, as a share of it; 0 for a single value."""
    half = len(values) // 2
    return abs(float(np.median(values[half:]) / np.median(values[:half])) - 1) if half else 0.0


def in_blocks(sides: Sequence[Callable[[], Run]], pairs: int) -> list[list[Run]]:
    """Run all sides in turn, there and back (A-B-B-A), until each has run `pairs` times: what grows steadily cancels out."""
    found: list[list[Run]] = [[] for _ in sides]
    for number in range(pairs):
        there = list(range(len(sides)))
        for side in there if number % 2 == 0 else reversed(there):
            found[side].append(sides[side]())
    return found
