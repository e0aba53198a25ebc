"""One request among those that decode together: its steps on their way to whoever asked, and how its next token is chosen.

Axes: B rows, V vocabulary rows.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from ..common.decoding import Request, Step
from ..next_token import TokenChooser


@dataclass(eq=False)
class RowSteps(Iterator[Step]):
    """The steps of one request, on their way to whoever asked."""

    request: Request
    steps: queue.SimpleQueue[Step | BaseException | None] = field(default_factory=queue.SimpleQueue)  # None: the end
    is_cancelled: bool = False
    choose: TokenChooser | None = None
    chosen: tuple[mx.array, ...] = ()  # the fields of its newest step, not read yet
    read: int = 0  # steps that were sent

    def __next__(self) -> Step:
        step = self.steps.get()
        if isinstance(step, BaseException):
            raise step
        if step is None:
            raise StopIteration
        return step

    def close(self) -> None:
        """Ask for no more, from any thread; `next` then comes to the end."""
        self.is_cancelled = True

    @property
    def is_last(self) -> bool:
        """Whether the newest step is the last that was asked for."""
        return self.read + 1 >= self.request.options.max_tokens


def choose_all(rows: Sequence[RowSteps], logits: mx.array) -> list[tuple[mx.array, ...]]:
    """[B, 1, V] -> the next step of every row. Rows that choose alike do so together: fewer kernels, the same tokens."""
    found: dict[int, tuple[mx.array, ...]] = {}
    for places in _alike(rows):
        choose = rows[places[0]].choose
        assert choose is not None
        whole = choose(logits if len(places) == len(rows) else logits[mx.array(places)])
        found |= {place: tuple(part[row : row + 1] for part in whole) for row, place in enumerate(places)}
    return [found[place] for place in range(len(rows))]


def _alike(rows: Sequence[RowSteps]) -> list[list[int]]:
    """Places of rows with neither grammar nor draws of their own that are to tell the same of their tokens; others alone."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(rows):
        assert row.choose is not None
        options = row.request.options
        is_plain = row.choose.walk is None and options.is_greedy
        kind = (-1, options.token_logprobs, options.top_logprobs) if is_plain else (place,)
        groups.setdefault(kind, []).append(place)
    return [*groups.values()]
