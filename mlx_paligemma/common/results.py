"""What a model's answer is: frozen values, the same from both backends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, overload

import numpy as np

from .errors import BackendError

if TYPE_CHECKING:
    import supervision

Likeliest = list[tuple[int, float]]  # ids of the likeliest tokens and their log-probabilities


@dataclass(frozen=True, eq=False)
class Detection:
    """One located object, in pixels of the original picture.

    score is the model's confidence in the place: the geometric mean, over the object's four loc tokens, of the probability
    that the model gave to the bins around the one chosen (16 to either side, 1/64 of the picture), given everything written
    before. The probability is the softmax over the 1024 loc tokens at temperature 1, before top-k, top-p, min-p and
    grammar. Neighbours count because the model spreads its belief over bins that are a pixel apart: the probability of
    a single bin says how fine the bins are rather than how sure the box is. None where the text did not come from a model.
    """

    label: str
    box: tuple[float, float, float, float]  # x0, y0, x1, y1
    score: float | None = None  # in 0..1
    mask: np.ndarray | None = None  # bool [height, width] of the whole picture, None where no mask was asked for


@dataclass(frozen=True, eq=False)
class Detections(Sequence[Detection]):
    """The objects of an answer in its order, and the size of the picture that they are in."""

    items: tuple[Detection, ...]
    width: int  # pixels
    height: int
    dropped: int = 0  # objects of the answer that are none: empty or reversed boxes, impossible bins or codes

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice) -> Detections: ...
    def __getitem__(self, index: int | slice) -> Detection | Detections:
        return replace(self, items=self.items[index]) if isinstance(index, slice) else self.items[index]

    def above(self, score: float) -> Detections:
        """Those with at least this score; ones without a score stay."""
        return replace(self, items=tuple(item for item in self.items if item.score is None or item.score >= score))

    def to_supervision(self) -> supervision.Detections:
        """As `supervision.Detections`: boxes, masks, confidence, and labels in `data["class_name"]`.

        class_id numbers the labels in the order in which they first appear. An object without a mask (of several that
        have one) gets an empty mask; confidence is None unless every object has a score.

        Raises:
            BackendError: supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError:
            raise BackendError("to_supervision needs the package supervision; install it with: pip install supervision") from None
        labels = [item.label for item in self.items]
        scores = [item.score for item in self.items if item.score is not None]
        empty = np.zeros((self.height, self.width), dtype=bool)
        masks = [empty if item.mask is None else item.mask for item in self.items]
        return supervision.Detections(
            xyxy=np.array([item.box for item in self.items], dtype=np.float32).reshape(-1, 4),
            mask=np.stack(masks) if any(item.mask is not None for item in self.items) else None,
            confidence=np.array(scores, dtype=np.float32) if len(scores) == len(labels) else None,
            class_id=np.array([[*dict.fromkeys(labels)].index(label) for label in labels], dtype=int),
            data={"class_name": np.array(labels, dtype=str)},
        )


@dataclass(frozen=True)
class Stats:
    """What an answer cost. In a batch, times are those of the whole batch."""

    prompt_tokens: int  # image tokens included
    generation_tokens: int  # without eos
    time_to_first_token_s: float | None  # from the call to the first token; None where none came
    generation_tps: float | None  # tokens per second after the first, of all rows together; None below two tokens
    peak_memory_bytes: int  # most that the backend held during the call, weights included
    grammar_changes: int = 0  # tokens, eos included, changed by the grammar; with look_ahead not those in boxes and masks


@dataclass(frozen=True, eq=False)
class GenerationResult:
    """A whole answer."""

    text: str
    token_ids: list[int]  # without eos
    finish_reason: str  # "stop": the model ended; "length": max_tokens or the context did; "cancelled": the caller did
    stats: Stats
    detections: Detections  # in the first picture
    token_logprobs: list[float] | None = None  # of each of token_ids, before filters and grammar; None unless asked for
    notes: tuple[str, ...] = ()  # what the user should know, one line each
    top_logprobs: list[Likeliest] | None = None  # for each of token_ids, likeliest first, as token_logprobs; None unless asked for


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer while it is being made."""

    text: str  # whole characters only; may be empty
    token_id: int
    finish_reason: str | None = None  # set in an answer's last chunk
