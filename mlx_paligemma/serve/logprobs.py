"""Log-probabilities of an answer's tokens in OpenAI's form, each let out with the text of its token.

Source: https://platform.openai.com/docs/api-reference/chat/object, `logprobs.content`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..common.decoding import Step
from ..common.token_pieces import TokenPiece, TokenPieces


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was, before filters and grammar."""

    piece: TokenPiece
    logprob: float  # natural
    likeliest: tuple[TokenLogprob, ...] = ()  # in its place, most likely first

    @classmethod
    def of(cls, step: Step, pieces: TokenPieces) -> TokenLogprob:
        """The token of a step with one row."""
        likeliest = tuple(cls(pieces[token], logprob) for token, logprob in step.likeliest(0))
        return cls(pieces[step.token_ids[0]], step.logprobs[0], likeliest)

    def record(self) -> dict[str, Any]:
        """As an entry of `content`."""
        return self._alone() | {"top_logprobs": [token._alone() for token in self.likeliest]}

    def _alone(self) -> dict[str, Any]:
        data = self.piece.data
        return {"token": self.piece.text, "logprob": self.logprob, "bytes": None if data is None else [*data]}


class HeldLogprobs:
    """Holds a token's entry until the first of its text is let out, so that none is told of text that a stop string cuts off.

    The bytes of a character go out together with it.
    """

    def __init__(self) -> None:
        self._held: list[tuple[int, TokenLogprob]] = []  # with the characters before each
        self._come = self._out = 0  # characters

    def add(self, text: str, entry: TokenLogprob | None) -> None:
        """The text that became certain with a token, and its entry where it has one."""
        self._held += [] if entry is None else [(self._come, entry)]
        self._come += len(text)

    def release(self, text: str) -> tuple[TokenLogprob, ...]:
        """The entries that go with the text that is let out now."""
        self._out += len(text)
        ready = tuple(entry for begin, entry in self._held if begin < self._out)
        self._held = self._held[len(ready) :]
        return ready

    def finish(self, is_cut: bool) -> tuple[TokenLogprob, ...]:
        """What is left at the end: all, unless a stop string has cut off the text."""
        return () if is_cut else tuple(entry for _, entry in self._held)
