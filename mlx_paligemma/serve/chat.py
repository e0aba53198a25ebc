"""POST /v1/chat/completions: OpenAI's chat form around PaliGemma's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from .answers import Question
from .api_errors import ApiError
from .asking import Asking
from .chat_request import ChatRequest, Message
from .completion import Completion
from .requests import read_json
from .result_schema import check_schema
from .streams import merged, unless_gone

_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


@dataclass(frozen=True)
class Chat:
    """The endpoint."""

    asking: Asking

    async def complete(self, request: Request) -> Response:
        """Answer the last message's text about the pictures of all messages."""
        body = await read_json(request, ChatRequest)
        self.asking.check_model(body.model)
        prompt, addresses = prompt_and_images(body.messages)
        _check_json(body, prompt)
        self._check_told(body)
        self.asking.log_prompt(request, prompt)
        questions = self._questions(body, prompt, await unless_gone(request, self.asking.pictures(addresses)))
        completion = Completion(body, self.asking.settings.model_name, prompt)
        events = merged([self.asking.answers.ask(question) for question in questions])
        if not body.stream:
            async with aclosing(events):
                return JSONResponse(await unless_gone(request, completion.whole(events)))
        try:  # what goes wrong before the first token is an ordinary error
            first = await unless_gone(request, anext(events))
        except BaseException:
            await events.aclose()
            raise
        return StreamingResponse(completion.stream(first, events), media_type="text/event-stream", headers=_STREAM_HEADERS)

    def _check_told(self, body: ChatRequest) -> None:
        """Raises ApiError for more choices than are allowed, or tokens to tell of where none are told."""
        if body.n > self.asking.settings.max_choices:
            raise ApiError(400, f"n is {body.n}; it may be at most {self.asking.settings.max_choices}", "n")
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, f"top_logprobs is {body.top_logprobs}, which needs logprobs true", "top_logprobs")

    def _questions(self, body: ChatRequest, prompt: str, pictures: tuple[bytes, ...]) -> list[Question]:
        """One for each choice, with seeds one after the other."""
        options = self.asking.options(body, body.limit)
        options = replace(options, token_logprobs=body.logprobs, top_logprobs=body.top_logprobs)
        first = options.first_seed()
        seeds = [(first + choice) % 2**32 for choice in range(body.n)]
        return [Question(pictures, prompt, replace(options, seed=seed), body.stops) for seed in seeds]


def prompt_and_images(messages: Sequence[Message]) -> tuple[str, list[str]]:
    """The prompt, and the addresses of all pictures. Raises ApiError where more than the last user message has text."""
    last = messages[-1]
    if last.role != "user" or not last.text:
        raise ApiError(400, 'the last message must be the user\'s, with a text such as "detect cat" or "caption en"', "messages")
    if any(message.text for message in messages[:-1]):
        told = "PaliGemma has no chat history and no system prompt: only the last message may have text"
        raise ApiError(400, told, "messages", "no_history")
    if any(message.images for message in messages if message.role != "user"):
        raise ApiError(400, "only the user's messages may have pictures", "messages")
    return last.text, [address for message in messages for address in message.images]


def _check_json(body: ChatRequest, prompt: str) -> None:
    """Raises ApiError where JSON is asked for that cannot be given."""
    form = body.response_format.json_schema
    if form is None:
        return
    if prompt.split(maxsplit=1)[0].lower() not in ("detect", "segment"):
        raise ApiError(400, 'json_schema is for the prompts "detect ..." and "segment ..."', "response_format")
    if body.stops or body.logprobs:
        raise ApiError(
            400, "json_schema goes with neither stop nor logprobs: the JSON is made of the whole answer", "response_format"
        )
    if form.schema_ is not None:
        check_schema(form.schema_)
