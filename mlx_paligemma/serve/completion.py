"""One chat completion in OpenAI's form, whole or as server-sent events.

Sources: https://platform.openai.com/docs/api-reference/chat/object and .../chat/streaming.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from .answers import Answer, Token
from .api_errors import api_error
from .asking import result_record, usage
from .chat_request import ChatRequest
from .result_schema import RESULT, project

DONE = "data: [DONE]\n\n"
Event = tuple[int, Token | Answer]  # and the choice that it belongs to


@dataclass(frozen=True)
class Completion:
    """What all parts of it have in common."""

    body: ChatRequest
    model: str
    prompt: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self, events: AsyncIterator[Event]) -> dict[str, Any]:
        """As one JSON object."""
        tokens: list[list[Token]] = [[] for _ in range(self.body.n)]
        ends: dict[int, Answer] = {}
        async for choice, event in events:
            if isinstance(event, Answer):
                ends[choice] = event
            else:
                tokens[choice].append(event)
        choices = [self._choice(index, tokens[index], ends[index]) for index in range(self.body.n)]
        return self._head("chat.completion", choices) | {"usage": usage([*ends.values()])}

    async def stream(self, first: Event, events: AsyncGenerator[Event, None]) -> AsyncIterator[str]:
        """As server-sent events. An error is one of them: the status has been sent before it."""
        ends = []
        async with aclosing(events):
            try:
                for choice in range(self.body.n):
                    yield self._delta(choice, {"role": "assistant", "content": ""})
                async for choice, event in _after(first, events):
                    ends += [event] if isinstance(event, Answer) else []
                    for line in self._lines(choice, event):
                        yield line
                if self.body.stream_options is not None and self.body.stream_options.include_usage:
                    yield _event(self._head("chat.completion.chunk", []) | {"usage": usage(ends)})
            except Exception as error:  # noqa: BLE001 - whatever it is, the client is to hear of it
                yield _event(api_error(error).body())
        yield DONE

    def _choice(self, index: int, tokens: list[Token], end: Answer) -> dict[str, Any]:
        content = self._json(end) if self.body.wants_json else "".join(token.text for token in tokens) + end.rest
        message = {"role": "assistant", "content": content, "refusal": None}
        logprobs = self._logprobs(*tokens, end)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": end.finish_reason}

    def _lines(self, choice: int, event: Token | Answer) -> list[str]:
        if isinstance(event, Token):
            silent = self.body.wants_json or (not event.text and not event.logprobs)
            return [] if silent else [self._delta(choice, {"content": event.text}, self._logprobs(event))]
        rest = self._json(event) if self.body.wants_json else event.rest
        logprobs = self._logprobs(event) if event.logprobs else None
        return [self._delta(choice, {"content": rest} if rest else {}, logprobs, event.finish_reason)]

    def _delta(self, choice: int, delta: dict[str, str], logprobs: Any = None, reason: str | None = None) -> str:
        part = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return _event(self._head("chat.completion.chunk", [part]))

    def _head(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _logprobs(self, *parts: Token | Answer) -> dict[str, Any] | None:
        """Of the tokens of these parts; None where none are asked for."""
        if not self.body.logprobs:
            return None
        return {"content": [entry.record() for part in parts for entry in part.logprobs], "refusal": None}

    def _json(self, end: Answer) -> str:
        form = self.body.response_format.json_schema
        schema = RESULT if form is None or form.schema_ is None else form.schema_
        return json.dumps(project(result_record(self.prompt, end.result), schema, schema), ensure_ascii=False, allow_nan=False)


async def _after(first: Event, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    yield first
    async for event in events:
        yield event


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n"
