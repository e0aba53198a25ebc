"""POST /v1/detect, /v1/segment and /v1/caption: one picture and what is wanted of it, as JSON or as a form with a file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import Field, field_validator
from starlette.datastructures import FormData, UploadFile

from ..common import prompt as prompts
from ..common.sampling import SamplingOptions
from .answers import Answer, Question
from .api_errors import ApiError
from .asking import Asking, result_record, usage
from .chat_request import Sampling, Strict
from .requests import media_type, read_form, read_json, validated
from .streams import unless_gone

LABELS = 32  # in one request
_PATTERN = r"^[^<>;\n]*[^<>;\s\x1c-\x1f][^<>;\n]*$"  # told, but checked by hand, for the sake of the messages
Label = Annotated[str, Field(min_length=1, max_length=200, json_schema_extra={"pattern": _PATTERN})]


class LocateRequest(Sampling):
    """What to look for in a picture. In a form, `image` is the file, and `labels` is repeated or written as "cat ; dog"."""

    image: str = Field(description="a data: address, or an https one where the server fetches those")
    labels: list[Label] = Field(min_length=1, max_length=LABELS)

    @field_validator("labels", mode="before")
    @classmethod
    def _strip(cls, value: Any) -> Any:
        is_texts = isinstance(value, list) and all(isinstance(label, str) for label in value)
        return [label.strip() for label in value] if is_texts else value

    @field_validator("labels")
    @classmethod
    def _are_plain(cls, labels: list[str]) -> list[str]:
        if any(set(label) & set("<>;\n") for label in labels):
            raise ValueError("a label has one of < > ; or a line break in it")
        return labels


class CaptionRequest(Sampling):
    """In which language to describe a picture. In a form, `image` is the file."""

    image: str = Field(description="a data: address, or an https one where the server fetches those")
    language: str = Field("en", pattern="^[a-z]{2,3}(-[A-Za-z]{2,4})?$")


class Mask(Strict):
    """COCO's run-length code of a mask of the whole picture."""

    size: tuple[int, int] = Field(description="height, width")
    counts: str


class Located(Strict):
    """One object."""

    label: str
    box: tuple[float, float, float, float] = Field(description="x0, y0, x1, y1 in pixels of the picture")
    score: float | None = Field(description="0 to 1")
    mask: Mask | None


class Usage(Strict):
    """What an answer cost, in tokens; those of the picture are counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class LocateResponse(Strict):
    """The objects in a picture, in the answer's order."""

    model: str
    prompt: str
    text: str = Field(description="as the model wrote it")
    width: int
    height: int
    detections: list[Located]
    finish_reason: str
    notes: list[str]
    usage: Usage


class CaptionResponse(Strict):
    """A description of a picture."""

    model: str
    prompt: str
    text: str
    finish_reason: str
    usage: Usage


Body = TypeVar("Body", LocateRequest, CaptionRequest)


@dataclass(frozen=True)
class Tasks:
    """The endpoints."""

    asking: Asking

    async def detect(self, request: Request) -> LocateResponse:
        """A box around each object of the kinds that `labels` names."""
        body, picture = await self._read(request, LocateRequest)
        return await self._located(request, body, picture, prompts.detect(*body.labels))

    async def segment(self, request: Request) -> LocateResponse:
        """A box and a mask for each object of the kinds that `labels` names."""
        body, picture = await self._read(request, LocateRequest)
        return await self._located(request, body, picture, prompts.segment(*body.labels))

    async def caption(self, request: Request) -> CaptionResponse:
        """A sentence about the picture."""
        body, picture = await self._read(request, CaptionRequest)
        prompt = prompts.caption(body.language)
        answer = await self._answer(request, body, picture, prompt)
        return CaptionResponse(**self._common(prompt, answer), text=answer.result.text)

    async def _located(self, request: Request, body: LocateRequest, picture: bytes, prompt: str) -> LocateResponse:
        answer = await self._answer(request, body, picture, prompt)
        return LocateResponse(**self._common(prompt, answer), **result_record(prompt, answer.result))

    def _common(self, prompt: str, answer: Answer) -> dict[str, Any]:
        name, reason = self.asking.settings.model_name, answer.finish_reason
        return {"model": name, "prompt": prompt, "finish_reason": reason, "usage": usage([answer])}

    async def _answer(self, request: Request, body: Sampling, picture: bytes, prompt: str) -> Answer:
        self.asking.log_prompt(request, prompt)
        options: SamplingOptions = self.asking.options(body, body.max_tokens)
        return await unless_gone(request, self._end(Question((picture,), prompt, options)))

    async def _end(self, question: Question) -> Answer:
        async with aclosing(self.asking.answers.ask(question)) as events:
            async for event in events:
                if isinstance(event, Answer):
                    return event
        raise AssertionError("an answer has an end")

    async def _read(self, request: Request, model: type[Body]) -> tuple[Body, bytes]:
        """The request and its picture's file. Raises ApiError."""
        if media_type(request) == "multipart/form-data":
            form = await read_form(request, max_files=1)
            try:
                body, picture = validated(model, {**_fields(form), "image": ""}), await _file(form)
            finally:
                await form.close()
        else:
            body = await read_json(request, model)
            (picture,) = await unless_gone(request, self.asking.pictures([body.image], "image"))
        self.asking.check_model(body.model)
        return body, picture


async def _file(form: FormData) -> bytes:
    file = form.get("image")
    if not isinstance(file, UploadFile):
        raise ApiError(400, "the form has no file in its field image", "image")
    return await file.read()


def _fields(form: FormData) -> Mapping[str, Any]:
    """All fields but the file; labels as a list, "cat ; dog" as two. Raises ApiError for one that is given twice."""
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name == "labels":
            fields.setdefault(name, []).extend(value.split(";") if isinstance(value, str) else [value])
        elif name in fields:
            raise ApiError(400, "a field is given twice", "form")
        elif name != "image":
            fields[name] = value
    return fields
