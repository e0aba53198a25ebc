"""Bodies of requests: JSON and forms, held against their models, with errors that say which field is wrong."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json
from starlette.datastructures import FormData

from .api_errors import ApiError

MAX_MARKS = 10_000  # of [ { and , in a JSON body: each makes an object in memory; base64 has none
MAX_FIELD_BYTES = 2**17  # of a form's field that is no file

Model = TypeVar("Model", bound=BaseModel)


def media_type(request: Request) -> str:
    """Of the body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, model: type[Model]) -> Model:
    """The body as a model's value. Raises ApiError."""
    if media_type(request) != "application/json":
        raise ApiError(415, "the body must be JSON; send it with Content-Type: application/json")
    body = await request.body()
    if sum(body.count(mark) for mark in (b"[", b"{", b",")) > MAX_MARKS:
        raise ApiError(400, f"the body has more than {MAX_MARKS} lists, objects and values; no request needs so many")
    try:
        value = to_json(whole_numbers(from_json(body, allow_inf_nan=False)))
        return model.model_validate_json(value, strict=True)  # the text "true" is no boolean, false is no 0
    except ValidationError as error:
        raise validation_error(error) from None
    except ValueError as error:
        raise ApiError(400, f"Invalid JSON: {error}") from None


async def read_form(request: Request, max_files: int) -> FormData:
    """A multipart form; who asks must close it. Raises ApiError or HTTPException."""
    return await request.form(max_files=max_files, max_fields=100, max_part_size=MAX_FIELD_BYTES)


def validated(model: type[Model], values: dict[str, Any]) -> Model:
    """Fields of a form as a model's value. Raises ApiError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise validation_error(error) from None


def whole_numbers(value: Any) -> Any:
    """JSON's value with 36 for 36.0: to JSON they are one number, and some clients write all numbers so."""
    if isinstance(value, dict):
        return {name: whole_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [whole_numbers(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def validation_error(error: ValidationError) -> ApiError:
    """The first thing that is wrong, of several forms in that which fits best. What was sent is not repeated."""
    first = max(error.errors(include_url=False, include_context=False, include_input=False), key=lambda each: len(each["loc"]))
    place = ".".join(str(part) for part in first["loc"] if str(part).isidentifier() or isinstance(part, int))[:200]
    message = " ".join(first["msg"].removeprefix("Value error, ").split())
    if first["type"] == "extra_forbidden":
        message = "there is no such field here"
    printable = "".join(sign if sign.isprintable() else "?" for sign in place)
    return ApiError(400, f"{printable}: {message}" if printable else message, printable or None)
