"""The likeliest tokens one after the other, on both sides, until they part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.errors import NumericError
from .report import GreedyParity


@dataclass(frozen=True)
class GreedyRun:
    """The reference's answer."""

    tokens: tuple[int, ...]  # without eos
    gaps: tuple[float, ...]  # between the two best logits at each step; one more where eos ended the answer
    largest: float  # largest magnitude of a logit


def follow(first: np.ndarray, decode: Callable[[int], np.ndarray], eos: int, steps: int) -> GreedyRun:
    """Choose up to `steps` tokens: `first` are the logits [V] after the prompt, decode(token) those after one more token."""
    logits, tokens, gaps, largest = first, [], [], 0.0
    for step in range(steps):
        second, best = np.partition(logits, -2)[-2:]
        gaps.append(float(best - second))
        largest = max(largest, float(np.abs(logits).max()))
        token = int(logits.argmax())
        if token == eos:
            break
        tokens.append(token)
        if step < steps - 1:
            logits = decode(token)
    return GreedyRun(tuple(tokens), tuple(gaps), largest)


def compare_greedy(run: GreedyRun, generate: Callable[[], Any], tie: float) -> GreedyParity:
    """MLX's own answer, a `GenerationResult` that `generate` gives, against the reference's. Gaps below `tie` go either way."""
    try:
        result = generate()
    except NumericError as error:
        return GreedyParity((), run.tokens, 0, None, tie, problem=str(error))
    place = first_divergence(result.token_ids, run.tokens)
    gap = None if place is None or place >= len(run.gaps) else run.gaps[place]
    return GreedyParity(tuple(result.token_ids), run.tokens, place, gap, tie, result.text)


def first_divergence(tokens: Any, reference: Any) -> int | None:
    """Index of the first token that differs, an end that comes early included; None where there is none."""
    if list(tokens) == list(reference):
        return None
    pairs = zip(tokens, reference, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(tokens), len(reference)))
