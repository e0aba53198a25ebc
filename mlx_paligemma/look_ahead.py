"""Fewer and cheaper steps for answers about places, with the same tokens: for one prompt at a time, greedy, under the grammar.

- After the last loc or seg token of an object its label follows, and then mostly a separator. Both are copied from the prompt and
  put through the model together with that token; what the model agrees with is kept (prompt lookup decoding,
  https://github.com/apoorvumang/prompt-lookup-decoding). Every kept token is the one that the model chose.
- Where the grammar allows only loc tokens, or only seg tokens, the output layer computes their rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from .common.decoding import Step
from .common.grammar import wanted_labels
from .common.tokenizer import NUM_LOC, NUM_SEG, PaliGemmaTokenizer
from .decode_step import Decoding, Rows
from .next_token import TokenChooser

LOCS, SEGS = 4, 16  # tokens of a box and of a mask
LONGEST = 8  # tokens that are guessed at a time, at most
Choice = tuple[tuple[mx.array, ...], dict[str, Any]]  # the fields of a `Step`, and the grammar's state afterwards


@dataclass(frozen=True)
class Guesses:
    """What may follow a place: for each label of the prompt its tokens and those of the separator."""

    first_loc: int
    first_seg: int
    has_masks: bool
    labels: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokenizer: PaliGemmaTokenizer, prompt: str) -> Guesses | None:
        """For a prompt; None where it asks for no places."""
        names = [name for name in wanted_labels(prompt) if name]
        if not names:
            return None
        labels = tuple(tuple(tokenizer.encode(f"<loc0000> {name} ; <loc0000>")[1:-1]) for name in names)
        masks = prompt.split(maxsplit=1)[0].lower() == "segment"
        return cls(tokenizer.first_loc, tokenizer.first_seg, masks, tuple(label[:LONGEST] for label in labels))

    def is_loc(self, token: int) -> bool:
        """Whether a token is one of the 1024."""
        return self.first_loc <= token < self.first_loc + NUM_LOC

    def is_seg(self, token: int) -> bool:
        """Whether a token is one of the 128."""
        return self.first_seg <= token < self.first_seg + NUM_SEG


@dataclass
class Place:
    """How far the object being written has come, and which label is the next guess."""

    guesses: Guesses
    locs: int = 0  # read so far
    segs: int = 0
    label: int = 0
    _text: list[int] = field(default_factory=list)  # tokens since the place

    def read(self, token: int) -> None:
        """The next token of the answer."""
        if self.guesses.is_loc(token):
            self.locs, self.segs = (self.locs + 1 if 0 < self.locs < LOCS else 1), 0
        elif self.guesses.is_seg(token):
            self.segs += 1
        else:
            self._text = [*self._text, token] if not self.locs else [token]
            self.locs = self.segs = 0
            self._follow()

    def _follow(self) -> None:
        """Objects of one label stand together: the label that is being written is the next guess too."""
        for index, label in enumerate(self.guesses.labels):
            if list(label[: len(self._text)]) == self._text[: len(label)]:
                self.label = index
                return

    def count(self, unread: bool) -> tuple[int, int]:
        """Loc and seg tokens up to the newest token, which may be unread where the grammar leaves no choice; else 0."""
        if not unread:
            return self.locs, self.segs
        if self.segs:
            return (LOCS, self.segs + 1) if self.segs < SEGS else (0, 0)
        return (self.locs + 1, 0) if 0 < self.locs < LOCS else (0, 0)

    def rows(self, unread: bool) -> Rows | None:
        """The rows of the output layer that the token after the newest one can come from; None: all."""
        locs, segs = self.count(unread)
        if 0 < locs < LOCS:
            return self.guesses.first_loc, self.guesses.first_loc + NUM_LOC
        if 0 < segs < SEGS:
            return self.guesses.first_seg, self.guesses.first_seg + NUM_SEG
        return None

    def guess(self, unread: bool) -> tuple[int, ...]:
        """What is likely to follow the newest token: a label, or the rest of the one begun; nothing where that is open."""
        label = self.guesses.labels[self.label]
        if self.count(unread) == ((LOCS, SEGS) if self.guesses.has_masks else (LOCS, 0)):
            return label
        begun = len(self._text) if not unread and not self.locs else 0
        return label[begun:] if begun and list(label[:begun]) == self._text else ()


def steps_ahead(
    choose: TokenChooser, decode: Decoding, chosen: tuple[mx.array, ...], guesses: Guesses, steps: int
) -> Iterator[Step]:
    """`steps` steps of one row, from the first chosen token on. The next pass is launched before the newest token is read."""
    place, unread, left = Place(guesses), True, steps
    while left > unread:
        guess = place.guess(unread)
        passed = _pass(choose, decode, chosen[0], guess, None if guess else place.rows(unread))
        if unread:
            left -= 1
            yield _read(place, chosen)
        if not guess:
            (chosen, _), unread = passed[0], True
            continue
        kept = _kept(passed, guess)
        decode.back(len(guess) - kept)
        choose.restore(passed[kept][1])
        for chosen, _ in passed[: min(kept + 1, left)]:
            left -= 1
            yield _read(place, chosen)
        unread = False
    if unread:
        yield _read(place, chosen)


def _pass(choose: TokenChooser, decode: Decoding, token: mx.array, guess: Sequence[int], rows: Rows | None) -> list[Choice]:
    """Run the newest token and the guess; after each of them the model's choice, and the grammar's state then."""
    tokens = mx.concatenate([mx.maximum(token, 0), mx.array(list(guess), dtype=token.dtype)])[None]
    logits = decode(tokens, rows)
    found: list[Choice] = []
    for place in range(tokens.shape[1]):
        chosen = choose(logits[:, place : place + 1], rows)
        found.append((chosen, choose.state()))
    mx.async_eval([chosen for chosen, _ in found])
    return found


def _kept(passed: Sequence[Choice], guess: Sequence[int]) -> int:
    """How many tokens of the guess the model chose too."""
    same = [chosen[0].tolist() == [wanted] for (chosen, _), wanted in zip(passed, guess, strict=False)]
    return same.index(False) if False in same else len(guess)


def _read(place: Place, chosen: tuple[mx.array, ...]) -> Step:
    step = Step(*(np.array(part).tolist() for part in chosen))
    place.read(step.token_ids[0])
    return step
