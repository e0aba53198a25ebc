"""How the next token is chosen, how many, and what is told of them: the options, and their checks."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from .errors import OptionError

MOST_TOP_LOGPROBS = 20  # as in OpenAI's API


@dataclass(frozen=True)
class SamplingOptions:
    """Temperature 0 (or below 1e-6) is greedy and ignores the rest. Filters apply after it, in the order top_k, top_p, min_p.

    In a batch every row draws with the same random numbers, as it would alone; vary the seed for varied answers.
    """

    max_tokens: int = 100  # new tokens at most; the model's context is a limit too
    temperature: float = 0.0
    top_p: float = 1.0  # keep the likeliest tokens that together reach this probability
    top_k: int = 0  # keep this many; 0: all
    min_p: float = 0.0  # keep tokens at least this likely compared with the likeliest
    seed: int | None = None  # None: another one each time
    grammar: bool = True  # hold answers to "detect" and "segment" to their form, see grammar.py
    token_logprobs: bool = False  # put them into the result
    top_logprobs: int = 0  # put those of so many likeliest tokens into the result, for each token; 20 at most
    min_score: float = 0.0  # leave out detections with a lower score
    look_ahead: bool = True  # MLX: save steps where an answer about places can be guessed; the tokens stay the same

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> SamplingOptions:
        """Options by name. Raises OptionError for an unknown name or a value out of range."""
        unknown = [name for name in options if name not in cls.__dataclass_fields__]
        if unknown:
            raise OptionError(f"unknown option {unknown[0]!r}; known are {', '.join(cls.__dataclass_fields__)}")
        return cls(**options)

    def __post_init__(self) -> None:
        whole = {"max_tokens": 1, "top_k": 0, "top_logprobs": 0} | ({} if self.seed is None else {"seed": 0})
        for name, least in whole.items():
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise OptionError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        if self.top_logprobs > MOST_TOP_LOGPROBS:
            raise OptionError(f"top_logprobs is {self.top_logprobs!r}; it may be at most {MOST_TOP_LOGPROBS}")
        for name in ("grammar", "token_logprobs", "look_ahead"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} is {getattr(self, name)!r}; it must be True or False")
        for name, highest in (("temperature", sys.float_info.max), ("top_p", 1.0), ("min_p", 1.0), ("min_score", 1.0)):
            value = getattr(self, name)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= highest:
                limits = "of at least 0 and at most 1" if highest == 1 else "of at least 0, and finite"
                raise OptionError(f"{name} is {value!r}; it must be a number {limits}")
        if self.top_p == 0:
            raise OptionError("top_p is 0, which keeps no token; use temperature 0 for the likeliest one")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken. Below this temperature float32 could not tell the difference."""
        return self.temperature < 1e-6

    @property
    def tells_logprobs(self) -> bool:
        """Whether the scores of the whole vocabulary are needed at every token."""
        return self.token_logprobs or self.top_logprobs > 0

    @property
    def finite_temperature(self) -> float:
        """What scores are divided by: at most what float32 can hold, or a token ruled out (-inf) would become NaN."""
        return min(float(self.temperature), 1e30)

    def first_seed(self) -> int:
        """The seed, or a fresh one below 2 ** 32."""
        return secrets.randbits(32) if self.seed is None else int(self.seed) % 2**32
