"""What FastAPI cannot know for the OpenAPI document: bodies that are read by hand (see requests.py), errors, and the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

REFERENCE = "#/components/schemas/{model}"
REFUSALS = (400, 403, 404, 408, 413, 415, 429, 500, 503)  # of a request with a body
Schema = dict[str, Any]

# 16 x 16 pixels, all red
PICTURE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAGklEQVR42mO8IyfHQApgYiARjGoY1TB0NAAAjEsBOPY5fDQAAAAASUVORK5CYII="
)
LOCATE = {"image": PICTURE, "labels": ["square"]}
CAPTION = {"image": PICTURE, "language": "en"}
_CONTENT = [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": "caption en"}]
CHAT = {"messages": [{"role": "user", "content": _CONTENT}]}


def body(model: type[BaseModel], example: Mapping[str, Any], has_form: bool = False) -> Schema:
    """Of one endpoint: JSON, and a form with the picture as a file."""
    content: Schema = {"application/json": {"schema": _reference(model.__name__), "example": example}}
    if has_form:
        content["multipart/form-data"] = {"schema": _reference(f"{model.__name__}Form")}
    return {"requestBody": {"required": True, "content": content}}


def chat_answer(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """A completion, or the events of one."""
    content = {
        "application/json": {"schema": _reference(model.__name__)},
        "text/event-stream": {},  # OpenAPI 3.1 has no schema for events
    }
    return {200: {"description": "A completion in OpenAI's form, or server-sent events with its parts", "content": content}}


def text_answer(media_type: str) -> dict[int | str, dict[str, Any]]:
    """A text."""
    return {200: {"description": "Text", "content": {media_type: {"schema": {"type": "string"}}}}}


def complete_document(
    app: FastAPI,
    requests: Sequence[type[BaseModel]],
    answers: Sequence[type[BaseModel]],
    most: Mapping[str, int],
    keyless: Sequence[str] | None,
) -> None:
    """Have bodies, errors and the key described.

    `most`: of fields, the largest value that this server takes. `keyless`: the paths that need no key; None: no path needs one.
    """
    made = app.openapi

    @cache
    def document() -> Schema:
        whole = made()
        components = whole.setdefault("components", {})
        components.setdefault("schemas", {}).update(_schemas(requests, answers, most))
        for path, operations in whole["paths"].items():
            for operation in operations.values():
                needs_key = keyless is not None and path not in keyless
                _describe(operation, (401,) if needs_key else ())
        if keyless is not None:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        return whole

    app.openapi = document  # type: ignore[method-assign]


def _describe(operation: Schema, of_key: tuple[int, ...]) -> None:
    """The statuses of one operation's refusals, and whether it needs the key."""
    of_body = REFUSALS if "requestBody" in operation else ()
    operation["responses"] |= {str(status): _error(status) for status in sorted(of_body + of_key)}
    if of_key:
        operation["security"] = [{"key": []}]


def _schemas(requests: Sequence[type[BaseModel]], answers: Sequence[type[BaseModel]], most: Mapping[str, int]) -> Schema:
    inputs = [(model, "validation") for model in requests]
    outputs = [(model, "serialization") for model in answers]
    _, found = models_json_schema([*inputs, *outputs], ref_template=REFERENCE)  # type: ignore[list-item]
    schemas: Schema = found["$defs"]
    for model in requests:
        _bound(schemas[model.__name__]["properties"], most)
    forms = {f"{model.__name__}Form": _form(schemas[model.__name__]) for model in requests if "image" in model.model_fields}
    return schemas | forms | {"Error": _error_schema()}


def _bound(fields: Schema, most: Mapping[str, int]) -> None:
    """Tell the largest values; of `anyOf` an integer or null."""
    for name in most.keys() & fields.keys():
        for form in fields[name].get("anyOf", [fields[name]]):
            if form["type"] == "integer":
                form["maximum"] = most[name]


def _form(schema: Schema) -> Schema:
    """The same fields, with the picture as a file. A form cannot say null: such a field is left out."""
    file = {"type": "string", "format": "binary", "description": "the picture's file"}
    fields = {name: _never_null(field) for name, field in schema["properties"].items()}
    return schema | {"title": f"{schema['title']}Form", "properties": fields | {"image": file}}


def _never_null(field: Schema) -> Schema:
    forms = [form for form in field.get("anyOf", []) if form != {"type": "null"}]
    if len(forms) != 1:
        return field
    return {name: value for name, value in field.items() if name not in ("anyOf", "default")} | forms[0]


def _reference(name: str) -> Schema:
    return {"$ref": REFERENCE.format(model=name)}


def _error(status: int) -> Schema:
    description = f"{HTTPStatus(status).phrase}, in OpenAI's form"
    return {"description": description, "content": {"application/json": {"schema": _reference("Error")}}}


def _error_schema() -> Schema:
    nullable = {"type": ["string", "null"]}
    fields = {"message": {"type": "string"}, "type": {"type": "string"}, "param": nullable, "code": nullable}
    inner = {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}
    return {"type": "object", "properties": {"error": inner}, "required": ["error"], "additionalProperties": False}
