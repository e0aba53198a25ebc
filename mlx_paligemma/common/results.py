"""What a model's answer is: frozen values, the same from both backends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Detection:
    """One located object, in pixels of the original picture."""

    label: str
    box: tuple[float, float, float, float]  # x0, y0, x1, y1
    score: float | None = None  # confidence in 0..1, None where it was not computed
    mask: np.ndarray | None = None  # bool [height, width] of the whole picture, None where no mask was asked for


@dataclass(frozen=True)
class Stats:
    """What an answer cost. In a batch, times are those of the whole batch."""

    prompt_tokens: int  # image tokens included
    generation_tokens: int  # without eos
    time_to_first_token_s: float | None  # from the call to the first token; None where none came
    generation_tps: float | None  # tokens per second after the first, of all rows together; None below two tokens
    peak_memory_bytes: int  # most that the backend held during the call, weights included
    grammar_changes: int = 0  # tokens that a grammar changed


@dataclass(frozen=True, eq=False)
class GenerationResult:
    """A whole answer."""

    text: str
    token_ids: list[int]  # without eos
    finish_reason: str  # "stop": the model ended; "length": max_tokens or the context did; "cancelled": the caller did
    stats: Stats
    detections: tuple[Detection, ...] = ()  # of the first picture


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer while it is being made."""

    text: str  # whole characters only; may be empty
    token_id: int
    finish_reason: str | None = None  # set in an answer's last chunk
