"""A whole chat completion, as the OpenAPI document describes it; completion.py makes them.

Source: https://platform.openai.com/docs/api-reference/chat/object.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .chat_request import Strict
from .detect import Usage


class LikelyToken(Strict):
    """A token that was likely at a place."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenToken(LikelyToken):
    """The token at a place, and what else was likely there."""

    top_logprobs: list[LikelyToken]


class Logprobs(Strict):
    """Of all tokens of an answer."""

    content: list[ChosenToken] | None
    refusal: None


class AnswerMessage(Strict):
    """What the model wrote."""

    role: Literal["assistant"]
    content: str = Field(description="text, or with response_format json_schema a JSON object")
    refusal: None


class Choice(Strict):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class ChatResponse(Strict):
    """A completion in OpenAI's form."""

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[Choice]
    usage: Usage
