"""A request for a chat completion in OpenAI's form, and the question that it means.

Source: https://platform.openai.com/docs/api-reference/chat/create. PaliGemma has no chat history: the last user message's text is
the prompt ("detect cat"), and its pictures are what it is about.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..common.sampling import MOST_TOP_LOGPROBS

MAX_TEXT = 20_000  # characters of a prompt; the context ends long before

Text = Annotated[str, Field(max_length=MAX_TEXT)]


class Strict(BaseModel):
    """Unknown fields are refused: what is silently ignored would surprise later."""

    model_config = ConfigDict(extra="forbid")


class ImageUrl(Strict):
    """A picture: a data: address, or an https one where the server fetches those."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"  # the model has one size of pictures


class ImagePart(Strict):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(Strict):
    """A text in a message."""

    type: Literal["text"]
    text: Text


Part = Annotated[ImagePart | TextPart, Field(discriminator="type")]


class Message(Strict):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part] | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """Its texts, joined by spaces."""
        if isinstance(self.content, str):
            return self.content.strip()
        return " ".join(part.text.strip() for part in self.content or [] if isinstance(part, TextPart)).strip()

    @property
    def images(self) -> list[str]:
        """Addresses of its pictures."""
        parts = [] if isinstance(self.content, str) else self.content or []
        return [part.image_url.url for part in parts if isinstance(part, ImagePart)]


class StreamOptions(Strict):
    """Whether a stream ends with what it cost."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(BaseModel):
    """A schema for the detection result (see result_schema.py)."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """Plain text, or JSON by a schema."""

    type: Literal["text", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_a_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('type "json_schema" and the field json_schema belong together')
        return self


class Sampling(Strict):
    """How tokens are chosen. Left out: the likeliest each time. top_k, min_p, grammar and min_score are not OpenAI's."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1_000_000)
    min_p: float = Field(0.0, ge=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    grammar: bool = True
    min_score: float = Field(0.0, ge=0, le=1)


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    n: int = Field(1, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Text | list[Text] | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_TOP_LOGPROBS, description="So many likeliest tokens with each; needs logprobs.")
    response_format: ResponseFormat = ResponseFormat()
    frequency_penalty: float = Field(0, ge=0, le=0, description="Only 0.")
    presence_penalty: float = Field(0, ge=0, le=0, description="Only 0.")
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream true")
        if len(self.stops) > 4 or not all(self.stops):
            raise ValueError("stop is one text or up to four, none of them empty")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts at which the answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def limit(self) -> int | None:
        """New tokens at most."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wants_json(self) -> bool:
        """Whether the answer is to be the detection result as JSON."""
        return self.response_format.type == "json_schema"
